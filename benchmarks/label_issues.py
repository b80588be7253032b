"""Wrong labels and photos of something else, against the truth of the demonstration data: 5 % flipped labels, 5 % distractors.

Usage: python benchmarks/label_issues.py FOLDER [SEEDS] [--explore] [--speed]; thresholds were fixed on seeds 0 to 2 (--explore: nothing is recorded), so score on 3 to 7, the default. --speed times `check_labels` on 1,000 photos instead.
Drawings and features stay in FOLDER, so that a second call takes seconds."""
import argparse
import os
import time
from pathlib import Path

import numpy as np
import pandas as pd
from common import record
from sklearn.metrics import average_precision_score, precision_recall_curve

from snakecls.data.demo.draw import make_demo
from snakecls.data.photos import PhotoSpec
from snakecls.data.tables import load_table
from snakecls.clean.label_issues import LABEL_THRESHOLD, check_labels, judge_labels, _label_scores, _out_of_fold_probs, _read_features
from snakecls.clean.outliers import OUTLIER_THRESHOLD, outlier_scores

SIZE = 256


def load_features(folder: Path, table: pd.DataFrame) -> tuple[np.ndarray, list[np.ndarray]]:
    "Read the features of a drawing's photos, once."
    from snakecls.models.backbones import create_backbone

    cache = folder / f"features-{SIZE}.npz"
    if not cache.exists():
        start, model = time.perf_counter(), create_backbone("tf_efficientnet_lite0", 2)
        info = model.backbone_info
        spec = PhotoSpec(size=SIZE, mean=info.mean, std=info.std, interpolation=info.interpolation)
        features, stages = _read_features(model, [folder / path for path in table["path"]], spec)
        np.savez(cache, features=features, stages=np.concatenate(stages, 1), widths=[stage.shape[1] for stage in stages], seconds=time.perf_counter() - start)
    with np.load(cache) as stored:
        return stored["features"], np.split(stored["stages"], np.cumsum(stored["widths"])[:-1], axis=1)


def score_labels(features: np.ndarray, names: pd.Series, groups: pd.Series, flipped: np.ndarray) -> dict[str, float]:
    "Score the ranking of suspicious labels, and what lies above the threshold."
    targets, classes = pd.factorize(names, sort=True)
    scores = _label_scores(_out_of_fold_probs(features, targets, n_classes=len(classes), groups=groups.tolist()), targets)
    precision, recall, _ = precision_recall_curve(flipped, scores)
    chosen = scores >= LABEL_THRESHOLD
    return {"average_precision": average_precision_score(flipped, scores), "recall_at_70_precision": recall[precision >= 0.7].max(),
            "recall": flipped[chosen].sum() / flipped.sum(), "precision": flipped[chosen].mean() if chosen.any() else 1.0}


def score_outliers(strange: np.ndarray, other: np.ndarray, flipped: np.ndarray) -> dict[str, float]:
    "Score the search for photos of something else; flipped photos count as false alarms."
    lowest = np.sort(strange[other])[int(np.floor(0.1 * other.sum()))]  # the threshold that finds 90 %
    return {"found": (strange[other] >= OUTLIER_THRESHOLD).mean(), "false_alarms": (strange[~other] >= OUTLIER_THRESHOLD).mean(),
            "false_alarms_at_90_found": (strange[~other] >= lowest).mean(), "found_at_5_false_alarms": (strange[other] > np.quantile(strange[~other], 0.95)).mean(),
            "flipped_called_something_else": (strange[flipped] >= OUTLIER_THRESHOLD).mean()}


def score_seed(folder: Path, seed: int) -> dict[str, dict[str, float]]:
    "Draw a seed's photos and score both searches, each alone and as `check_labels` does them."
    folder = make_demo(folder / f"seed{seed}", seed=seed, label_noise=0.05, distractors=0.05)
    table = pd.read_csv(folder / "photos.csv").merge(pd.read_csv(folder / "truth.csv").drop(columns="binomial"), on="path", validate="1:1")
    flipped, other = table["label_flipped"].to_numpy(bool), table["distractor"].notna().to_numpy()
    features, stages = load_features(folder, table)
    names, groups = table["binomial"], table["observation_id"]
    targets = pd.factorize(names)[0]
    probs = _out_of_fold_probs(features, targets, n_classes=targets.max() + 1, groups=groups.tolist())
    outliers = score_outliers(outlier_scores([*stages, features.mean(0)], targets, probs=probs), other, flipped)
    labels = score_labels(features[:, ~other], names[~other], groups[~other], flipped[~other])
    start = time.perf_counter()
    issues, _ = judge_labels(features, stages, names.tolist(), paths=table["path"].tolist(), groups=groups.tolist())
    seconds = time.perf_counter() - start
    wrong = table["path"].isin(issues.loc[issues["issue"] == "label", "path"]).to_numpy()
    right = issues[issues["issue"] == "label"].merge(table, on="path").query("label_flipped")
    both = {"recall": flipped[wrong].sum() / flipped.sum(), "precision": flipped[wrong].mean(), "precision_distractors_right": (flipped | other)[wrong].mean(),
            "flipped_in_any_list": table.loc[flipped, "path"].isin(issues["path"]).mean(), "suggestion_right": (right["suggested"] == right["true_binomial"]).mean(),
            "share_of_photos_listed": issues["path"].nunique() / len(table)}
    return {"flipped labels": labels, "distractors beside flipped labels": outliers, "flipped labels beside distractors, as check_labels": both, "judge": {"seconds": seconds}}


def time_check(folder: Path, repeats: int = 3) -> list[float]:
    "Time `check_labels`, the network included, on about 1,000 photos of the demonstration."
    folder = make_demo(folder / "speed", seed=0, n_per_species=80, label_noise=0.05, distractors=0.05)
    table = load_table(folder / "photos.csv", target="binomial")
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        issues, _ = check_labels(table)
        seconds.append(time.perf_counter() - start)
        print(f"{len(table)} photos, {len(issues)} issues, {seconds[-1]:.1f} s", flush=True)
    record("label_issues", f"check_labels, {len(table)} photos, {SIZE} px", seconds, unit="seconds", note=f"drawing not counted, {os.cpu_count()} cores, machine to itself")
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("seeds", type=int, nargs="*", default=[3, 4, 5, 6, 7])
    parser.add_argument("--explore", action="store_true", help="Print the scores, record nothing.")
    parser.add_argument("--speed", action="store_true", help="Time 1,000 photos, three times, and nothing else.")
    args = parser.parse_args()
    if args.speed:
        time_check(args.folder)
        return
    results: dict[tuple[str, str], list[float]] = {}
    for seed in args.seeds:
        for arm, scores in score_seed(args.folder, seed).items():
            print(seed, arm, {key: round(float(value), 3) for key, value in scores.items()}, flush=True)
            for key, value in scores.items():
                results.setdefault((arm, key), []).append(float(value))
    for (arm, key), values in results.items():
        if not args.explore:
            record("label_issues", arm, values, unit=key, note=f"5 % flipped, 5 % distractors, 12 species, 756 photos, {SIZE} px, tf_efficientnet_lite0, seeds {args.seeds}")


if __name__ == "__main__":
    main()
