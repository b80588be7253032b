"""What the next idea on the same photos costs: another C, threshold, mirror image, fold, class weight, or the same again, beside the first run.

The first run starts with an empty cache. Twice: each idea as a command, a process of its own from its start to its report; and as in a notebook, where one process
runs all of them and has loaded its libraries before the first. The order of the ideas turns with the seed.

Usage: python benchmarks/second_idea.py CACHE_FOLDER [--set snakes_ph] [--seeds 3] [--quick]
The photos are in $SNAKECLS_REAL_DATA. `--quick` is a few drawn photos, one seed, and writes no rows."""
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
from f1_at_budget import OTHER, read_set

IDEAS = {
    "the same again": (),
    "another seed of the probe": ("seed=8", "data.seed=7"),
    "another monitor": ("monitor=accuracy",),
    "answers averaged with the mirror image": ("predict.flip=true",),
    "fitted on validation photos, too": ("train.refit=true",),
    "another fold": ("data.folds=5", "data.fold=1"),
    "half of the classes": ("data.top_classes=7",),
    "another depth": ("model.depths=[5, 6, 7]",),
}


def train(table: Path, folder: Path, settings: tuple[str, ...]) -> tuple[float, float]:  # seconds, validation macro F1
    "Run the command in a process of its own."
    command = [sys.executable, "-m", "snakecls", "train", "--data", str(table), "--runs", str(folder / "runs"), "--logbook", str(folder / "logbook.md"), "--json",
               *(part for setting in ("seed=7", *settings) for part in ("--set", setting))]
    start = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, env=os.environ | {"SNAKECLS_CACHE": str(folder / "cache")})
    took = time.perf_counter() - start
    if done.returncode:
        raise SystemExit(f"{settings} ended with {done.returncode}: {done.stderr[-2000:]}")
    return took, json.loads(done.stdout)["metrics"]["valid"]["f1_macro"]


def in_one_process(table: Path, folder: Path, seed: int) -> list[tuple[str, float, float]]:  # idea, seconds, validation macro F1; the first run is ""
    "Run the first one and the ideas as a notebook would, in one process with a cache of its own."
    command = [sys.executable, __file__, str(folder), "--notebook", str(table), "--seeds", str(seed)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, env=os.environ | {"SNAKECLS_CACHE": str(folder / "notebook cache")})
    if done.returncode:
        raise SystemExit(f"the notebook ended with {done.returncode}: {done.stderr[-2000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def be_notebook(table: Path, folder: Path, seed: int) -> None:
    "Run all of them here, and write what each took."
    from snakecls.experiment.file import make_experiment
    from snakecls.workflow.run import run_experiment

    import snakecls.train.learner  # noqa: F401  # as a first cell loads it

    found = []
    for idea in ["", *np.roll(list(IDEAS), seed).tolist()]:
        start = time.perf_counter()
        experiment = make_experiment({"name": "idea", "data": {"source": str(table)}}, overrides=["seed=7", *IDEAS.get(idea, ())])
        result = run_experiment(experiment, root=folder / "notebook runs", logbook=None, say=lambda text: None)
        found.append((idea, time.perf_counter() - start, result.metrics["valid"]["f1_macro"]))
    print(json.dumps(found))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cache", type=Path, help="folder for drawn photos")
    parser.add_argument("--set", dest="name", choices=list(OTHER), default="snakes_ph")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--notebook", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--quick", action="store_true")
    args = parser.parse_args()
    if args.notebook:
        be_notebook(args.notebook, args.cache, args.seeds)
        return
    args.cache.mkdir(parents=True, exist_ok=True)
    first_environment()
    table, rows = read_set("drawn" if args.quick else args.name, args.cache, args.quick), []
    table = table[table["split"] == "train"][["path", "label"]]
    for seed in range(1 if args.quick else args.seeds):
        with tempfile.TemporaryDirectory(dir=args.cache) as temporary:
            folder = Path(temporary)
            table.to_csv(folder / "photos.csv", index=False)
            first, f1 = train(folder / "photos.csv", folder, ())
            rows.append({"idea": "the first run", "seconds": first, "of the first": 1.0, "f1": f1})
            print(rows[-1], flush=True)
            for idea in np.roll(list(IDEAS), seed).tolist():
                seconds, f1 = train(folder / "photos.csv", folder, IDEAS[idea])
                rows.append({"idea": idea, "seconds": seconds, "of the first": seconds / first, "f1": f1})
                print(rows[-1], flush=True)
            (_, first, f1), *ideas = in_one_process(folder / "photos.csv", folder, seed)
            rows.append({"idea": "in a notebook: the first run", "seconds": first, "of the first": 1.0, "f1": f1})
            rows += [{"idea": f"in a notebook: {idea}", "seconds": seconds, "of the first": seconds / first, "f1": f1} for idea, seconds, f1 in ideas]
    told = pd.DataFrame(rows)
    for idea, group in told.groupby("idea", sort=False):
        if not args.quick:
            note = f"{args.name}, {len(table)} photos; ratio to the first run {group['of the first'].mean():.3f}"
            record("second_idea", str(idea), group["seconds"].tolist(), unit="s", note=note)
    print(told.groupby("idea", sort=False).mean().round(3).to_string())


if __name__ == "__main__":
    main()
