"""Does cleaning `butterflies_noisy` raise the macro F1 of a linear probe on a clean hold-out?

Usage: python benchmarks/cleaning.py OUTPUT_FOLDER [--seeds N]. The photos are those of SNAKECLS_REAL_DATA (default ../shared/data beside the project); features are kept in OUTPUT_FOLDER.
The hold-out is a third of the photos that no finding touches, the same for all arms of a seed; what is wrong with the others is looked for without it."""
import argparse
import os
from pathlib import Path

import numpy as np
import pandas as pd
from common import record
from sklearn.metrics import f1_score
from sklearn.model_selection import train_test_split

from snakecls.clean.duplicates import find_duplicates
from snakecls.clean.files import check_files
from snakecls.data.photos import PhotoSpec
from snakecls.clean.scan import scan_files
from snakecls.data.tables import load_table
from snakecls.clean.label_issues import judge_labels, _read_features
from snakecls.models.probe import fit_probe

SIZE = 256
REAL = Path(os.environ.get("SNAKECLS_REAL_DATA", Path(__file__).parents[2] / "shared" / "data"))
ARMS = ("as it lies", "without broken files and copies", "and without label issues", "and labels as suggested")


def load_features(folder: Path, paths: list[str]) -> tuple[np.ndarray, list[np.ndarray]]:
    "Read the features of the photos, once."
    from snakecls.models.backbones import create_backbone

    cache = folder / f"butterflies_noisy-{SIZE}.npz"
    if not cache.exists():
        model = create_backbone("tf_efficientnet_lite0", 2)
        info = model.backbone_info
        features, stages = _read_features(model, paths, PhotoSpec(size=SIZE, mean=info.mean, std=info.std, interpolation=info.interpolation))
        np.savez(cache, features=features, stages=np.concatenate(stages, 1), widths=[stage.shape[1] for stage in stages])
    with np.load(cache) as stored:
        return stored["features"], np.split(stored["stages"], np.cumsum(stored["widths"])[:-1], axis=1)


def groups_of(table: pd.DataFrame, facts: pd.DataFrame) -> np.ndarray:
    "Number the photos, copies of one picture alike."
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    from snakecls.clean.duplicates import near_pairs

    row = {path: i for i, path in enumerate(table["path"])}
    pairs = [(row[a], row[b]) for a, b in near_pairs(facts)[["path", "other"]].itertuples(index=False)]
    shas = facts.set_index("path")["sha"].loc[table["path"]]
    pairs += [(members[0], i) for members in pd.Series(range(len(table))).groupby(shas.to_numpy()).agg(list) for i in members[1:]]
    one, other = np.array(pairs or [(0, 0)]).T
    return connected_components(coo_array((np.ones(len(one)), (one, other)), shape=(len(table),) * 2), directed=False)[1]


def clean_copies(table: pd.DataFrame, groups: np.ndarray) -> np.ndarray:  # row numbers
    "Keep one photo of each picture, and none where its copies have different labels."
    frame = pd.DataFrame({"row": range(len(table)), "label": table["label"].to_numpy(), "group": groups})
    frame = frame[frame.groupby("group")["label"].transform("nunique") == 1]
    return frame.drop_duplicates("group")["row"].to_numpy()


def score_seed(seed: int, table: pd.DataFrame, groups: np.ndarray, features: np.ndarray, stages: list[np.ndarray], odd: np.ndarray, untouched: np.ndarray) -> dict[str, dict]:
    "Fit a probe on the photos of each arm and score all on one hold-out."
    classes = sorted(table["label"].unique())
    y = np.array([classes.index(label) for label in table["label"]])
    held = train_test_split(np.flatnonzero(untouched), test_size=1 / 3, stratify=y[untouched], random_state=seed)[1]
    assert not np.isin(groups, groups[held])[np.setdiff1d(np.arange(len(table)), held)].any(), "a photo of the hold-out has a copy among the others"
    rest = np.setdiff1d(np.arange(len(table)), held)
    once = clean_copies(table.iloc[rest], groups[rest])
    tidy = rest[once][~odd[rest[once]]]
    issues, _ = judge_labels(features[:, tidy], [stage[tidy] for stage in stages], table["label"].iloc[tidy].tolist(), paths=table["path"].iloc[tidy].tolist(), groups=groups[tidy].tolist())
    paths = table["path"].to_numpy()
    sound = tidy[~np.isin(paths[tidy], issues["path"])]
    labels = issues[issues["issue"] == "label"].set_index("path")["suggested"]
    suggested = tidy[~np.isin(paths[tidy], issues.loc[(issues["issue"] == "something else") & ~issues["path"].isin(labels.index), "path"])]
    renamed = y.copy()
    for i in suggested:
        if paths[i] in labels.index:
            renamed[i] = classes.index(labels[paths[i]])
    results = {}
    for arm, (rows, targets) in zip(ARMS, ((rest, y), (tidy, y), (sound, y), (suggested, renamed))):
        probe = fit_probe(features[:, rows], targets[rows], n_classes=len(classes))
        predicted = np.mean([probe.logits(view[held]) for view in features], axis=0).argmax(1)
        results[arm] = {"macro F1": f1_score(y[held], predicted, average="macro"), "photos": len(rows), "labels changed": int((targets[rows] != y[rows]).sum()), "held out": len(held)}
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seeds", type=int, default=5)
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    table = load_table(REAL / "butterflies_noisy")
    facts = scan_files(table, cache=args.folder / "butterflies_noisy.sqlite", n_workers=1)
    files, copies = check_files(facts), find_duplicates(facts)
    print(files.groupby(["issue", "verdict"]).size().to_dict(), copies.groupby(["issue", "verdict"]).size().to_dict(), flush=True)
    unreadable = set(facts.loc[facts["issue"] != "", "path"])
    table = table[~table["path"].isin(unreadable)].reset_index(drop=True)
    groups = groups_of(table, facts)
    features, stages = load_features(args.folder, table["path"].tolist())
    issues, _ = judge_labels(features, stages, table["label"].tolist(), paths=table["path"].tolist(), groups=groups.tolist())
    print(issues.groupby(["issue", "verdict"]).size().to_dict(), flush=True)
    touched = set(files["path"]) | set(copies["path"]) | set(issues["path"])
    odd = table["path"].isin(files.loc[files["verdict"] == "drop", "path"]).to_numpy()
    untouched = ~table["path"].isin(touched).to_numpy()
    print(f"{len(table)} photos that can be read, {odd.sum()} more to drop, {untouched.sum()} untouched", flush=True)
    runs = [score_seed(seed, table, groups, features, stages, odd, untouched) for seed in range(args.seeds)]
    for seed, run in enumerate(runs):
        print(seed, {arm: {key: round(value, 4) for key, value in scores.items()} for arm, scores in run.items()}, flush=True)
    note = f"butterflies_noisy, {SIZE} px, tf_efficientnet_lite0, {runs[0][ARMS[0]]['held out']} held-out photos that no finding touches, split seeds 0 to {args.seeds - 1}"
    for arm in ARMS:
        record("cleaning", arm, [run[arm]["macro F1"] for run in runs], unit="macro F1", note=f"{note}; {[run[arm]['photos'] for run in runs]} training photos")
    for arm in ARMS[1:]:
        record("cleaning", f"{arm}, against as it lies", [run[arm]["macro F1"] - run[ARMS[0]]["macro F1"] for run in runs], unit="macro F1, paired difference", note=note)


if __name__ == "__main__":
    main()
