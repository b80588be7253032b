"""Broken files and copies in the demonstration data, against the truth its generator records, seed by seed; and how fast 2,000 photos are checked.

Usage: python benchmarks/files.py OUTPUT_FOLDER [SEEDS] [--without-speed]; thresholds were fixed on seeds 0 to 2, so score on 3 to 7."""
import argparse
import resource
import time
from pathlib import Path

import numpy as np
import pandas as pd
from common import record
from PIL import Image, ImageEnhance

from snakecls.data.demo.draw import make_demo
from snakecls.data.demo.drawing import draw_snake
from snakecls.clean.duplicates import find_duplicates, near_pairs
from snakecls.clean.files import check_files
from snakecls.clean.scan import scan_files
from snakecls.data.tables import load_table


def score(folder: Path, seed: int) -> dict[str, float]:
    "Draw the data of a seed and score what is found; shares in [0, 1]."
    demo = make_demo(folder / f"seed-{seed}", seed=seed, n_per_species=25, exact_duplicates=20, near_duplicates=40, broken=12)
    truth = pd.read_csv(demo / "truth.csv", keep_default_na=False)
    truth["path"], truth["root"] = [str(demo / path) for path in truth["path"]], truth["duplicate_of"].where(truth["duplicate_of"] != "", truth["path"])
    truth["root"] = [str(demo / root) for root in truth["root"]]
    truth = truth.set_index("path")
    table = load_table(demo / "photos.csv", target="binomial")
    facts = scan_files(table, cache=folder / f"seed-{seed}.sqlite")
    dropped = set(check_files(facts).query("verdict == 'drop'")["path"])
    broken = set(truth.index[truth["broken"] != ""])
    issues = find_duplicates(facts)
    exact = set(issues.query("issue == 'exact duplicate'")["path"])
    copies = truth[truth["duplicate_kind"] == "exact"]
    should = set(copies.index) | set(copies["root"])
    pairs = near_pairs(facts)
    right = (truth.loc[pairs["path"], "root"].to_numpy() == truth.loc[pairs["other"], "root"].to_numpy())
    found = set(pairs.loc[right, "path"]) | set(pairs.loc[right, "other"])
    near = set(truth.index[truth["duplicate_kind"] == "near"])
    false = (set(pairs.loc[~right, "path"]) | set(pairs.loc[~right, "other"])) - found
    return {"broken found": len(dropped & broken) / len(broken), "whole photos called broken": len(dropped - broken) / (len(truth) - len(broken)),
            "exact found": len(exact & should) / len(should), "others called exact": len(exact - should) / (len(truth) - len(should)),
            "near found": len(found & near) / len(near), "others called near": len(false) / (len(truth) - len(broken) - len(near))}


def draw_many(folder: Path, n: int = 2000, size_px: int = 400) -> list[str]:
    "Write photos of 400 px with different content, a hundred drawings in twenty kinds of light."
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{i:05d}.jpg" for i in range(n)]
    drawn: dict[int, Image.Image] = {}
    for i, path in enumerate(paths):
        if not path.exists():
            if i % 100 not in drawn:
                drawn[i % 100] = draw_snake("Vipera berus", i % 100, size_px, place_seed=i % 100)
            ImageEnhance.Brightness(drawn[i % 100]).enhance(0.8 + 0.02 * (i // 100)).save(path, quality=90)
    return [str(path) for path in paths]


def cpu_seconds() -> float:
    return sum(use.ru_utime + use.ru_stime for use in map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("seeds", type=int, nargs="*", default=[3, 4, 5, 6, 7])
    parser.add_argument("--without-speed", action="store_true")
    args = parser.parse_args()
    rows = []
    for seed in args.seeds:
        rows.append(score(args.folder, seed))
        print(seed, rows[-1], flush=True)
    for name in rows[0] if rows else ():
        record("files", name, [row[name] for row in rows], unit="share", note=f"seeds {args.seeds}, 372 files each")
    if not args.without_speed:
        paths = draw_many(args.folder / "many")
        used, start = cpu_seconds(), time.perf_counter()
        facts = scan_files(paths, cache=args.folder / f"many-{time.time_ns()}.sqlite", n_workers=2)
        wall, used = time.perf_counter() - start, cpu_seconds() - used
        assert (facts["issue"] == "").all()
        record("files", "2,000 photos of 400 px read, 2 processes", [wall], unit="seconds", note=f"{used:.1f} CPU seconds")
        start = time.perf_counter()
        hashes = np.random.default_rng(0).integers(0, 2**63, 100_000, dtype=np.uint64) * 2
        from snakecls.clean.fingerprints import close_pairs
        close_pairs(hashes)
        record("files", "candidates among 100,000 hashes, 1 process", [time.perf_counter() - start], unit="seconds")


if __name__ == "__main__":
    main()
