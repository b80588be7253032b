"""Time until the macro F1 at which plain fastai's `fine_tune(3)` ends, from a process's start to its score: `snakecls train` without any setting, and a loop
like timm's `train.py`.

fastai runs as its course has it, at 224 px (benchmarks/peers.py). Of the loop, which scores the test photos after every epoch (not counted), the first epoch that
reaches fastai's score counts; where none does, its row says so and its time is that of all its epochs, which is less than it would need. Ours writes its model, its
report and its records within the time, and starts with an empty cache; a run that stays below fastai's score is told, and its ratio is not counted.
Arms are interleaved within a seed, in an order that turns with the seed. `val` of snakes_ph has been looked at before and is no unseen set.

Usage: python benchmarks/time_to_f1.py CACHE_FOLDER [--sets snakes_ph butterflies_noisy drawn] [--seeds 3] [--epochs 6] [--quick]
The photos are in $SNAKECLS_REAL_DATA. `--quick` is a few drawn photos at 96 px, one seed, and writes no rows."""
import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
from common import first_environment, record
from f1_at_budget import HERE, OTHER, read_set

ARMS = ("ours", "fastai", "timm")


def run_ours(table: pd.DataFrame, seed: int, folder: Path, *settings: str) -> list[tuple[float, float]]:  # seconds and macro F1
    "Train as `snakecls train --data` does, in a process of its own."
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        file = Path(temporary) / "photos.csv"
        table.assign(split=table["split"].where(table["split"] == "test", "train")).to_csv(file, index=False)
        command = [sys.executable, "-m", "snakecls", "train", "--data", str(file), "--runs", f"{temporary}/runs", "--logbook", f"{temporary}/logbook.md",
                   "--set", f"seed={seed}", "--json", *(part for setting in settings for part in ("--set", setting))]
        start = time.perf_counter()
        done = subprocess.run(command, capture_output=True, text=True, cwd=temporary, env=os.environ | {"SNAKECLS_CACHE": f"{temporary}/cache"})
        took = time.perf_counter() - start
    if done.returncode:
        raise SystemExit(f"ours ended with {done.returncode}: {done.stderr[-2000:]}")
    return [(took, json.loads(done.stdout)["metrics"]["test"]["f1_macro"])]


def run_peer(peer: str, table: pd.DataFrame, size: int, epochs: int, seed: int, folder: Path) -> list[tuple[float, float]]:
    "Run a peer in a process of its own; a pair for each score that it wrote."
    file = folder / "peer.csv"
    table.to_csv(file, index=False)
    command = [sys.executable, str(HERE / "peers.py"), peer, str(file), "--size", str(size), "--epochs", str(epochs), "--seed", str(seed)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{peer} ended with {done.returncode}: {done.stderr[-2000:]}")
    return [(line["seconds"], line["f1_macro"]) for line in map(json.loads, done.stdout.strip().splitlines())]


def time_until(scores: list[tuple[float, float]], wanted: float) -> tuple[float, float, bool]:  # seconds, macro F1, whether it was reached
    "Find the first score that is as good."
    for seconds, f1 in scores:
        if f1 >= wanted:
            return seconds, f1, True
    return scores[-1][0], max(f1 for _, f1 in scores), False


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cache", type=Path, help="folder for drawn photos and tables")
    parser.add_argument("--sets", nargs="+", choices=list(OTHER), default=list(OTHER))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=6, help="of the loop, at 128 px")
    parser.add_argument("--quick", action="store_true")
    args = parser.parse_args()
    args.cache.mkdir(parents=True, exist_ok=True)
    first_environment()
    names, seeds = (["drawn"], 1) if args.quick else (args.sets, args.seeds)
    size, loop_size, epochs, settings = (96, 96, 2, ("schedule=[{size: 96, epochs: 0, head: probe}]",)) if args.quick else (224, 128, args.epochs, ())
    rows = []
    for name in names:
        table = read_set(name, args.cache, args.quick)
        print(f"{name}: {table['split'].value_counts().to_dict()}, {table['label'].nunique()} classes", flush=True)
        for seed in range(seeds):
            found = {}
            for arm in np.roll(ARMS, seed):
                found[arm] = (run_ours(table, seed, args.cache, *settings) if arm == "ours" else run_peer("fastai", table, size, 3, seed, args.cache)
                              if arm == "fastai" else run_peer("timm", table, loop_size, epochs, seed, args.cache))
            (fastai, wanted), = found["fastai"]
            for arm in ARMS:
                seconds, f1, reached = time_until(found[arm], wanted)
                rows.append({"set": name, "seed": seed, "arm": arm, "seconds": seconds, "f1": f1, "reached": reached, "of fastai": seconds / fastai})
                print(rows[-1], flush=True)
    told = pd.DataFrame(rows)
    for (name, arm), group in told.groupby(["set", "arm"], sort=False):
        note = f"reached in {int(group['reached'].sum())} of {len(group)}; macro F1 {', '.join(f'{f1:.3f}' for f1 in group['f1'])}"
        if not args.quick:
            record("time_to_f1", f"{name}, {arm}", group["seconds"].tolist(), unit="s", note=note)
            record("time_to_f1", f"{name}, {arm} / fastai", group["of fastai"].tolist(), unit="ratio", note=note)
    print(told.pivot_table(index=["set", "seed"], columns="arm", values=["seconds", "f1"]).round(3).to_string())


if __name__ == "__main__":
    main()
