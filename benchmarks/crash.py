"""Runs that are killed at random moments with `kill -9` and then resumed, compared with the run that nothing had stopped: how many end with the same bits.

A run is a probe, two augmented and mixed epochs with a moving average, and three epochs of the head on kept activations, of a few drawn photos. Each is
killed once at a moment drawn from the time that the whole run took, and one in three is killed a second time while it goes on. Compared are the weights, the
history and the metrics without times, and the predictions, all exactly. States within an epoch are kept every half second. The processes are forked from one that has loaded the library.

Usage: python benchmarks/crash.py FOLDER [--kills 50] [--workers 0] [--seed 0]"""
import argparse
import json
import multiprocessing
import os
import shutil
import signal
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from common import first_environment, record

TIMES = ("seconds", "budget", "created", "run", "run_id")


def train(values: dict, folder: Path) -> None:
    "Train, or go on where there is a run, in a process of its own."
    os.environ["SNAKECLS_CACHE"] = str(folder / "cache")
    sys.stdout = sys.stderr = (folder / "out.txt").open("a")
    from snakecls.experiment.file import make_experiment
    from snakecls.workflow.ended import PHOTOS
    from snakecls.workflow import run as module
    from snakecls.workflow.run import resume_run, run_experiment
    from snakecls.workflow.run_folder import list_statuses

    module.progressive_fit = partial(module.progressive_fit, keep_every=0.5)  # a run keeps a state every 5 minutes within an epoch, and this one takes seconds

    path, status = next(iter(list_statuses(folder / "runs")), (None, {}))
    if path is None or (status["status"] != "finished" and not (path / PHOTOS).exists()):  # killed before there was anything to go on with
        run_experiment(make_experiment(values), root=folder / "runs", logbook=None)
    elif status["status"] != "finished":
        resume_run(path)


def start(context, values: dict, folder: Path, kill_after: float | None = None) -> tuple[int, float]:  # exit code; seconds
    "Run such a process, and perhaps kill it."
    folder.mkdir(parents=True, exist_ok=True)
    process, began = context.Process(target=train, args=(values, folder)), time.perf_counter()
    process.start()
    process.join(kill_after or 600)
    if process.is_alive():
        os.kill(process.pid, signal.SIGKILL)
        process.join()
    return process.exitcode, time.perf_counter() - began


def without_time(value):
    if isinstance(value, dict):
        return {key: without_time(part) for key, part in value.items() if key not in TIMES}
    return [without_time(part) for part in value] if isinstance(value, list) else value


def said_by(folder: Path) -> dict:
    "All that the newest run says, as bytes and text."
    run = sorted((folder / "runs").glob("2*"))[-1]
    values = {"metrics": json.dumps(without_time(json.loads((run / "metrics.json").read_text())), sort_keys=True)}
    values |= {"history": pd.read_csv(run / "history.csv").drop(columns="seconds").to_csv(), "weights": (run / "best" / "weights.safetensors").read_bytes()}
    return values | {file.name: pd.read_parquet(file).to_json(double_precision=15) for file in run.glob("predictions*.parquet")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--workers", type=int, default=0, help="processes that read photos")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    first_environment()
    from snakecls.data.demo.draw import make_demo

    shutil.rmtree(args.folder, ignore_errors=True)
    photos = make_demo(args.folder / "photos", n_per_species=11, size_px=64, species=["Bungarus fasciatus", "Vipera berus", "Natrix natrix"], seed=2)
    values = {
        "name": "killed", "data": {"source": str((photos / "photos.csv").absolute()), "target": "binomial", "valid": 0.3},
        "model": {"arch": "tf_efficientnet_lite0", "weights": "none"}, "augment": {"backend": "fastai"},
        "train": {"bs": 4, "num_workers": args.workers, "precision": "fp32", "batch_norm": "all", "ema": 0.9, "image_cache": 0.1},
        "schedule": [{"size": 48, "epochs": 2, "head": "probe", "lr": 1e-3, "mixup": 0.3},
                     {"size": 64, "epochs": 3, "bs": 6, "freeze": "body", "lr": 1e-3, "cached_views": 1}],
    }
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["snakecls.workflow.run", "snakecls.train.learner"])
    start(context, values, args.folder / "warm up")
    code, whole_s = start(context, values, args.folder / "whole")
    whole, rng, same, kills = said_by(args.folder / "whole"), np.random.default_rng(args.seed), [], 0
    print(f"The whole run took {whole_s:.1f} s and ended with {code}.", flush=True)
    for number in range(args.kills):
        folder = args.folder / str(number)
        for after in rng.uniform(0, whole_s, 1 + int(rng.uniform() < 1 / 3)):
            kills += start(context, values, folder, after)[0] == -signal.SIGKILL
        code, _ = start(context, values, folder)
        different = [name for name, said in whole.items() if code == 0 and said_by(folder).get(name) != said]
        same.append(float(code == 0 and not different))
        what = "the same bits" if same[-1] else f"it ended with {code}" if code else f"other {', '.join(different)}"
        print(f"{number}: killed at {after:.1f} s; {what}", flush=True)
        if same[-1]:
            shutil.rmtree(folder)
    print(f"{sum(same):.0f} of {len(same)} ended with the same bits, after {kills} kills.")
    record("crash", f"resumed after kill -9, {args.workers} workers", same, unit="same bits", note=f"{kills} kills in a run of {whole_s:.0f} s, seed {args.seed}")


if __name__ == "__main__":
    main()
