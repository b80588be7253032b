"""Damage to files, drawn from a seed: what hardening tests feed to whatever reads files."""
import json
from collections.abc import Iterator
from typing import Any

import numpy as np

MUTATIONS = 300  # of each kind of file
ODD_BYTES = (b"\0", b'"', b"\r", b"\n", b",", b";", b"\t", b"\xff", b"\xef\xbb\xbf", b"=1+1", b"'", b"{", b"}", b"[", b"- ", b"&a [*a]", b"nan", b"1e999", b"-", b"9" * 400)
ODD_VALUES = (None, True, False, 0, -1, 1e308, -0.0, 1e-300, float("nan"), float("inf"), "", " ", "x", "1", "nan", "\0", "\u202e", "../../etc/passwd", "/dev/zero", [], [[]], {}, {"": ""}, [None], 10**30, "A" * 5000)


def mutate_bytes(
    generator: np.random.Generator,
    data: bytes,
) -> bytes:  # 1 to 4 damages later
    "Flip, cut, repeat, drop, swap or insert bytes, as disks, editors and attackers do."
    for _ in range(generator.integers(1, 5)):
        n = max(len(data), 1)
        at, other = sorted(int(i) for i in generator.integers(0, n, 2))
        kind = generator.integers(0, 7)
        if kind == 0:
            flipped = bytearray(data)
            for place in generator.integers(0, n, generator.integers(1, 9)):
                if place < len(flipped):
                    flipped[place] ^= 1 << int(generator.integers(0, 8))
            data = bytes(flipped)
        elif kind == 1:
            data = data[:at]
        elif kind == 2:
            data = data[:at] + data[other:]
        elif kind == 3:
            data = data[:other] + data[at:]
        elif kind == 4:
            data = data[:at] + ODD_BYTES[generator.integers(len(ODD_BYTES))] + data[at:]
        elif kind == 5:
            data = data[:at] + generator.bytes(int(generator.integers(1, 64))) + data[at:]
        else:
            lines = data.split(b"\n")
            i, j = generator.integers(0, len(lines), 2)
            lines[i], lines[j] = lines[j], lines[i]
            data = b"\n".join(lines)
    return data


def mutate_value(
    generator: np.random.Generator,
    value: Any,  # of JSON or YAML; it is not changed itself
) -> Any:
    "Replace, drop, double, nest or rename one part of plain data."
    value = json.loads(json.dumps(value))
    places = list(_places(value))
    parent, key = places[generator.integers(len(places))]
    kind = generator.integers(0, 6)
    if kind <= 2:
        parent[key] = ODD_VALUES[generator.integers(len(ODD_VALUES))]
    elif kind == 3:
        del parent[key]
    elif kind == 4:
        parent[key] = [parent[key]] if generator.integers(2) else {"value": parent[key]}
    elif isinstance(parent, dict):
        parent[f"{key}{('x', ' ', '_2')[generator.integers(3)]}"] = parent.pop(key)
    else:
        parent.insert(key, parent[key])
    return value


def _places(value: Any) -> Iterator[tuple[Any, Any]]:  # a dict or list, and a key or index in it
    for key, part in list(value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()):
        yield value, key
        yield from _places(part)


def mutated_files(
    data: bytes,
    *,
    seed: int,
    n: int = MUTATIONS,
    plain: bool = False,  # it is JSON: every second one keeps the syntax and changes a value
) -> Iterator[bytes]:
    "Give `n` damaged copies of a file, the same ones for the same seed."
    generator = np.random.default_rng(seed)
    for number in range(n):
        if plain and number % 2:
            yield json.dumps(mutate_value(generator, json.loads(data)), ensure_ascii=bool(generator.integers(2))).encode("utf-8", "surrogatepass")
        else:
            yield mutate_bytes(generator, data)
