"""Photos a second through training steps: `precision: auto` beside fastai's default (fp32, no memory format), and epochs with and without what is frozen kept.

    python benchmarks/train_step.py [--networks NAME …] [--compile] [--quick]

Steps are those of a fastai Learner on batches in memory (16 photos of 128 px), arms in turn; what `auto` chooses is measured before, and told with its time.
`--compile` lets `auto` compile, too. The epochs are of `tf_efficientnet_lite0` on 128 drawn photos without augmentation, three for each arm after a first one,
with the frozen part computed in every epoch or kept at the cut (`train.cut_cache`). Rows go to results.csv; it ends with 1 where `auto` is more than
5 % slower than fastai."""
import argparse
import os
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from common import record
from fastai.callback.core import Callback
from fastai.callback.progress import ProgressCallback
from fastai.data.core import DataLoaders
from fastai.learner import Learner
from fastai.losses import CrossEntropyLossFlat

from snakecls.data.augmentation import Augment
from snakecls.data.datablocks import photo_dls
from snakecls.data.demo.draw import make_demo
from snakecls.data.tables import load_table
from snakecls.models.backbones import create_backbone
from snakecls.models.freezing import n_frozen_groups, stage_groups
from snakecls.train.callbacks import FrozenBatchNorm
from snakecls.train.cut_cache import CutCache
from snakecls.train.precision import compile_model
from snakecls.train.precision_choice import choose_precision

SIZE, BS, N_CLASSES = 128, 16, 10
NETWORKS = ["tf_efficientnet_lite0", "resnet18", "convnext_atto", "vit_tiny_patch16_224"]


class Batches:
    "Batches in memory, as a loader."

    def __init__(self, size: int, n: int):
        self.batch, self.n = (torch.randn(BS, 3, size, size), torch.randint(0, N_CLASSES, (BS,))), n
        self.bs, self.dataset, self.device = BS, list(range(BS * n)), torch.device("cpu")

    def __len__(self) -> int:
        return self.n

    def __iter__(self):
        return iter([self.batch] * self.n)

    def to(self, device):
        return self


def make_learner(arch: str, size: int, n_steps: int) -> Learner:
    "Make a plain Learner of a network."
    torch.manual_seed(0)
    loaders = DataLoaders(Batches(size, n_steps), Batches(size, 0))
    learn = Learner(loaders, create_backbone(arch, N_CLASSES, weights="none"), loss_func=CrossEntropyLossFlat(), path=tempfile.gettempdir())
    learn.remove_cb(ProgressCallback) if hasattr(learn, "progress") else None
    learn.logger = lambda *args: None
    return learn


def rate_of(learn: Learner, n_steps: int, *cbs: Callback) -> float:  # photos a second
    "Train an epoch."
    start = time.perf_counter()
    learn.fit(1, 1e-4, cbs=list(cbs))
    return BS * n_steps / (time.perf_counter() - start)


def measure_steps(arch: str, args: argparse.Namespace) -> bool:  # whether `auto` is no slower
    "Measure a network's steps in turn."
    size = 224 if arch.endswith("_224") else SIZE
    n_steps, rounds = (2, 2) if args.quick else (4, 5)
    plain, own = make_learner(arch, size, n_steps), make_learner(arch, size, n_steps)
    start = time.perf_counter()
    choice = choose_precision(own.model, size, bs=BS, compile=args.compile)
    chosen_in = time.perf_counter() - start
    if choice.compiled:
        compile_model(own)
    arms: dict[str, Callable[[], float]] = {
        "fastai": lambda: rate_of(plain, n_steps), "auto": lambda: rate_of(own, n_steps, choice.callback()),
    }
    rates: dict[str, list[float]] = {name: [] for name in arms}
    for turn in range(1 + rounds):  # the first one warms up
        for name, run in arms.items():
            rate = run()
            if turn:
                rates[name].append(rate)
    ratios = [own / fastai for own, fastai in zip(rates["auto"], rates["fastai"])]
    note = (f"{choice.best}{', compiled' * choice.compiled}, chosen in {chosen_in:.0f} s; ratio to fastai {statistics.median(ratios):.2f} "
            f"({min(ratios):.2f} to {max(ratios):.2f})")
    print(f"{arch}: {note}", flush=True)
    if not args.quick:
        record("train_step", f"{arch} {size} px, fastai", rates["fastai"], unit="photos/s")
        record("train_step", f"{arch} {size} px, precision: auto", rates["auto"], unit="photos/s", note=note)
    return statistics.median(ratios) >= 0.95


class Clock(Callback):
    "Note how long each epoch takes."
    order = 90

    def before_epoch(self):
        self.start = time.perf_counter()

    def after_epoch(self):
        self.seconds = getattr(self, "seconds", []) + [time.perf_counter() - self.start]


def measure_epochs(args: argparse.Namespace) -> None:
    "Measure epochs with the frozen part kept, and without."
    with tempfile.TemporaryDirectory() as folder:
        os.environ["SNAKECLS_CACHE"] = f"{folder}/cache"
        table = load_table(make_demo(Path(folder) / "demo", n_per_species=4 if args.quick else 14, size_px=160) / "photos.csv", target="binomial")
        for freeze in (2, 4, "body"):
            seconds: dict[str, list[float]] = {}
            for _ in range(1 if args.quick else 3):
                for name, cbs in (("computed", []), ("kept", [CutCache()])):
                    torch.manual_seed(0)
                    model = create_backbone("tf_efficientnet_lite0", table["label"].nunique())
                    dls = photo_dls(table, SIZE, bs=BS, augment=Augment(backend="none"), network=model, device="cpu")
                    learn = Learner(dls, model, splitter=stage_groups, train_bn=False, cbs=[FrozenBatchNorm("all"), Clock()], path=folder)
                    learn.freeze_to(n_frozen_groups(model, freeze))
                    with learn.no_bar(), learn.no_logging():
                        learn.fit(4, 1e-4, cbs=cbs)
                    seconds.setdefault(name, []).extend(learn.clock.seconds[1:])
            ratio = statistics.median(seconds["computed"]) / statistics.median(seconds["kept"])
            print(f"frozen {freeze}: an epoch is {ratio:.1f} x faster", flush=True)
            for name, values in seconds.items():
                if not args.quick:
                    record("train_step", f"an epoch, frozen {freeze}, {name}", values, unit="s", note=f"{ratio:.2f} x faster where it is kept")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", default=NETWORKS)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--quick", action="store_true", help="one network, two rounds; nothing is recorded")
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    held = [measure_steps(arch, args) for arch in (args.networks[:1] if args.quick else args.networks)]
    measure_epochs(args)
    return 0 if all(held) else 1


if __name__ == "__main__":
    raise SystemExit(main())
