"""Macro F1 on test photos after 1, 3 and 10 minutes: `snakecls train --budget`, plain fastai's `fine_tune`, and a loop like timm's `train.py`.

Each arm is a process of its own, and its time runs from that process's start. The peers (benchmarks/peers.py) get their best settings for the time: for every
budget the size is chosen among a few by macro F1 on held-out training photos of ANOTHER set, with as many epochs as end inside the budget there; on the set
itself they then train as many epochs at that size as end inside. How many that are is found from short runs whose time is not counted against them; a
run that ends more than 5 % too late is repeated with an epoch less. Ours chooses for itself, inside its own time and its own training photos.
Arms are interleaved within a seed, in an order that turns with the seed; ours starts with an empty cache every time, and runs are written nowhere else.

Usage: python benchmarks/f1_at_budget.py CACHE_FOLDER [--sets snakes_ph butterflies_noisy drawn] [--minutes 1 3 10] [--seeds 3] [--quick]
The photos are in $SNAKECLS_REAL_DATA. `--quick` is one minute on a few drawn photos at 96 px, one seed, and writes no rows."""
import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
from cleaning import clean_copies, groups_of
from common import first_environment, record

from snakecls.clean.scan import scan_files
from snakecls.data.demo.draw import make_demo
from snakecls.data.readable import keep_readable
from snakecls.data.splits import split_table
from snakecls.data.tables import load_table

HERE = Path(__file__).parent
PHOTOS = Path(os.environ.get("SNAKECLS_REAL_DATA", HERE.parent.parent / "shared" / "data"))
OTHER = {"snakes_ph": "butterflies_noisy", "butterflies_noisy": "snakes_ph", "drawn": "snakes_ph"}  # where a peer's settings are chosen
SIZES, LATE, FEW = (64, 96, 128, 160, 224), 1.05, 96
ARMS = ("ours", "fastai", "timm")


def read_set(name: str, folder: Path, quick: bool) -> pd.DataFrame:  # path, label, split: train or test
    "Give a set's readable photos; `val` of snakes_ph is its test, of the others three tenths are. butterflies_noisy is without copies."
    if name == "drawn":
        table = load_table(make_demo(folder / ("few" if quick else "drawn"), seed=100, n_per_species=15 if quick else 340) / "photos.csv", target="binomial")
    else:
        table = load_table(PHOTOS / name)
    table = keep_readable(table)[0]
    if name == "butterflies_noisy":
        table = table.iloc[clean_copies(table, groups_of(table, scan_files(table)))].reset_index(drop=True)
    if name == "snakes_ph":
        return table.replace({"split": {"valid": "test"}})[["path", "label", "split"]]
    return split_table(table[["path", "label"]], valid=0.3, seed=42).replace({"split": {"valid": "test"}})[["path", "label", "split"]]


def hold_out(table: pd.DataFrame, seed: int) -> pd.DataFrame:
    "Divide the training photos of a set, without a look at its test."
    train = table.loc[table["split"] == "train", ["path", "label"]]
    return split_table(train, valid=0.25, seed=seed).replace({"split": {"valid": "test"}})[["path", "label", "split"]]


def run_ours(table: pd.DataFrame, seconds: float, seed: int, folder: Path) -> dict:
    "Train within a budget in a process of its own, and give what it wrote."
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        file = Path(temporary) / "photos.csv"
        table.assign(split=table["split"].where(table["split"] == "test", "train")).to_csv(file, index=False)
        command = [sys.executable, "-m", "snakecls", "train", "--data", str(file), "--budget", f"{seconds:g}s", "--runs", f"{temporary}/runs", "--logbook",
                   f"{temporary}/logbook.md", "--set", f"seed={seed}", "--json"]
        start = time.perf_counter()
        done = subprocess.run(command, capture_output=True, text=True, cwd=temporary, env=os.environ | {"SNAKECLS_CACHE": f"{temporary}/cache"})
        took = time.perf_counter() - start
    if "less than the smallest plan" in done.stderr:
        return {"f1": 0.0, "seconds": took, "how": "not the smallest plan ends inside"}
    if done.returncode:
        raise SystemExit(f"ours ended with {done.returncode}: {done.stderr[-2000:]}")
    metrics = json.loads(done.stdout)["metrics"]
    plan = [row["adds"] for row in metrics["budget"]["candidates"] if row["taken"]][-1]
    return {"f1": metrics["test"]["f1_macro"], "seconds": took, "how": plan}


def run_peer(peer: str, table: pd.DataFrame, size: int, epochs: int, seed: int, folder: Path) -> dict:
    "Run a peer in a process of its own, and give its last line."
    file = folder / "peer.csv"
    table.to_csv(file, index=False)
    command = [sys.executable, str(HERE / "peers.py"), peer, str(file), "--size", str(size), "--epochs", str(epochs), "--seed", str(seed)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{peer} ended with {done.returncode}: {done.stderr[-2000:]}")
    last = json.loads(done.stdout.strip().splitlines()[-1])
    return {"f1": last["f1_macro"], "seconds": last["seconds"], "how": f"{epochs} epochs at {size} px"}


class Peers:
    "The peers' settings, found once."

    def __init__(self, folder: Path, sizes: tuple[int, ...], tables: dict[str, pd.DataFrame]):
        self.folder, self.sizes, self.tables = folder, sizes, tables
        self.pace = cache(self._pace)
        self.best_size = cache(self._best_size)

    def _pace(self, peer: str, name: str, size: int) -> tuple[float, float]:  # seconds without an epoch, and of an epoch for a training photo
        "Time one and three epochs on a few photos."
        table = self.tables[name]
        train = table[table["split"] == "train"].groupby("label").head(max(2, FEW // table["label"].nunique()))
        few = pd.concat([train, table[table["split"] == "test"]])
        one, three = (run_peer(peer, few, size, epochs, 0, self.folder)["seconds"] for epochs in (1, 3))
        epoch = max((three - one) / 2, 1e-3)
        return max(0.0, one - epoch * (2 if peer == "fastai" else 1)), epoch / len(train)

    def fit(self, peer: str, name: str, table: pd.DataFrame, size: int, seconds: float, seed: int) -> dict | None:  # None: not one epoch ends inside
        "Train as many epochs as end inside the time: a first count from short runs, then up or down by what the run itself took."
        start, photo = self.pace(peer, name, size)
        frozen = 1 if peer == "fastai" else 0  # its first epoch, of the head alone
        n = max(1, int((seconds - start) / (photo * (table["split"] == "train").sum())) - frozen)
        found: dict[int, dict] = {}
        while n >= 1 and n not in found:
            found[n] = run_peer(peer, table, size, n, seed, self.folder)
            epoch, left = max(0.5, (found[n]["seconds"] - start) / (n + frozen)), LATE * seconds - found[n]["seconds"]
            n += int(left / epoch) if left >= 0 else -max(1, round(-left / epoch))
        inside = [epochs for epochs, run in found.items() if run["seconds"] <= LATE * seconds]
        return found[max(inside)] if inside else self._fit_fewer(peer, table, size, min(found), seconds, seed)

    def _fit_fewer(self, peer: str, table: pd.DataFrame, size: int, late: int, seconds: float, seed: int) -> dict | None:
        "Go down from a count of epochs that ended late."
        for n in range(late - 1, 0, -1):
            found = run_peer(peer, table, size, n, seed, self.folder)
            if found["seconds"] <= LATE * seconds:
                return found
        return None

    def _best_size(self, peer: str, name: str, seconds: float) -> int:
        "Choose the size on held-out training photos of another set."
        if len(self.sizes) == 1:
            return self.sizes[0]
        other = OTHER[name] if OTHER[name] in self.tables else name
        held = hold_out(self.tables[other], seed=7)
        found = {size: self.fit(peer, other, held, size, seconds, 0) for size in self.sizes}
        print(f"{peer}, {seconds:.0f} s, chosen on {other}: " + ", ".join(f"{size} px {row['f1']:.3f}" for size, row in found.items() if row), flush=True)
        return max(self.sizes, key=lambda size: found[size]["f1"] if found[size] else -1.0)

    def run(self, peer: str, name: str, seconds: float, seed: int) -> dict:
        found = self.fit(peer, name, self.tables[name], self.best_size(peer, name, seconds), seconds, seed)
        found = found or self.fit(peer, name, self.tables[name], min(self.sizes), seconds, seed)
        return found or {"f1": 0.0, "seconds": seconds, "how": "not one epoch ends inside"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cache", type=Path, help="folder for drawn photos and tables")
    parser.add_argument("--sets", nargs="+", choices=list(OTHER), default=list(OTHER))
    parser.add_argument("--minutes", nargs="+", type=float, default=[1, 3, 10])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--sizes", nargs="+", type=int, default=list(SIZES), help="that the peers choose among")
    parser.add_argument("--quick", action="store_true")
    args = parser.parse_args()
    args.cache.mkdir(parents=True, exist_ok=True)
    first_environment()
    names, minutes, seeds = (["drawn"], [1.0], 1) if args.quick else (args.sets, args.minutes, args.seeds)
    needed = dict.fromkeys(names if args.quick else [*names, *(OTHER[name] for name in names)])
    tables = {name: read_set(name, args.cache, args.quick) for name in needed}
    for name, table in tables.items():
        print(f"{name}: {table['split'].value_counts().to_dict()}, {table['label'].nunique()} classes", flush=True)
    peers, rows = Peers(args.cache, (96,) if args.quick else tuple(args.sizes), tables), []
    for name in names:
        for budget in minutes:
            for seed in range(seeds):
                for arm in np.roll(ARMS, seed):
                    found = run_ours(tables[name], 60 * budget, seed, args.cache) if arm == "ours" else peers.run(str(arm), name, 60 * budget, seed)
                    rows.append({"set": name, "minutes": budget, "seed": seed, "arm": str(arm)} | found)
                    print(rows[-1], flush=True)
    told = pd.DataFrame(rows)
    for (name, budget, arm), group in told.groupby(["set", "minutes", "arm"], sort=False):
        if not args.quick:
            note = f"{len(tables[name])} photos; {'; '.join(dict.fromkeys(group['how']))}"
            record("f1_at_budget", f"{name}, {budget:g} min, {arm}", group["f1"].tolist(), unit="test macro F1", note=note)
            record("f1_at_budget", f"{name}, {budget:g} min, {arm}", group["seconds"].tolist(), unit="s", note=note)
    print(told.pivot_table(index=["set", "minutes"], columns="arm", values="f1").round(3).to_string())
    late = told[told["seconds"] > LATE * 60 * told["minutes"]]
    print(f"{len(late)} of {len(told)} runs ended more than 5 % after their time.")
    shutil.rmtree(args.cache / "few", ignore_errors=True)


if __name__ == "__main__":
    main()
