"""The experiment files of the five replaced systems on real photos, with networks that need no hub: `python benchmarks/strategies.py OUTPUT [NAME…] [--seed 0] [--threads N]`.

What is changed against the files stands in ARMS: tf_efficientnet_lite0 where a file asks for weights from the hub, 128 to 224 px, and butterflies in the place of iNaturalist 12K, which is not here.
A run that is there already is not run again; one seed each, so the interval is that of the photos (bootstrap), not of training."""
import argparse
import json
import os
from pathlib import Path

import torch
from common import record

from snakecls.core import UserError
from snakecls.experiment.file import load_experiment
from snakecls.workflow.run import run_experiment

FILES = Path(__file__).parent.parent / "experiments"
REAL = Path(os.environ.get("SNAKECLS_REAL_DATA", "../shared/data")).resolve()
LITE0, BUTTERFLIES, SCENES = "model.arch=tf_efficientnet_lite0", f"data.source={REAL / 'butterflies'}", f"data.source={REAL / 'scenes_multilabel' / 'miml_labels_1.csv'}"
FIVE_BLOCKS = ["model.arch=cnn", "model.weights=none", "model.kwargs={filters: 16, organisation: double, batch_norm: true}", "schedule.0.size=128", "schedule.0.freeze=none", "schedule.0.head=keep", "schedule.0.lr=auto", "schedule.0.epochs=6", "schedule.0.bs=32"]
INATURALIST = [BUTTERFLIES, "data.splits={valid: test}"]
ARMS: dict[str, tuple[str, list[str]]] = {  # name -> experiment file, what is changed
    "snakes, growing sizes, MixUp, albumentations": ("snakes_progressive", [f"data.source={REAL / 'snakes_ph'}", "schedule.2.size=224", "augment.presize=288"]),
    "butterflies, GoogLeNet by hand": ("butterflies_scratch", [BUTTERFLIES, "schedule.0.epochs=12", "schedule.1.epochs=5", "schedule.0.bs=32", "schedule.1.bs=32", "train.patience=3"]),
    "butterflies, the ConvNeXt recipe with lite0": ("butterflies_convnext", [BUTTERFLIES, LITE0, "train.precision=fp32+channels_last", "schedule.0.size=160", "schedule.1.size=160", "schedule.1.epochs=4", "schedule.0.bs=32", "schedule.1.bs=32", "train.ema=0.99"]),
    "iNaturalist's five blocks, on butterflies": ("inaturalist_cnn", [*INATURALIST, "model.kwargs={filters: 16, organisation: double, batch_norm: true}", "schedule.0.bs=32", "schedule.0.epochs=6"]),
    "iNaturalist's head only, on butterflies": ("inaturalist_head", [*INATURALIST, "schedule.0.size=128", "schedule.0.bs=32", "schedule.0.epochs=4"]),
    "iNaturalist's blocks from 3 on, on butterflies": ("inaturalist_block2", [*INATURALIST, "schedule.0.size=128", "schedule.1.size=128", "schedule.1.epochs=3", "schedule.1.bs=32"]),
    "checkboxes, SGD and early stopping with lite0": ("checkboxes_resnet50", [f"data.source={REAL / 'checkboxes'}", LITE0, "schedule.0.size=160", "schedule.0.bs=32"]),
    **{f"scenes, {name}, {optimiser}": ("scenes_multilabel", [SCENES, f"train.optimiser={optimiser}", *changes])
       for name, changes in (("lite0", ["schedule.0.size=128", "schedule.0.lr=auto", "schedule.0.bs=32", "schedule.0.epochs=4", "train.patience=2"]), ("five blocks", FIVE_BLOCKS)) for optimiser in ("sgd", "adamw", "adadelta")},
}


def run(folder: Path, name: str, seed: int) -> dict:  # metrics.json
    "Run an arm, or read what it said before."
    file, changes = ARMS[name]
    kept = folder / f"{name.replace(' ', '_')}-{seed}.json"
    if not kept.exists():
        experiment = load_experiment(FILES / f"{file}.yaml", overrides=[*changes, f"seed={seed}", "track=[]"])
        result = run_experiment(experiment, root=folder / "runs", logbook=None)
        kept.write_text(json.dumps(result.metrics | {"threads": torch.get_num_threads()}))
    return json.loads(kept.read_text())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("names", nargs="*", default=list(ARMS), metavar="NAME", help="; ".join(ARMS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, help="of torch")
    parser.add_argument("--run-only", action="store_true", help="Run what is missing, record later (several processes can share the arms).")
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    if args.threads:
        torch.set_num_threads(args.threads)
    for name in args.names:
        try:
            metrics = run(args.folder, name, args.seed)
        except UserError as e:
            print(f"{name}: {e}", flush=True)
            continue
        if args.run_only:
            continue
        test = metrics["test"]
        low, high = test["f1_macro_interval"]
        others = ", ".join(f"{key} {value:.4f}" for key, value in test.items() if key not in ("n", "loss", "f1_macro", "f1_macro_interval"))
        note = f"validation {metrics['valid']['f1_macro']:.4f} (n {metrics['valid']['n']}); n {test['n']} test photos, interval {low:.3f} to {high:.3f}; {others}; {metrics['seconds']:.0f} s with {metrics['threads']} thread(s), {metrics['parameters'] / 1e6:.1f} million parameters, bundle {metrics['bundle_mb']:.1f} MB; {metrics['message']}"
        record("strategies", name, [test["f1_macro"]], unit="test macro F1", note=f"seed {args.seed}; {note}")
        print(f"  {note}")


if __name__ == "__main__":
    main()
