"""What each single strategy adds to one small recipe, arm against base on the same photos: `python benchmarks/ablation.py OUTPUT DATA [SEEDS…] [--arms A B …] [--report-only]`.

DATA is snakes_ph (val is the test) or butterflies_noisy (copies left out, a quarter is the test). Seeds give split and training. Runs that are there already are not run again, so it can be interrupted.
Every run is scored twice: "kept" is the model that the run would serve (the best of the probe and all epochs on the validation photos), "last" the weights after the last epoch, which shows what training did where the probe is kept.
The comparison is a paired bootstrap over photos: a photo is drawn with its predictions of all seeds (they are not independent)."""
import argparse
import hashlib
import os
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from common import record
from fastai.callback.core import Callback
from PIL import Image
from sklearn.metrics import f1_score

from snakecls.workers import keep_freed_memory
from snakecls.data.photos import open_photo
from snakecls.evaluate.predictions import predict_table
from snakecls.experiment.file import make_experiment
from snakecls.experiment.plan import make_plan
from snakecls.experiment.table import build_table
from snakecls.train.schedules import progressive_fit

REAL = Path(os.environ.get("SNAKECLS_REAL_DATA", "../shared/data")).resolve()
DATA = {
    "snakes_ph": {"source": str(REAL / "snakes_ph"), "splits": {"val": "test"}, "valid": 0.15},
    "butterflies_noisy": {"source": str(REAL / "butterflies_noisy"), "valid": 0.15, "test": 0.25},
}
BASE = {"predict": {"flip": True}, "train": {"bs": 32}, "schedule": [{"size": 128, "bs": 32, "epochs": 3, "freeze": 4, "lr": [3e-5, 3e-4], "head": "probe"}]}
ARMS: dict[str, list[str]] = {
    "base": [],
    "probe alone": ["schedule=[{size: 128, bs: 32, epochs: 0, head: probe}]"],
    "no probe head": ["schedule.0.head=keep"],
    "progressive 96 to 128": ["schedule=[{size: 96, bs: 32, epochs: 2, freeze: 4, lr: [3.0e-5, 3.0e-4], head: probe}, {size: 128, bs: 32, epochs: 2, freeze: 4, lr: [3.0e-5, 3.0e-4]}]"],
    "mixup 0.2": ["augment.mixup=0.2"],
    "cutmix 1.0, half of the batches": ["augment.cutmix=1.0", "augment.mix_p=0.5"],
    "ema 0.99": ["train.ema=0.99"],
    "label smoothing 0.1": ["train.label_smoothing=0.1"],
    "albumentations": ["augment.backend=albumentations"],
    "no augmentation": ["augment.backend=none"],
    "nothing frozen": ["schedule.0.freeze=none"],
    "best epoch by validation loss": ["monitor=valid_loss"],
    "head only": ["schedule.0.freeze=body", "schedule.0.lr=1.0e-3"],
}
RECIPES: dict[str, list[str]] = {  # whole schedules, compared with one another and not with base: --against "growing sizes" --arms "one size"
    "growing sizes": ["schedule=[{size: 352, epochs: 0, head: probe}, {size: 224, valid_size: 288, epochs: 2, freeze: 2, lr: [1.0e-5, 5.0e-5]}, {size: 288, valid_size: 352, epochs: 2, freeze: 2, lr: [5.0e-6, 2.5e-5]}]"],
    "one size": ["schedule=[{size: 352, epochs: 0, head: probe}, {size: 288, valid_size: 352, epochs: 3, freeze: 2, lr: [1.0e-5, 5.0e-5]}]"],
    "one size, MixUp 0.2 and 8 epochs": ["schedule=[{size: 352, epochs: 0, head: probe}, {size: 288, valid_size: 352, epochs: 8, freeze: 2, lr: [1.0e-5, 5.0e-5], mixup: 0.2}]"],
}
SCORED = {"kept": "best on validation", "last": "after the last epoch"}


def shrink(table: pd.DataFrame, folder: Path, side: int = 320) -> pd.DataFrame:
    "Keep large photos smaller, once, so that decoding them does not take most of the time; shorter side in px, twice what training sees."
    folder.mkdir(parents=True, exist_ok=True)

    def small(path: str) -> str:
        kept = folder / f"{hashlib.sha256(path.encode()).hexdigest()[:16]}.jpg"
        if not kept.exists():
            photo = open_photo(path)
            photo.thumbnail((side * max(1.0, photo.width / photo.height), side * max(1.0, photo.height / photo.width)), Image.Resampling.LANCZOS)
            photo.save(kept, quality=95)
        return str(kept)

    return table.assign(path=table["path"].map(small))


def clean(table: pd.DataFrame) -> pd.DataFrame:
    "Leave out copies, and all photos whose copies have different labels."
    from snakecls.clean.duplicates import find_duplicates
    issues = find_duplicates(table)
    drop = set(issues.loc[(issues["verdict"] == "drop") | (issues["issue"] == "conflicting labels"), "path"])
    return table[~table["path"].isin(drop)].reset_index(drop=True)


class LastEpoch(Callback):
    "Predict photos with the weights of the last epoch (the average, where there is one), before the best ones are loaded."
    order = 62  # after the average and SaveBestF1

    def __init__(self, photos: pd.DataFrame, labels: list[str]):
        self.photos, self.labels, self.table = photos, labels, None

    def after_epoch(self):
        if self.epoch + 1 == self.n_epoch:
            self.table = predict_table(self.learn.model, self.photos, self.dls.spec, self.labels, flip=True)


def predictions(folder: Path, data: str, arm: str, seed: int) -> pd.DataFrame:  # of the test photos: path, label, kept, last, seconds, best, seed
    "Run an arm, or read what it said before."
    there = folder / f"{data}-{arm.replace(' ', '_')}-{seed}.parquet"
    if not there.exists():
        experiment = make_experiment({**BASE, "name": f"{data}-{arm}-{seed}"[:70], "seed": seed, "data": DATA[data], "track": []}, overrides=(ARMS | RECIPES)[arm])
        table = build_table(experiment)
        if data == "butterflies_noisy":
            table = shrink(clean(table), folder / "small")
        start = time.perf_counter()
        plan = make_plan(experiment, table=table).open_photos(folder / "work" / there.stem).choose_precision()
        learn, photos = plan.learn, table[table["split"] == "test"]
        last = LastEpoch(photos, learn.dls.labels)
        with learn.no_logging(), learn.no_bar():
            result = progressive_fit(
                learn, plan.stages, saver=plan.saver, seed=seed, batch_norm=plan.experiment.train.batch_norm, cbs=[*plan.cbs, last])
        seconds = time.perf_counter() - start
        said = predict_table(learn.model, photos, learn.dls.spec, learn.dls.labels, flip=True)[["path", "label", "predicted"]].rename(columns={"predicted": "kept"})
        said = said.assign(last=said["kept"] if last.table is None else last.table["predicted"], seconds=seconds, best=result.message)
        said.to_parquet(there)
        f1 = {name: round(f1_score(said["label"], said[name], average="macro"), 3) for name in SCORED}
        print(f"{data} seed {seed} {arm}: macro F1 {f1}, {seconds:.0f} s. {result.message}", flush=True)
    return pd.read_parquet(there).assign(seed=seed)


def macro_f1(true: np.ndarray, predicted: np.ndarray, n_classes: int) -> float:  # of class numbers; a class without photos and answers counts as 0, for both arms alike
    "Compute macro F1 a hundred times faster than scikit-learn, for the bootstrap."
    hits, sizes = np.bincount(true[true == predicted], minlength=n_classes), np.bincount(true, minlength=n_classes) + np.bincount(predicted, minlength=n_classes)
    return float((2 * hits / np.maximum(sizes, 1)).mean())


def compare(base: pd.DataFrame, arm: pd.DataFrame, scored: str, n: int = 2000) -> tuple[float, float, float]:  # difference of macro F1 averaged over seeds; 95 % interval
    "Bootstrap over photos, each with its predictions of all seeds."
    both = base.merge(arm, on=["seed", "path", "label"], suffixes=("", "_arm"), validate="1:1")
    names = sorted(both["label"].unique())
    true, of_base, of_arm = (both[column].map({name: i for i, name in enumerate(names)}).to_numpy(int) for column in ("label", scored, f"{scored}_arm"))
    seeds, rows = both["seed"].to_numpy(), list(both.groupby("path").indices.values())
    rng = np.random.default_rng(0)

    def gain(index: np.ndarray) -> float:
        parts = [index[seeds[index] == seed] for seed in np.unique(seeds)]
        return float(np.mean([macro_f1(true[part], of_arm[part], len(names)) - macro_f1(true[part], of_base[part], len(names)) for part in parts if len(part)]))

    drawn = [gain(np.concatenate([rows[i] for i in rng.integers(0, len(rows), len(rows))])) for _ in range(n)]
    return gain(np.arange(len(both))), *np.quantile(drawn, [0.025, 0.975])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("data", choices=DATA)
    parser.add_argument("seeds", type=int, nargs="*", default=[0, 1, 2, 3, 4])
    parser.add_argument("--arms", nargs="*", default=list(ARMS), choices=list(ARMS | RECIPES))
    parser.add_argument("--against", default="base", choices=list(ARMS | RECIPES), help="the arm that the others are compared with")
    parser.add_argument("--report-only", action="store_true", help="Compare the runs that are there, record nothing.")
    parser.add_argument("--there", action="store_true", help="Compare and record the runs that are there, run nothing.")
    parser.add_argument("--run-only", action="store_true", help="Run what is missing, compare later (several processes can share the seeds).")
    parser.add_argument("--threads", type=int, help="of torch; 1 for two processes side by side on two processors")
    args = parser.parse_args()
    keep_freed_memory()
    if args.threads:
        torch.set_num_threads(args.threads)
    args.folder.mkdir(parents=True, exist_ok=True)
    arms = [args.against, *(arm for arm in args.arms if arm != args.against)]
    tables = {arm: [] for arm in arms}
    for seed in args.seeds:  # arms in turn within a seed
        for arm in arms:
            there = (args.folder / f"{args.data}-{arm.replace(' ', '_')}-{seed}.parquet").exists()
            if there or not (args.report_only or args.there):
                tables[arm].append(predictions(args.folder, args.data, arm, seed))
    if args.run_only:
        return
    for arm, scored in ((arm, scored) for scored in SCORED for arm in arms if tables[arm]):
        scores = [f1_score(one["label"], one[scored], average="macro") for one in tables[arm]]
        seconds = [one["seconds"].iloc[0] for one in tables[arm]]
        note = f"seeds {[int(one['seed'].iloc[0]) for one in tables[arm]]}, {np.mean(seconds):.0f} s a run beside another"
        if args.against == "base":
            note += "; base: lite0, probe head, 128 px, 3 epochs, blocks 1 to 4 frozen"
        if arm != args.against:
            seen = {int(one["seed"].iloc[0]) for one in tables[arm]}
            base = pd.concat([one for one in tables[args.against] if int(one["seed"].iloc[0]) in seen])
            gain, low, high = compare(base, pd.concat(tables[arm]), scored)
            note = f"against {args.against} {gain:+.4f} ({low:+.4f} to {high:+.4f}, bootstrap over photos); " + note
        print(f"{scored}, {arm}: {np.mean(scores):.4f} ± {np.std(scores, ddof=1) if len(scores) > 1 else float('nan'):.4f}; {note}", flush=True)
        if not args.report_only:
            record(f"ablation {args.data}, {SCORED[scored]}", arm, scores, unit="test macro F1", note=note)


if __name__ == "__main__":
    main()
