"""Training photos a second into the model, first epoch and later ones, beside fastai's DataLoader and torchvision's transforms.

    python benchmarks/loader.py            # 400 x 533 and 12 megapixels, arms in turn, 5 rounds
    python benchmarks/loader.py --quick    # few photos, 2 rounds, nothing is recorded

All arms read the same JPEG files to normalised float batches of 32 at 224 px on the CPU. fastai and torchvision have a loading process
for each core, which is fastai's default (`--workers` for another number); snakecls has its own default, threads.
fastai and snakecls change photos in the same ways (presize 280, `aug_transforms` with rotation, zoom, warp, light and a random crop);
torchvision's arm is its usual recipe (`RandomResizedCrop`, `RandomHorizontalFlip`), which changes less. The cache is new in each round.
"""
import argparse
import os
import random
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from common import record
from fastai.vision.all import ImageDataLoaders, Normalize, Resize, aug_transforms, imagenet_stats
from PIL import Image
from torchvision import transforms as tv

from snakecls.data.augmentation import Augment
from snakecls.data.datablocks import photo_dls
from snakecls.data.demo.drawing import draw_snake
from snakecls.data.image_cache import ImageCache
from snakecls.data.photos import PhotoSpec
from snakecls.data.transforms import train_view

SIZE, BS, AUGMENT = 224, 32, Augment()
SHAPES = {"400 x 533": (400, 533), "12 MP": (4000, 3000)}


def draw_files(folder: Path, shape: tuple[int, int], n: int) -> pd.DataFrame:
    "Draw photos with the grain of a camera; no two files are alike."
    folder.mkdir()
    rng, drawn, rows = np.random.default_rng(0), [], []
    for seed in range(4):
        snake = draw_snake("Vipera berus", seed=seed, size_px=500).resize(shape, Image.Resampling.BICUBIC)
        grain = rng.normal(0, 6, (shape[1], shape[0], 1))
        drawn.append(np.clip(np.asarray(snake) + grain, 0, 255).astype(np.uint8))
    for number in range(n):
        file = folder / f"{number}.jpg"
        Image.fromarray(np.roll(drawn[number % 4], (7 * number, 13 * number), (0, 1))).save(file, quality=90)
        rows.append({"path": str(file), "label": "ab"[number % 2], "split": "train"})
    return pd.concat([pd.DataFrame(rows), pd.DataFrame(rows[:4]).assign(split="valid")], ignore_index=True)


def fastai_loader(table: pd.DataFrame, workers: int) -> Iterable:
    "Make fastai's loader: presizing and its batch transforms, as its course has them."
    changes = aug_transforms(size=SIZE, min_scale=AUGMENT.min_scale, max_rotate=AUGMENT.max_rotate, max_zoom=AUGMENT.max_zoom,
                             max_lighting=AUGMENT.max_lighting, max_warp=AUGMENT.max_warp)
    table = table.assign(valid=table["split"] == "valid")
    return ImageDataLoaders.from_df(table, path="/", fn_col="path", label_col="label", valid_col="valid", item_tfms=Resize(AUGMENT.presize_for(SIZE)),
                                    batch_tfms=[*changes, Normalize.from_stats(*imagenet_stats)], bs=BS, num_workers=workers, device="cpu").train


class Files(torch.utils.data.Dataset):
    "torchvision's part: a file, opened as its `ImageFolder` does."

    def __init__(self, table: pd.DataFrame):
        self.paths = table.loc[table["split"] == "train", "path"].tolist()
        self.change = tv.Compose([tv.RandomResizedCrop(SIZE, scale=(AUGMENT.min_scale, 1)), tv.RandomHorizontalFlip(), tv.ToTensor(),
                                  tv.Normalize(*imagenet_stats)])

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, place: int) -> tuple[torch.Tensor, int]:
        with open(self.paths[place], "rb") as file:
            return self.change(Image.open(file).convert("RGB")), place % 2


def torchvision_loader(table: pd.DataFrame, workers: int) -> Iterable:
    "Make torch's DataLoader with torchvision's transforms."
    return torch.utils.data.DataLoader(Files(table), BS, shuffle=True, drop_last=True, num_workers=workers, persistent_workers=workers > 0)


def own_loader(table: pd.DataFrame, workers: int) -> Iterable:
    "Make this library's loader, as it comes, with a new cache."
    cache = ImageCache(train_view(SIZE, AUGMENT, PhotoSpec(SIZE)), tempfile.mkdtemp(dir=Path(table["path"][0]).parent.parent))
    return photo_dls(table, SIZE, bs=BS, cache=cache, device="cpu").train


def without_cache(table: pd.DataFrame, workers: int) -> Iterable:
    "Make this library's loader without a cache."
    return photo_dls(table, SIZE, bs=BS, device="cpu").train


ARMS: dict[str, Callable] = {"fastai": fastai_loader, "torchvision": torchvision_loader, "snakecls": own_loader, "snakecls, no cache": without_cache}


def read_epoch(loader: Iterable) -> float:  # photos a second
    "Read an epoch, and look at every batch."
    start, n = time.perf_counter(), 0
    for batch in loader:
        n += len(batch[0])
        assert batch[0].shape[1:] == (3, SIZE, SIZE) and batch[0].dtype == torch.float32
    return n / (time.perf_counter() - start)


def measure(table: pd.DataFrame, workers: int, rounds: int) -> dict[tuple[str, str], list[float]]:
    "Read a first and a second epoch with every arm in turn, in an order that changes."
    rates: dict[tuple[str, str], list[float]] = {}
    for _ in range(rounds):
        for name in random.sample(list(ARMS), len(ARMS)):
            loader = ARMS[name](table, workers)
            for epoch in ("first epoch", "later epochs"):
                rates.setdefault((name, epoch), []).append(read_epoch(loader))
            del loader
    return rates


def main() -> None:
    "Measure and record."
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--rounds", type=int)
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    random.seed(0)
    rounds = args.rounds or (2 if args.quick else 5)
    with tempfile.TemporaryDirectory() as scratch:
        for what, shape in SHAPES.items():
            n = (96 if args.quick else 512) if what != "12 MP" else (32 if args.quick else 96)
            rates = measure(draw_files(Path(scratch) / what, shape, n), args.workers, rounds)
            for (name, epoch), values in rates.items():
                ratios = sorted(own / peer for own, peer in zip(values, rates["fastai", epoch]))
                note = f"{n} JPEG, {args.workers} processes for the peers; ratio to fastai {statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})"
                print(f"{what}, {epoch}, {name}: {statistics.median(values):.0f} a second, {note}", flush=True)
                if not args.quick:
                    record("loader", f"{what}, {epoch}, {name}", values, unit="photos/s", note=note)


if __name__ == "__main__":
    main()
