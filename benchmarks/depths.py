"""What a linear head gains by more than a network's last layer: several depths, the maximum, two networks, two sizes; and what each costs.

Features of a frozen network are fitted by the library's probe, in cross-validation inside the training photos alone: no photo of a `val` or `test` split is
opened. Copies of a photo stand in one fold. Every arm sees the same folds. Macro F1 is that of all held-out answers of one division; n divisions.
The seconds are those of the arm's own network on 32 prepared photos of the same size, arms interleaved.

Usage: python benchmarks/depths.py CACHE_FOLDER [--size 224] [--sets snakes_ph butterflies_noisy drawn] [--divisions 3] [--quick]; the photos are in
$SNAKECLS_REAL_DATA. `--quick` takes 40 photos of each class at most, at 128 px, and writes no rows."""
import argparse
import os
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from common import record
from nested import folds, group_copies
from sklearn.metrics import f1_score

from snakecls.data.demo.draw import make_demo
from snakecls.data.photos import PhotoError, PhotoSpec, open_photo
from snakecls.data.splits import split_table
from snakecls.data.tables import load_table
from snakecls.models.backbones import create_backbone
from snakecls.models.batches import PhotoBatches
from snakecls.models.features import batch_features
from snakecls.models.probe import fit_probe

PHOTOS = Path(os.environ.get("SNAKECLS_REAL_DATA", Path(__file__).parent.parent.parent / "shared" / "data"))
DEPTHS, SCALE, LITE0, LITE2 = [3, 4, 5, 6, 7], 0.75, "tf_efficientnet_lite0", "tf_efficientnet_lite2"
ALL = {"depths": DEPTHS, "maximum": True}
ARMS = {  # arm -> network, and what its classifier sees beside the last average
    "last average": (LITE0, {}),
    "+ depths": (LITE0, {"depths": DEPTHS}),
    "+ maximum": (LITE0, {"maximum": True}),
    "+ depths and maximum": (LITE0, ALL),
    "two sizes": (LITE0, {"scales": [SCALE]}),
    "two sizes, + depths and maximum": (LITE0, ALL | {"scales": [SCALE]}),
    "lite2": (LITE2, {}),
    "lite2, + depths and maximum": (LITE2, ALL),
    "two networks": (f"{LITE0}+{LITE2}", {}),
    "two networks, + depths and maximum": (f"{LITE0}+{LITE2}", ALL),
}


def read_set(name: str, cache: Path, most: int | None) -> pd.DataFrame:  # path, label
    "Give the training photos of a set, those that can be opened."
    if name == "drawn":
        folder = cache / "drawn"
        table = load_table(make_demo(folder, seed=100) / "photos.csv", target="binomial")
    else:
        table = load_table(PHOTOS / name)
    table = table if "split" in table else split_table(table, valid=0.2, seed=42)
    table = table[table["split"] == "train"].sort_values("path", ignore_index=True)
    table = table[[is_readable(path) for path in table["path"]]]
    table = table if most is None else table.groupby("label").head(most)
    return table[table.groupby("label")["label"].transform("size") >= 10].reset_index(drop=True)


def is_readable(path: str) -> bool:
    try:
        open_photo(path)
        return True
    except PhotoError:
        return False


def photo_spec(size: int) -> PhotoSpec:
    return PhotoSpec(size=size, mean=(0.5,) * 3, std=(0.5,) * 3)  # of all lite networks


def arm_network(arm: str) -> torch.nn.Module:
    arch, join = ARMS[arm]
    return create_backbone(arch, 2, **join).eval()


def read_features(table: pd.DataFrame, name: str, size: int, cache: Path) -> dict[str, np.ndarray]:  # part -> (2 views, n, n_features)
    "Compute the parts of which the arms are made, once: everything that each network says at each size."
    parts = {}
    for arch, scales in ((LITE0, [SCALE]), (LITE2, [])):
        file = cache / f"{name}-{arch}-{size}-{len(table)}.npy"
        model = create_backbone(arch, 2, **ALL, scales=scales)
        if not file.exists():
            features = batch_features(model, PhotoBatches(table["path"].tolist(), photo_spec(size)), flip=True, precision="fp32")
            np.save(file, features)
        n = model.num_features // (1 + len(scales))
        for scale, start in zip(("", *map(str, scales)), range(0, model.num_features, n)):
            own = model.members[0].num_features
            values = np.load(file)[..., start : start + n]
            parts |= {f"{arch} last{scale}": values[..., :own], f"{arch} maximum{scale}": values[..., own : 2 * own], f"{arch} depths{scale}": values[..., 2 * own :]}
    return parts


def arm_features(arm: str, parts: dict[str, np.ndarray]) -> np.ndarray:
    "Put together what an arm's classifier sees."
    archs, join = ARMS[arm]
    kinds = ["last", *(kind for kind in ("maximum", "depths") if join.get(kind))]
    return np.concatenate([
        parts[f"{arch} {kind}{scale}"] for scale in ("", *map(str, join.get("scales", []))) for arch in archs.split("+") for kind in kinds], -1)


def cross_validate(features: np.ndarray, targets: np.ndarray, groups: np.ndarray, division: int) -> float:  # macro F1
    "Answer every photo by a probe fitted without it and its copies."
    answers = np.zeros(len(targets), int)
    for fit, held in folds(targets, groups, 5, division):
        answers[held] = fit_probe(features[:, fit], targets[fit], n_classes=int(targets.max()) + 1).logits(features[:, held]).mean(0).argmax(1)
    return float(f1_score(targets, answers, average="macro"))


def seconds_per_photo(size: int, rounds: int) -> dict[str, list[float]]:  # arm -> ms
    "Time each arm's network on one batch, in turn."
    batch, times = torch.randn(32, 3, size, size), {arm: [] for arm in ARMS}
    networks = {arm: arm_network(arm) for arm in ARMS}
    for number in range(rounds + 1):
        for arm, network in networks.items():
            start = time.perf_counter()
            batch_features(network, [batch], precision="fp32")
            if number:  # the first warms up
                times[arm].append(1000 * (time.perf_counter() - start) / len(batch))
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cache", type=Path, help="folder for the features and the drawn photos")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--sets", nargs="+", default=["snakes_ph", "butterflies_noisy", "drawn"])
    parser.add_argument("--divisions", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=5, help="of timing; 0: none")
    parser.add_argument("--quick", action="store_true")
    args = parser.parse_args()
    args.cache.mkdir(parents=True, exist_ok=True)
    size, divisions, most = (128, 1, 40) if args.quick else (args.size, args.divisions, None)
    note, rows = f"{size} px", []
    for name in args.sets:
        table = read_set(name, args.cache, most)
        targets, groups = table["label"].astype("category").cat.codes.to_numpy(np.int64), group_copies(table)
        parts = read_features(table, name, size, args.cache)
        for arm in ARMS:
            features = arm_features(arm, parts)
            start = time.perf_counter()
            scores = [cross_validate(features, targets, groups, division) for division in range(divisions)]
            rows.append({"set": f"{name} ({len(table)})", "arm": arm, "F1": np.mean(scores), "sd": np.std(scores, ddof=1) if divisions > 1 else np.nan,
                         "features": features.shape[-1], "s a division": (time.perf_counter() - start) / divisions})
            print({key: round(value, 4) if isinstance(value, float) else value for key, value in rows[-1].items()}, flush=True)
            if not args.quick:
                record("depths", f"{name}, {arm}", scores, unit="macro F1", note=f"{note}, {len(table)} training photos, 5 folds inside them")
    for arm, times in seconds_per_photo(size, 1 if args.quick else args.rounds).items() if args.rounds else ():
        print(f"{arm}: {np.median(times):.1f} ms a photo", flush=True)
        if not args.quick:
            record("depths", arm, times, unit="ms a photo", note=f"{note}, batches of 32, one view")
    print(pd.DataFrame(rows).pivot(index="arm", columns="set", values="F1").reindex(ARMS).round(4).to_string())


if __name__ == "__main__":
    main()
