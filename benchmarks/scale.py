"""Time and memory of each command as photos and classes become more: 1,000 to 100,000 photos of 10 classes, and 10 to 1,000 classes of 10,000 photos.

    python benchmarks/scale.py FOLDER            # keeps its drawn photos in FOLDER; an hour
    python benchmarks/scale.py FOLDER --quick    # 300 and 1,000 photos, nothing is recorded

Each command is a process of its own, with an empty cache; its peak is that of its resident memory, with the processes that it starts. Photos are noise of
72 pixels, each of its class's colour, so that reading and the network take little of what grows. `train` fits the default recipe's probe at 64 px.
The exponent is the slope of the logarithms between the two largest sizes, where starting up no longer counts."""
import argparse
import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
from common import first_environment, record
from PIL import Image

SIDE, TRAIN_SIZE = 72, 64
LOAD = ("import sys; from snakecls.data.tables import load_table; from snakecls.data.splits import split_table; "
        "print(len(split_table(load_table(sys.argv[1]), valid=0.2, seed=1)))")


def draw_photos(folder: Path, n: int, n_classes: int) -> Path:  # the table
    "Draw photos of noise in their class's colour, once."
    table = folder / f"{n}-{n_classes}.csv"
    if table.exists():
        return table
    colours = np.random.default_rng(0).integers(40, 216, (n_classes, 3))
    files = []
    for i in range(n):
        rng = np.random.default_rng((n_classes, i))
        files.append(folder / f"{n_classes}" / f"{i // 1000}" / f"{i}.jpg")
        if not files[-1].exists():
            files[-1].parent.mkdir(parents=True, exist_ok=True)
            pixels = np.clip(colours[i % n_classes] + rng.normal(0, 40, (SIDE, SIDE, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(files[-1], quality=85)
    pd.DataFrame({"path": list(map(str, files)), "label": [f"class {i % n_classes:04}" for i in range(n)]}).to_csv(table, index=False)
    return table


def commands(table: Path, folder: Path) -> dict[str, list[str]]:
    "Say what is run, in this order: `predict` asks the model that `train` has made."
    photos = Path(pd.read_csv(table, nrows=1)["path"][0]).parent.parent
    run = [sys.executable, "-m", "snakecls"]
    return {
        "load": [sys.executable, "-c", LOAD, str(table)],
        "check --files-only": [*run, "check", str(table), "--files-only", "--output", str(folder / "check")],
        "train": [*run, "train", "--data", str(table), "--runs", str(folder / "runs"), "--logbook", str(folder / "logbook.md"), "--json", "--set", "seed=1",
                  "--set", f"schedule=[{{size: {TRAIN_SIZE}, epochs: 0, head: probe}}]"],
        "predict": [*run, "predict", str(photos), "--runs", str(folder / "runs"), "--csv", str(folder / "answers.csv")],
    }


def measure(command: list[str], folder: Path) -> tuple[float, float]:  # seconds; MB
    "Run a command, and watch its memory."
    env = os.environ | {"SNAKECLS_CACHE": str(folder / "cache")}
    start, peak = time.perf_counter(), 0.0
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        process = subprocess.Popen(command, stdout=out, stderr=err, cwd=folder, env=env)
        watched, over = psutil.Process(process.pid), threading.Event()

        def watch() -> None:
            nonlocal peak
            while not over.wait(0.1):
                try:
                    peak = max(peak, sum(_own_bytes(one) for one in (watched, *watched.children(recursive=True))))
                except psutil.Error:
                    continue

        thread = threading.Thread(target=watch)
        thread.start()
        code = process.wait()
        over.set()
        thread.join()
        took = time.perf_counter() - start
        if code:
            err.seek(0)
            raise SystemExit(f"{' '.join(command)} ended with {code}: {err.read().decode()[-2000:]}")
    return took, peak / 1e6


def _own_bytes(process: psutil.Process) -> int:
    "Give a process's memory without the files that it has mapped, and without what it shares with its parent."
    info = process.memory_info()
    return info.rss - info.shared


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--photos", nargs="+", type=int, default=[1_000, 10_000, 100_000])
    parser.add_argument("--classes", nargs="+", type=int, default=[10, 100, 1_000])
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--quick", action="store_true")
    args = parser.parse_args()
    args.folder = args.folder.absolute()
    args.folder.mkdir(parents=True, exist_ok=True)
    first_environment()
    sizes, classes = ([300, 1_000], [10, 50]) if args.quick else (sorted(args.photos), sorted(args.classes))
    middle = sizes[min(1, len(sizes) - 1)]
    arms = [(n, classes[0]) for n in sizes] + [(middle, k) for k in classes[1:]]
    found: dict[tuple[str, int, int], list[tuple[float, float]]] = {}
    for _ in range(args.rounds):
        for n, k in arms:
            table = draw_photos(args.folder, n, k)
            with tempfile.TemporaryDirectory(dir=args.folder) as scratch:
                for name, command in commands(table, Path(scratch)).items():
                    found.setdefault((name, n, k), []).append(measure(command, Path(scratch)))
                    print(name, n, k, found[name, n, k][-1], flush=True)
    for name in commands(table, args.folder):
        for n, k in arms:
            seconds, peaks = zip(*found[name, n, k])
            note = f"{n} photos, {k} classes"
            larger = {"photos": [(m, k) for m in sizes if m > n and k == classes[0]][:1], "classes": [(n, c) for c in classes if c > k and n == middle][:1]}
            for what, pair in larger.items():
                for m, c in pair:
                    more = np.mean(found[name, m, c], 0) / np.mean(found[name, n, k], 0)
                    slope = math.log(more[0]) / math.log(m / n if what == "photos" else c / k)
                    note += f"; to {m if what == 'photos' else c} {what}: time ^{slope:.2f}, memory x {more[1]:.2f}"
            print(f"{name}: {note}: {np.mean(seconds):.1f} s, {np.mean(peaks):.0f} MB")
            if not args.quick:
                record("scale", f"{name}, {n} photos, {k} classes", list(seconds), unit="s", note=note)
                record("scale", f"{name}, {n} photos, {k} classes, peak memory", list(peaks), unit="MB", note=note)
    if args.quick:
        shutil.rmtree(args.folder)
    print(json.dumps({"commands": len(found)}))


if __name__ == "__main__":
    main()
