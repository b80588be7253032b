"""How far do probabilities and prediction sets keep their promise? Drawn photos (seeds 3 to 7 are reported; settings were chosen on 0 to 2) and `snakes_ph`.

Usage: python benchmarks/calibration.py OUTPUT_FOLDER [--sets drawn tail snakes_ph] [--choose]
The model is the probe that `snakecls train` serves with `train.refit: true` (features of `tf_efficientnet_lite0`, depths and maxima joined, mirror images, C by
cross-validation), fitted on train and valid together; temperature and sets are fitted on out-of-fold answers of these photos, as `workflow.trust` does, and scored on
test photos (of `snakes_ph` the folder `val`). `tail`: the drawn photos of training cut so that the rarest species has a tenth of the commonest; the test stays whole.
`--choose` scores seeds 0 to 2 and records nothing. Features are kept in OUTPUT_FOLDER."""
import argparse
import os
from pathlib import Path

import numpy as np
import pandas as pd

REAL = Path(os.environ.get("SNAKECLS_REAL_DATA", Path(__file__).parents[2] / "shared" / "data"))


def read_features(paths: list[str], size: int) -> np.ndarray:  # (2, n_photos, n_features): as they are, mirrored
    "Read what the frozen network sees in photos."
    from snakecls.data.photos import PhotoSpec
    from snakecls.models.backbones import create_backbone
    from snakecls.models.feature_cache import kept_features

    model = create_backbone("tf_efficientnet_lite0", 2, depths=[3, 4, 5, 6, 7], maximum=True)
    spec = PhotoSpec(size=size, mean=model.backbone_info.mean, std=model.backbone_info.std)
    features, read = kept_features(model, paths, spec, flip=True)
    assert read.all()
    return features


def load_set(name: str, folder: Path) -> tuple[pd.DataFrame, int]:  # path, label, group, test; side of the photos in pixels
    "Give the photos of a set: drawn_SEED, or snakes_ph."
    if name.startswith("drawn_"):
        from snakecls.data.demo.draw import make_demo

        drawn = make_demo(folder / f"demo{name.split('_')[1]}", seed=int(name.split("_")[1]), n_per_species=60, size_px=160, n_workers=1)
        table = pd.read_csv(drawn / "photos.csv")
        return pd.DataFrame({"path": [str(drawn / path) for path in table["path"]], "label": table["binomial"], "group": table["observation_id"],
                             "test": table["split"] == "test"}), 160
    from snakecls.clean.duplicates import photo_groups
    from snakecls.clean.scan import scan_files
    from snakecls.data.tables import load_table

    table = load_table(REAL / name).reset_index(drop=True)
    groups, test = photo_groups(table, scan_files(table, n_workers=1)), table["path"].map(lambda path: Path(path).parents[1].name == "val")
    return table[["path", "label"]].assign(group=groups, test=test), 224


def prepare(name: str, folder: Path) -> dict[str, np.ndarray]:  # features, y, groups, test
    "Draw or load a set, and keep its features."
    file = folder / f"{name}.npz"
    if not file.exists():
        table, size = load_set(name, folder)
        y = table["label"].astype("category").cat.codes.to_numpy(np.int64)
        np.savez(file, features=read_features(table["path"].tolist(), size), y=y, groups=table["group"].to_numpy(str), test=table["test"].to_numpy(bool))
        print(f"{name}: {len(table)} photos, {table['test'].sum()} of the test, {len(set(y))} classes", flush=True)
    with np.load(file) as stored:
        return dict(stored)


def cut_tail(data: dict) -> dict:
    "Keep fewer training photos of each further class, down to a tenth; the test stays whole."
    y, keep = data["y"], data["test"].copy()
    for label, share in zip(np.unique(y), np.geomspace(1, 0.1, len(np.unique(y)))):
        rows = np.flatnonzero((y == label) & ~data["test"])
        keep[rows[: max(3, round(share * len(rows)))]] = True
    return {key: values[:, keep] if key == "features" else values[keep] for key, values in data.items()}


def answer(data: dict) -> dict[str, np.ndarray]:  # out, y_out, groups_out; test, y_test; counts
    "Answer the test photos with the probe of all others, and those out of fold with its C."
    from scipy.special import softmax
    from snakecls.models.probe import fit_probe
    from snakecls.train.fold_answers import fold_logits

    own, y, groups = ~data["test"], data["y"], data["groups"].astype(str)
    views, n_classes = data["features"][:, own], int(y.max()) + 1
    probe = fit_probe(views, y[own], n_classes=n_classes)
    logits, kept = fold_logits(views, y[own], groups[own], C=probe.C, n_classes=n_classes)
    out = np.mean(softmax(logits, axis=-1), axis=0)
    test = np.mean([softmax(probe.logits(view), axis=1) for view in data["features"][:, data["test"]]], axis=0)
    return {"out": out, "y_out": y[own][kept], "groups_out": groups[own][kept], "test": test, "y_test": y[data["test"]], "groups_test": data["groups"][data["test"]].astype(str), "counts": np.bincount(y[own], minlength=n_classes)}


ARMS = {"lac": {"score": "lac"}, "aps": {"score": "aps"}, "raps": {"score": "raps"}, "pas": {"score": "pas"},
        "pas, half of each class's own threshold": {"score": "pas", "interpolate": 0.5}, "lac, half of each class's own threshold": {"score": "lac", "interpolate": 0.5}}
TRIED = {"aps, u 0.5": {"score": "aps", "u": 0.5}, "aps, u 1": {"score": "aps", "u": 1.0},
         **{f"raps, k {k}, lam {lam}": {"score": "raps", "k_reg": k, "lam": lam} for k in (1, 2) for lam in (0.01, 0.1, 0.3)},
         **{f"pas, {share}": {"score": "pas", "interpolate": share} for share in (0.25, 0.75)}}


PAIRS = (("after the temperature", "before the temperature", "ECE"), ("after the temperature", "before the temperature", "log loss"),
         ("pas", "lac", "macro_coverage"), ("pas", "lac", "size"), ("pas", "fixed top k", "size"), ("pas", "fixed top k", "coverage"))


def measure(got: dict, coverage: float, arms: dict) -> dict[str, float]:  # 'arm; unit' -> value
    "Score calibration and sets on the test photos."
    from snakecls.data.problem import OneLabel
    from snakecls.evaluate.calibration import calibration_error, fit_temperature
    from snakecls.evaluate.conformal import fit_conformal, fixed_k, measure_sets, prediction_set

    temperature, part = fit_temperature(got["out"], got["y_out"]), OneLabel()
    out, test = (part.with_temperature(got[name], temperature) for name in ("out", "test"))
    found = {"probe; accuracy": float((test.argmax(1) == got["y_test"]).mean()), "probe; temperature": temperature}
    for name, probs in (("before", got["test"]), ("after", test)):
        error = calibration_error(probs, got["y_test"], groups=None)
        found |= {f"{name} the temperature; {key}": error[short] for key, short in (("ECE", "ece"), ("Brier", "brier"), ("log loss", "loss"))}
    for name, way in arms.items():
        fitted = fit_conformal(out, got["y_out"], coverage=coverage, prevalence=got["counts"], **way)
        found |= {f"{name}; {key}": value for key, value in measure_sets(prediction_set(test, fitted), got["y_test"]).items()}
    k = fixed_k(out, got["y_out"], coverage)
    top = np.argsort(np.argsort(-test, axis=1, kind="stable"), axis=1) < k
    found |= {f"fixed top k; {key}": value for key, value in measure_sets(top, got["y_test"]).items()}
    return found | {f"{a} minus {b}; {unit}": found[f"{a}; {unit}"] - found[f"{b}; {unit}"] for a, b, unit in PAIRS}


def halve(got: dict, coverage: float) -> dict[str, float]:  # 'arm; unit' -> value
    "Fit on one half of the test photos and measure on the other, 200 times: does the promise hold where both are alike?"
    from snakecls.evaluate.conformal import expect_sets

    found = {}
    for name, way in ARMS.items():
        if "interpolate" not in way:  # of which nothing is promised
            means = expect_sets(got["test"], got["y_test"], groups=got["groups_test"], n_splits=200, coverage=coverage, prevalence=got["counts"], **way)
            found |= {f"200 halvings of the test, {name}; {key}": value for key, value in means.items() if key != "single"}
    return found


def main() -> None:
    from common import record
    from scipy.stats import t as student

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--sets", nargs="+", default=["drawn", "tail", "snakes_ph"])
    parser.add_argument("--coverage", type=float, default=0.9)
    parser.add_argument("--choose", action="store_true")
    parser.add_argument("--only", default="", help="record what has this text in its name")
    parser.add_argument("--halvings", action="store_true", help="only halve the test photos, 200 times")
    args = parser.parse_args()
    for name in args.sets:
        if name == "snakes_ph":
            rows = [halve(answer(prepare(name, args.folder)), args.coverage)] if args.halvings else _real_rows(prepare(name, args.folder), args.coverage)
            if args.choose:
                continue  # its test is looked at once, at the end
        else:
            seeds = (0, 1, 2) if args.choose else (3, 4, 5, 6, 7)
            sets = [prepare(f"drawn_{seed}", args.folder) for seed in seeds]
            arms = ARMS | TRIED if args.choose else ARMS
            answers = [answer(cut_tail(data) if name == "tail" else data) for data in sets]
            rows = [halve(got, args.coverage) if args.halvings else measure(got, args.coverage, arms) for got in answers]
        for key in [key for key in rows[0] if args.only in key]:
            arm, unit = key.split("; ")
            values = [row[key] for row in rows]
            half = student.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / np.sqrt(len(values)) if len(values) > 1 else np.nan
            said = f"95 % {np.mean(values) - half:.4f} to {np.mean(values) + half:.4f}, Student's t over {len(values)} drawings"
            if name == "snakes_ph" and args.halvings:
                said = "208 val photos; mean of 200 halvings, which share photos, so no interval"
            elif name == "snakes_ph":
                said = f"208 val photos, looked at once; 95 % of 500 bootstrap draws of them {np.quantile(values[1:], 0.025):.4f} to {np.quantile(values[1:], 0.975):.4f}"
                values = values[:1]
            print(f"{name}, {arm}, {unit}: {np.mean(values):.4f}; {said}", flush=True)
            if not args.choose:
                record("calibration", f"{name}, promise {args.coverage:g}, {arm}", values, unit=unit, note=said)


def _real_rows(data: dict, coverage: float) -> list[dict[str, float]]:  # of the test photos, and of 500 draws of them
    "Score the real photos, and draws of the test with replacement (copies together)."
    got = answer(data)
    groups = np.unique(data["groups"][data["test"]].astype(str), return_inverse=True)[1]
    rng, rows = np.random.default_rng(0), [measure(got, coverage, ARMS)]
    members = [np.flatnonzero(groups == group) for group in range(groups.max() + 1)]
    for _ in range(500):
        chosen = np.concatenate([members[group] for group in rng.integers(0, len(members), len(members))])
        rows.append(measure(got | {"test": got["test"][chosen], "y_test": got["y_test"][chosen]}, coverage, ARMS))
    return rows


if __name__ == "__main__":
    main()
