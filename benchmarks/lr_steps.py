"""How many steps the search of a rate needs on a small set: `python benchmarks/lr_steps.py OUTPUT`.

98 drawn photos of 12 species, 6 batches of 16 an epoch, tf_efficientnet_lite0 with blocks 1 to 4 frozen, three seeds, from a probe's head and from a random one; what is compared is the spread of the suggestions, the arms in turn."""
import argparse
from pathlib import Path

import numpy as np
from common import record

from snakecls.data.demo.draw import make_demo
from snakecls.train import lr_finder
from snakecls.experiment.file import make_experiment
from snakecls.experiment.plan import make_plan
from snakecls.train.learner_probe import _probe_head
from snakecls.train.schedules import prepare_stage


def suggestions(photos: Path, folder: Path, head: str, seed: int, steps: list[int]) -> list[float]:
    "Search with each number of steps, from the same weights."
    stage = {"size": 96, "epochs": 2, "freeze": 4, "lr": "auto", "bs": 16, "head": head}
    experiment = make_experiment({"seed": seed, "data": {"source": str(photos / "photos.csv"), "target": "binomial", "test": 0.2}, "train": {"num_workers": 0}, "schedule": [stage]})
    plan = make_plan(experiment).open_photos(folder)
    learn = plan.learn
    if head == "probe":
        with learn.no_logging(), learn.no_bar():
            _probe_head(learn, seed)
    prepare_stage(learn, plan.stages[0])
    return [lr_finder.find_lr(learn, num_it=n) for n in steps]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    args = parser.parse_args()
    lr_finder.search_steps = lambda n_batches, num_it: num_it  # as many as are asked for
    photos, steps = args.folder / "photos", [12, 20, 30, 60]
    if not photos.exists():
        make_demo(photos, n_per_species=14, size_px=128)
    for head in ("probe", "keep"):
        found = np.array([suggestions(photos, args.folder, head, seed, steps) for seed in (1, 2, 3)])
        for n, rates in zip(steps, found.T):
            record("lr_steps", f"{n} steps, head: {head}", np.log10(rates).tolist(), unit="log10 of the suggested rate", note=f"seeds 1 to 3: {', '.join(f'{rate:.1e}' for rate in rates)}")


if __name__ == "__main__":
    main()
