"""Wrong labels and photos of something else, against the truth of the demonstration data: 5 % flipped labels, 5 % distractors.

Usage: python benchmarks/label_issues.py FOLDER [SEEDS] [--explore]; --explore is for choosing thresholds on seeds 0 to 2 (nothing is recorded; not done yet), the default seeds are 3 to 7.
Drawings and features stay in FOLDER, so that a second call takes seconds."""
import argparse
import time
from pathlib import Path

import numpy as np
import pandas as pd
from common import record
from sklearn.metrics import average_precision_score, precision_recall_curve

from snakecls.data.demo import make_demo
from snakecls.data.photos import PhotoSpec
from snakecls.evaluate.label_issues import LABEL_THRESHOLD, OUTLIER_THRESHOLD, label_scores, out_of_fold_probs, outlier_scores, read_features, relative_distances

SIZE = 256


def load_features(folder: Path, table: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    "Read the features of a drawing's photos, once."
    from snakecls.models.backbones import create_backbone

    cache = folder / f"features-{SIZE}.npz"
    if not cache.exists():
        start, model = time.perf_counter(), create_backbone("tf_efficientnet_lite0", 2)
        info = model.backbone_info
        spec = PhotoSpec(size=SIZE, mean=info.mean, std=info.std, interpolation=info.interpolation)
        features, stages = read_features(model, [folder / path for path in table["path"]], spec)
        np.savez(cache, features=features, stages=stages, seconds=time.perf_counter() - start)
    with np.load(cache) as stored:
        return stored["features"], stored["stages"]


def score_labels(features: np.ndarray, names: pd.Series, groups: pd.Series, flipped: np.ndarray) -> dict:
    "Score the ranking of suspicious labels, and what lies above the threshold."
    targets, classes = pd.factorize(names, sort=True)
    scores = label_scores(out_of_fold_probs(features, targets, n_classes=len(classes), groups=groups.tolist()), targets)
    precision, recall, _ = precision_recall_curve(flipped, scores)
    chosen = scores >= LABEL_THRESHOLD
    return {"average_precision": average_precision_score(flipped, scores), "recall_at_70_precision": recall[precision >= 0.7].max(),
            "recall": flipped[chosen].sum() / flipped.sum(), "precision": flipped[chosen].mean() if chosen.any() else 1.0}


def score_seed(folder: Path, seed: int) -> dict[str, dict]:
    "Draw a seed's photos and score both searches."
    folder = make_demo(folder / f"seed{seed}", seed=seed, label_noise=0.05, distractors=0.05)
    table = pd.read_csv(folder / "photos.csv").merge(pd.read_csv(folder / "truth.csv").drop(columns="binomial"), on="path", validate="1:1")
    flipped, other = table["label_flipped"].to_numpy(bool), table["distractor"].notna().to_numpy()
    features, stages = load_features(folder, table)
    start = time.perf_counter()
    strange = outlier_scores(relative_distances(stages, pd.factorize(table["binomial"])[0])[0])
    seconds = time.perf_counter() - start
    lowest = np.sort(strange[other])[int(np.floor(0.1 * other.sum()))]  # the threshold that finds 90 %
    outliers = {"found": (strange[other] >= OUTLIER_THRESHOLD).mean(), "false_alarms": (strange[~other] >= OUTLIER_THRESHOLD).mean(),
                "false_alarms_at_90_found": (strange[~other] >= lowest).mean(), "found_at_5_false_alarms": (strange[other] > np.quantile(strange[~other], 0.95)).mean()}
    start = time.perf_counter()
    clean = ~other
    labels = score_labels(features[:, clean], table["binomial"][clean], table["observation_id"][clean], flipped[clean])
    seconds += time.perf_counter() - start
    usual = strange < OUTLIER_THRESHOLD  # as check_labels does: what is something else is not asked about again
    both = score_labels(features[:, usual], table["binomial"][usual], table["observation_id"][usual], flipped[usual])
    return {"flipped labels": labels, "flipped labels beside distractors": both, "distractors": outliers, "both": {"seconds": seconds}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("seeds", type=int, nargs="*", default=[3, 4, 5, 6, 7])
    parser.add_argument("--explore", action="store_true", help="Print the scores, record nothing.")
    args = parser.parse_args()
    results: dict[tuple[str, str], list[float]] = {}
    for seed in args.seeds:
        for arm, scores in score_seed(args.folder, seed).items():
            print(seed, arm, {key: round(float(value), 3) for key, value in scores.items()}, flush=True)
            for key, value in scores.items():
                results.setdefault((arm, key), []).append(float(value))
    for (arm, key), values in results.items():
        if not args.explore:
            record("label_issues", arm, values, unit=key, note=f"5 % flipped, 5 % distractors, 12 species, {SIZE} px, tf_efficientnet_lite0, seeds {args.seeds}")


if __name__ == "__main__":
    main()
