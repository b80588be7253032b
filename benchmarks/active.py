"""Do 200 chosen labels beat 200 random ones? Macro F1 of a probe on test photos, all arms from the same first labels, in turn within each division.

Usage: python benchmarks/active.py OUTPUT_FOLDER [--sets drawn snakes_ph] [--seeds N] [--choose]
A division: a quarter of the photos is the test, 5 of each class have labels at first, the others wait; the same for all arms. `chosen at once` is what
`snakecls review --unlabelled` asks of one model; `in 2 rounds` trains again after 100 answers. Random is the mean of two draws of 200.
`--choose` scores drawings and divisions that are not reported (seeds from 100), and records nothing: the form of the score was chosen there.
Features of `tf_efficientnet_lite0` (depths and maximum joined, as by default) are read once and kept in OUTPUT_FOLDER; photos of one observation, or copies, stay on one side."""
import argparse
import json
import os
from pathlib import Path

import numpy as np
import pandas as pd
from common import record
from scipy.stats import t as student
from sklearn.metrics import f1_score
from sklearn.model_selection import StratifiedGroupKFold

REAL = Path(os.environ.get("SNAKECLS_REAL_DATA", Path(__file__).parents[2] / "shared" / "data"))
DRAWINGS = (101, 0)  # seeds of the reported drawings; the score was chosen on drawing 100
N_CHOSEN, N_FIRST, ROUNDS, C = 200, 5, 2, 0.03  # labels; first labels of a class; rounds; the probe's regularisation, fixed so that arms differ by photos alone


def read_features(table: pd.DataFrame, size: int) -> np.ndarray:  # (n_photos, n_features)
    "Read what the frozen network sees in photos."
    from snakecls.data.photos import PhotoSpec
    from snakecls.models.backbones import create_backbone
    from snakecls.models.feature_cache import kept_features

    model = create_backbone("tf_efficientnet_lite0", 2, depths=[3, 4, 5, 6, 7], maximum=True)
    spec = PhotoSpec(size=size, mean=model.backbone_info.mean, std=model.backbone_info.std)
    features, read = kept_features(model, table["path"].tolist(), spec)
    assert read.all()
    return features[0]


def prepare(name: str, folder: Path) -> dict[str, np.ndarray]:  # features, y, groups
    "Draw or load a set, and keep its features."
    file = folder / f"{name}.npz"
    if not file.exists():
        table, size = load_set(name, folder)
        y = table["label"].astype("category").cat.codes.to_numpy(np.int64)
        np.savez(file, features=read_features(table, size), y=y, groups=table["group"].to_numpy(), paths=table["path"].to_numpy(str))
        print(f"{name}: {len(table)} photos, {len(set(y))} classes", flush=True)
    with np.load(file) as stored:
        return dict(stored)


def load_set(name: str, folder: Path) -> tuple[pd.DataFrame, int]:  # path, label, group; side of the photos in pixels
    "Give the photos of a set: drawn_SEED, or a folder of the real ones."
    from snakecls.clean.duplicates import photo_groups
    from snakecls.clean.scan import scan_files
    from snakecls.data.demo.draw import make_demo
    from snakecls.data.tables import load_table

    if name.startswith("drawn_"):
        drawn = make_demo(folder / name, seed=int(name.split("_")[1]), n_per_species=120, size_px=160, n_workers=1)
        table = pd.read_csv(drawn / "photos.csv")
        paths = [str(drawn / path) for path in table["path"]]
        return pd.DataFrame({"path": paths, "label": table["binomial"], "group": table["observation_id"].astype("category").cat.codes}), 160
    table = load_table(REAL / name).reset_index(drop=True)
    return table[["path", "label"]].assign(group=photo_groups(table, scan_files(table, n_workers=1))), 224


def divide(data: dict, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:  # rows: first labels, those that wait, test
    "Divide a set, groups undivided."
    y, rng = data["y"], np.random.default_rng(seed)
    rest, test = next(StratifiedGroupKFold(4, shuffle=True, random_state=seed).split(y, y, data["groups"]))
    first = np.concatenate([rng.permutation(rest[y[rest] == label])[:N_FIRST] for label in np.unique(y)])
    return first, rng.permutation(np.setdiff1d(rest, first)), test


def fit(data: dict, rows: np.ndarray):  # -> Probe
    "Fit the library's probe on labelled rows."
    from snakecls.models.probe import fit_probe

    return fit_probe(data["features"][rows], data["y"][rows], n_classes=int(data["y"].max()) + 1, C=C)


def ask(data: dict, probe, waiting: np.ndarray, n: int, asked: np.ndarray | None = None) -> np.ndarray:  # rows of the set
    "Choose rows to label as the command does."
    from scipy.special import softmax

    from snakecls.clean.questions import rank_questions

    features, probs = data["features"][waiting], softmax(probe.logits(data["features"][waiting]), axis=1)
    names = [str(label) for label in range(probs.shape[1])]
    ranking = rank_questions(features, probs, paths=[str(row) for row in waiting], labels=names, n=n, asked=asked)
    return ranking["path"].astype(int).to_numpy()


def one_division(data: dict, seed: int) -> dict[str, float]:  # arm -> macro F1 on the test photos
    "Choose by every arm and score it."
    first, waiting, test = divide(data, seed)
    probe = fit(data, first)

    def score(rows: np.ndarray, fitted=None) -> float:
        fitted = fitted or fit(data, np.concatenate([first, rows]))
        return float(f1_score(data["y"][test], fitted.logits(data["features"][test]).argmax(1), average="macro"))

    scores = {"first labels alone": score(first, probe)}
    for draw in (1, 2):
        scores[f"random {draw}"] = score(np.random.default_rng(1000 * draw + seed).choice(waiting, N_CHOSEN, replace=False))
        if draw == 1:
            scores["chosen, at once"] = score(ask(data, probe, waiting, N_CHOSEN))
    rows, now = np.array([], int), probe
    for _ in range(ROUNDS):
        rows = np.concatenate([rows, ask(data, now, waiting, N_CHOSEN // ROUNDS, np.isin(waiting, rows))])
        now = fit(data, np.concatenate([first, rows]))
    scores[f"chosen, in {ROUNDS} rounds"] = score(rows, now)
    return scores | {"random": (scores.pop("random 1") + scores.pop("random 2")) / 2}


def interval(values: list[float], n_members: int) -> str:
    "Write 95 % intervals of the mean by Student's t: as if divisions were independent, and corrected for their overlap (Nadeau and Bengio 2003)."
    mean, sd, n = np.mean(values), np.std(values, ddof=1), len(values)
    plain, corrected = (student.ppf(0.975, n - 1) * sd * np.sqrt(share) for share in (1 / n, 1 / n + 1 / 3 / n_members))  # a third as many test photos as others
    return f"95 % {mean - plain:+.4f} to {mean + plain:+.4f}; corrected for overlapping divisions {mean - corrected:+.4f} to {mean + corrected:+.4f}"


def report(name: str, runs: list[dict[str, float]], n_members: int, note: str, *, write: bool) -> None:
    "Record each arm, and its paired difference to random."
    for arm in runs[0]:
        values = [run[arm] for run in runs]
        gained = [run[arm] - run["random"] for run in runs]
        print(f"{name}, {arm}: {np.mean(values):.4f}; against random {np.mean(gained):+.4f}, sd {np.std(gained, ddof=1):.4f}, {interval(gained, n_members)}", flush=True)
        if write:
            record("active", f"{name}, {arm}", values, unit="test macro F1", note=note)
        if write and arm not in ("random", "first labels alone"):
            record("active", f"{name}, {arm}, against random", gained, unit="macro F1, paired difference", note=f"{interval(gained, n_members)}; {note}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--sets", nargs="+", default=["drawn", "snakes_ph"])
    parser.add_argument("--seeds", type=int, default=8, help="divisions of each set, or of each drawing")
    parser.add_argument("--choose", action="store_true")
    args = parser.parse_args()
    for name in args.sets:
        members = ["drawn_100" if args.choose else f"drawn_{seed}" for seed in DRAWINGS[: 1 if args.choose else None]] if name == "drawn" else [name]
        runs, sizes = [], []
        for member in members:
            data = prepare(member, args.folder)
            first, waiting, test = divide(data, 0)
            sizes = [len(first), len(waiting), len(test)]
            for seed in range(100 if args.choose else 0, (100 if args.choose else 0) + args.seeds):
                kept = args.folder / f"{member}-division-{seed}.json"  # a second call goes on
                if not kept.exists():
                    kept.write_text(json.dumps(one_division(data, seed)))
                runs.append(json.loads(kept.read_text()))
                print(member, seed, {arm: round(value, 4) for arm, value in runs[-1].items()}, flush=True)
        note = (f"{len(members)} x {args.seeds} divisions, which overlap within a set; about {sizes[0]} first labels, {sizes[1]} waiting, {sizes[2]} test photos; "
                f"{N_CHOSEN} labels added; probe on tf_efficientnet_lite0 with depths and maximum, C {C}; machine shared")
        report(name, runs, len(members), note, write=not args.choose)


if __name__ == "__main__":
    main()
