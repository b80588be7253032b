"""14 Philippine snakes: the experiment file and plain fastai, seed by seed in turn, scored on the val photos that neither has seen.

Usage: python benchmarks/snakes_ph.py OUTPUT_FOLDER [SEEDS] [--without-fastai]; the photos are in $SNAKECLS_REAL_DATA/snakes_ph."""
import argparse
import os
import time
from pathlib import Path

import numpy as np
from common import record

ROOT = Path(__file__).parent.parent
PHOTOS = Path(os.environ.get("SNAKECLS_REAL_DATA", ROOT.parent / "shared" / "data")) / "snakes_ph"


def run_ours(folder: Path, seed: int) -> dict:
    "Run experiments/snakes_ph.yaml with a seed (of the split and the training)."
    from snakecls.experiment.file import load_experiment
    from snakecls.workflow.run import run_experiment

    experiment = load_experiment(ROOT / "experiments" / "snakes_ph.yaml", overrides=[f"seed={seed}", f"data.source={PHOTOS}"])
    start = time.perf_counter()
    result = run_experiment(experiment, root=folder / "runs", logbook=folder / "logbook.md", command=f"python benchmarks/snakes_ph.py OUTPUT {seed}")
    return result.metrics["test"] | {"seconds": time.perf_counter() - start, "valid_f1": result.metrics["valid"]["f1_macro"], "probe_f1": (result.metrics["probe"] or {}).get("f1_macro")}


def run_fastai(seed: int) -> dict:
    "What the fastai course does: vision_learner, fine_tune(3) at 224 px, the same weights, all of train."
    from fastai.vision.all import ImageDataLoaders, Normalize, Resize, accuracy, aug_transforms, get_image_files, set_seed, vision_learner

    from snakecls.models.backbones import create_backbone
    from snakecls.train.metrics import classification_metrics

    start = time.perf_counter()
    set_seed(seed, reproducible=True)
    dls = ImageDataLoaders.from_folder(PHOTOS, train="train", valid="val", item_tfms=Resize(256), bs=32, seed=seed,
                                         batch_tfms=[*aug_transforms(size=224), Normalize.from_stats([0.5] * 3, [0.5] * 3)])  # vision_learner adds it only where it fetches the weights itself
    learn = vision_learner(dls, "tf_efficientnet_lite0", pretrained=False, metrics=accuracy)
    body = {name: tensor for name, tensor in create_backbone("tf_efficientnet_lite0", 2).state_dict().items() if not name.startswith("classifier")}
    learn.model[0].model.load_state_dict(body, strict=False)
    learn.freeze()
    with learn.no_bar():
        learn.fine_tune(3)
        probs, targets = learn.get_preds()
    assert len(get_image_files(PHOTOS / "val")) == len(targets)
    return classification_metrics(targets.numpy(), probs.numpy()) | {"seconds": time.perf_counter() - start}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--without-fastai", action="store_true")
    parser.add_argument("--only-fastai", action="store_true")
    args = parser.parse_args()
    arms: dict[str, list[dict]] = {}
    for seed in args.seeds:
        if not args.only_fastai:
            arms.setdefault("experiments/snakes_ph.yaml", []).append(run_ours(args.folder, seed))
        if not args.without_fastai:
            arms.setdefault("plain fastai, vision_learner + fine_tune(3)", []).append(run_fastai(seed))
    for arm, rows in arms.items():
        for key in ("f1_macro", "top3_accuracy", "seconds", "valid_f1", "probe_f1"):
            if all(row.get(key) is not None for row in rows):
                record("snakes_ph", arm, [float(np.round(row[key], 4)) for row in rows], unit=key, note=f"208 val photos, seeds {args.seeds}")


if __name__ == "__main__":
    main()
