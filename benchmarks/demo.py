"""The demonstration: how hard it is, how well the loop solves it, and what it costs. Usage: python benchmarks/demo.py OUTPUT_FOLDER [SEEDS]

The mimic pair has 30 test photos in a demonstration, so it is also scored on 300 that are drawn for this benchmark alone."""
import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
from common import record

PAIR = ("Micrurus fulvius", "Lampropeltis elapsoides")
PROBE_128 = """
name: probe-128
data: {source: photos.csv, target: binomial, group: observation_id}
schedule: [{size: 128, epochs: 0, head: probe}]
"""


def pair_accuracy(photos: list[Path], labels: list[str], bundle: Path) -> float:
    "Balanced accuracy between the two mimics, whatever else the model gives."
    from snakecls.deploy.predict import Predictor

    predictor = Predictor(bundle)
    first, second = (predictor.probs(photos)[:, predictor.labels.index(name)] for name in PAIR)
    is_first = np.array(labels) == PAIR[0]
    return float(((first > second)[is_first].mean() + (second > first)[~is_first].mean()) / 2)


def pair_photos(folder: Path, split: str | None = None) -> tuple[list[Path], list[str]]:
    table = pd.read_csv(folder / "photos.csv")
    table = table[table["binomial"].isin(PAIR) & (table["split"].eq(split) if split else True)]
    return [folder / path for path in table["path"]], list(table["binomial"])


def run_watched(command: list) -> tuple[float, float, str]:  # seconds, GiB, standard error
    "Run a command; its memory is the sum of proportional set sizes (shared pages count once) of it and its children, five times a second."
    start, largest = time.perf_counter(), 0
    with tempfile.TemporaryFile("w+") as errors:
        process = psutil.Popen(list(map(str, command)), stdout=subprocess.DEVNULL, stderr=errors)
        while process.poll() is None:
            largest = max(largest, sum(proportional_size(p) for p in [process, *children_of(process)]))
            time.sleep(0.2)
        errors.seek(0)
        told = errors.read()
    assert process.returncode == 0, told
    return time.perf_counter() - start, largest / 2**30, told


def proportional_size(process: psutil.Process) -> int:
    try:
        return process.memory_full_info().pss
    except psutil.Error:  # it has ended
        return 0


def children_of(process: psutil.Process) -> list[psutil.Process]:
    try:
        return process.children(recursive=True)
    except psutil.Error:
        return []


def run(folder: Path, seed: int) -> dict[str, float]:
    "Draw and train in a process of its own, as a user does; then score."
    from snakecls.data.demo.draw import make_demo
    from snakecls.experiment.file import load_experiment
    from snakecls.workflow.run import run_experiment

    seconds, gigabytes, told = run_watched([Path(sys.executable).parent / "snakecls", "demo", folder, "--seed", str(seed)])
    drawing = float(re.search(r"\((\d+) s\)", told)[1])
    metrics = json.loads(next((folder / "runs").glob("*/metrics.json")).read_text())
    bundle = next((folder / "runs").glob("*/best"))
    fresh = make_demo(folder.parent / "pair", seed=1000, species=PAIR, n_per_species=150)
    (folder / "data" / "probe.yaml").write_text(PROBE_128 + f"seed: {seed}\n")
    probe = run_experiment(load_experiment(folder / "data" / "probe.yaml"), root=folder / "probe", logbook=None, say=lambda text: None)
    return {
        "seconds": seconds, "largest memory of all processes together in GiB": gigabytes, "seconds of drawing": drawing,
        "test macro F1": metrics["test"]["f1_macro"], "test top-3": metrics["test"]["top3_accuracy"],
        "mimic pair, balanced accuracy, 30 test photos": pair_accuracy(*pair_photos(folder / "data", "test"), bundle),
        "mimic pair, balanced accuracy, 300 fresh photos": pair_accuracy(*pair_photos(fresh), bundle),
        "probe at 128 px: test macro F1": probe.metrics["test"]["f1_macro"],
        "probe at 128 px: mimic pair, 30 test photos": pair_accuracy(*pair_photos(folder / "data", "test"), probe.run / "best"),
        "probe at 128 px: mimic pair, 300 fresh photos": pair_accuracy(*pair_photos(fresh), probe.run / "best"),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, nargs="?", default=Path(tempfile.mkdtemp()))
    parser.add_argument("seeds", type=int, nargs="*", default=[0, 1, 2])
    args = parser.parse_args()
    rows = [run(args.folder / f"seed-{seed}", seed) for seed in args.seeds]
    for name in rows[0]:
        record("demo", "snakecls demo", [row[name] for row in rows], unit=name, note=f"seeds {args.seeds}")


if __name__ == "__main__":
    main()
