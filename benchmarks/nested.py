"""What the snake recipe gives on photos that its fit and its choices of size and C did not see: nested cross-validation inside `train`.

Beside it stands the figure that choosing on the reported photos gives. Network, views and the candidate sizes were settled before, with these photos in sight.

The recipe keeps its linear probe (benchmark `snakes_ph`), so it is the probe that is validated here: in every outer fold the size of the photos and
the regularisation are chosen by cross-validation among the other photos alone, the probe is fitted on them, and the fold's photos are scored once.
Copies of a photo stand in one fold. `val` is not read.

`--whole-recipe` runs experiments/snakes_ph.yaml itself in each outer fold of one division: its probe, its epochs, its choice among them and its refit see
the other folds alone. Its size of 352 px was chosen earlier, with these photos among others; the nested arm says what that is worth.

Usage: python benchmarks/nested.py CACHE_FOLDER [--repeats N] [--whole-recipe]; the photos are in $SNAKECLS_REAL_DATA/snakes_ph."""
import argparse
import os
from pathlib import Path

import numpy as np
import pandas as pd
from common import record
from sklearn.metrics import f1_score
from sklearn.model_selection import StratifiedGroupKFold

ROOT = Path(__file__).parent.parent
PHOTOS = Path(os.environ.get("SNAKECLS_REAL_DATA", ROOT.parent / "shared" / "data")) / "snakes_ph"
SIZES = (224, 288, 352, 416)  # what the recipe's size was chosen from


def read_train() -> tuple[pd.DataFrame, np.ndarray, np.ndarray]:  # the table of `train`, class numbers, groups of copies
    "Read the photos of `train`, and which of them show the same picture."
    from snakecls.data.tables import load_table

    table = load_table(PHOTOS)
    table = table[table["split"] == "train"].sort_values("path", ignore_index=True)
    return table, table["label"].astype("category").cat.codes.to_numpy(np.int64), group_copies(table)


def group_copies(table: pd.DataFrame) -> np.ndarray:  # (n,) the same number for photos that show the same picture
    "Find copies, by their bytes and by what they show."
    from snakecls.clean.duplicates import near_pairs
    from snakecls.clean.scan import scan_files

    facts = scan_files(table)
    group = {path: number for number, path in enumerate(table["path"])}
    same_bytes = facts.groupby("sha")["path"].agg(list)
    for paths in [*same_bytes, *near_pairs(facts)[["path", "other"]].itertuples(index=False)]:
        first = min(group[path] for path in paths)
        merged = {group[path] for path in paths}
        group = {path: first if number in merged else number for path, number in group.items()}
    return table["path"].map(group).to_numpy()


def read_features(table: pd.DataFrame, size: int, cache: Path) -> np.ndarray:  # (2 views, n_photos, n_features)
    "Compute the features of photos and their mirror images, once for each size."
    file = cache / f"features-{size}.npy"
    if not file.exists():
        from snakecls.data.photos import PhotoSpec
        from snakecls.models.backbones import create_backbone
        from snakecls.models.batches import PhotoBatches
        from snakecls.models.features import batch_features

        model = create_backbone("tf_efficientnet_lite0", table["label"].nunique())
        spec = PhotoSpec(size=size, mean=model.backbone_info.mean, std=model.backbone_info.std)
        np.save(file, batch_features(model, PhotoBatches(table["path"].tolist(), spec), flip=True))
        print(f"features at {size} px are read", flush=True)
    return np.load(file)


def folds(targets: np.ndarray, groups: np.ndarray, n: int, seed: int) -> list[tuple[np.ndarray, np.ndarray]]:
    "Divide photos by class, with copies together."
    return list(StratifiedGroupKFold(n, shuffle=True, random_state=seed).split(targets, targets, groups))


def probe_answers(features: np.ndarray, targets: np.ndarray, fit: np.ndarray, held: np.ndarray) -> np.ndarray:  # mean logits of both views
    "Fit the library's probe on some photos and answer others."
    from snakecls.models.probe import fit_probe

    return fit_probe(features[:, fit], targets[fit], n_classes=int(targets.max()) + 1).logits(features[:, held]).mean(0)


def top3(targets: np.ndarray, logits: np.ndarray) -> float:
    "Compute how often the label is among the three likeliest."
    return float((np.argsort(-logits, axis=1)[:, :3] == targets[:, None]).any(1).mean())


def one_repeat(features: dict[int, np.ndarray], targets: np.ndarray, groups: np.ndarray, seed: int) -> dict:
    "Nested: choose the size inside, report outside. Beside it every size's plain cross-validation on the same outer folds, the best of which is the optimistic figure."
    n_classes = int(targets.max()) + 1
    answers = {size: np.zeros((len(targets), n_classes)) for size in features}
    nested, chosen = np.zeros((len(targets), n_classes)), []
    for fit, held in folds(targets, groups, 5, seed):
        inner = {}
        for size, views in features.items():
            scores = []
            for one, other in folds(targets[fit], groups[fit], 3, seed):
                logits = probe_answers(views, targets, fit[one], fit[other])
                scores.append(f1_score(targets[fit[other]], logits.argmax(1), average="macro"))
            inner[size] = np.mean(scores)
            answers[size][held] = probe_answers(views, targets, fit, held)
        size = max(inner, key=inner.get)
        chosen.append(size)
        nested[held] = answers[size][held]
        print(f"repeat {seed}: {size} px chosen inside ({', '.join(f'{size}: {score:.3f}' for size, score in inner.items())})", flush=True)
    plain = {size: f1_score(targets, logits.argmax(1), average="macro") for size, logits in answers.items()}
    return {"nested": f1_score(targets, nested.argmax(1), average="macro"), "nested top-3": top3(targets, nested), "best size on the reported photos": max(plain.values()),
            **{f"{size} px": score for size, score in plain.items()}, "chosen": chosen}


def run_recipe(table: pd.DataFrame, targets: np.ndarray, groups: np.ndarray, folder: Path) -> list[dict]:  # the test scores of each outer fold
    "Run the experiment file in five outer folds, each time with the fold as test split and 15 % of the others for validation."
    from snakecls.data.splits import split_table
    from snakecls.experiment.file import load_experiment
    from snakecls.workflow.run import run_experiment

    rows = []
    for number, (_, held) in enumerate(folds(targets, groups, 5, 0)):
        experiment = load_experiment(ROOT / "experiments" / "snakes_ph.yaml", overrides=[f"data.source={PHOTOS}", f"name=nested-{number}"])
        divided = table.drop(columns="split").assign(copies=groups)
        rest = split_table(divided.drop(index=held).reset_index(drop=True), valid=0.15, group="copies", seed=number)
        whole = pd.concat([rest, divided.iloc[held].assign(split="test")], ignore_index=True)
        result = run_experiment(experiment, root=folder / "runs", logbook=folder / "logbook.md", command="python benchmarks/nested.py CACHE --whole-recipe", table=whole)
        rows.append(result.metrics["test"] | {"valid_f1": result.metrics["valid"]["f1_macro"]})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cache", type=Path, help="folder for the features")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--whole-recipe", action="store_true", help="run the experiment file in each outer fold instead")
    args = parser.parse_args()
    args.cache.mkdir(parents=True, exist_ok=True)
    table, targets, groups = read_train()
    print(f"{len(table)} photos, {len(np.unique(groups))} pictures, {targets.max() + 1} classes", flush=True)
    if args.whole_recipe:
        rows = run_recipe(table, targets, groups, args.cache)
        for unit in ("f1_macro", "top3_accuracy", "valid_f1"):
            record("nested", "experiments/snakes_ph.yaml in each of 5 outer folds", [float(np.round(row[unit], 4)) for row in rows], unit=unit, note=f"snakes_ph/train, {len(table)} photos, one value a fold")
        return
    features = {size: read_features(table, size, args.cache) for size in SIZES}
    rows = [one_repeat(features, targets, groups, seed) for seed in range(args.repeats)]
    sizes = [size for row in rows for size in row.pop("chosen")]
    for arm in rows[0]:
        unit = "top3_accuracy" if "top-3" in arm else "f1_macro"
        record("nested", arm, [float(np.round(row[arm], 4)) for row in rows], unit=unit, note=f"snakes_ph/train, {len(table)} photos, 5 outer x 3 inner folds, {args.repeats} divisions; chosen inside: {sizes}")


if __name__ == "__main__":
    main()
