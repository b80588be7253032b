"""A batch that is changed in one step is changed as fastai would have changed it."""
import random

import numpy as np
import pandas as pd
import pytest
import torch
from fastai.vision.core import TensorImage
from PIL import Image

from snakecls.data import transforms
from snakecls.data.augmentation import Augment
from snakecls.data.datablocks import photo_dls
from snakecls.data.demo.drawing import draw_snake
from snakecls.data.transforms import SampleSeeds

OFF = {"max_rotate": 0.0, "max_zoom": 1.0, "max_lighting": 0.0, "max_warp": 0.0, "flip": False}


@pytest.fixture(scope="module")
def batch() -> TensorImage:
    photos = [draw_snake("Vipera berus", seed=seed, size_px=100).resize((150, 150), Image.Resampling.BICUBIC) for seed in range(6)]
    return TensorImage(torch.tensor(np.stack([np.asarray(photo) for photo in photos])).permute(0, 3, 1, 2).contiguous())


def both(monkeypatch, batch: TensorImage, augment: Augment, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    "Change a batch in one step and as fastai does, as bytes."
    results = []
    for is_fast in (True, False):
        if not is_fast:
            monkeypatch.setattr(transforms, "can_warp", lambda batch, tfms: False)
        tfm = transforms._fastai_batch_tfms(size, augment, SampleSeeds(3))[0]
        random.seed(1), torch.manual_seed(1)
        out = tfm(batch, split_idx=0)
        assert out.dtype == (torch.uint8 if is_fast else torch.float32)
        results.append(torch.Tensor(out).float() if is_fast else 255 * torch.Tensor(out))
        results[-1].next_number = (random.random(), torch.rand(1).item())
    assert results[0].next_number == results[1].next_number
    return results[0], results[1]


@pytest.mark.parametrize("change", [{}, {"flip_vertical": True}, {"min_scale": 1.0}, {"max_lighting": 0.0}, OFF | {"flip": True}, OFF | {"max_warp": 0.3},
                                    OFF | {"max_rotate": 90.0}, OFF | {"max_zoom": 1.5}, OFF | {"max_lighting": 0.6}, OFF])
def test_every_change_is_fastais(monkeypatch, batch, change):
    one, other = both(monkeypatch, batch, Augment(**change), 120)
    assert one.shape == other.shape == (6, 3, 120, 120)
    assert (one - other).abs().mean() < 4 and (one - 255 * (other / 255).roll(3, -1)).abs().mean() > 2 * (one - other).abs().mean()


def test_a_flat_photo_is_fastais_to_a_step_of_brightness(monkeypatch):
    ramp = TensorImage((torch.arange(150) + 50)[None, None, :, None].expand(6, 3, 150, 150).contiguous().byte())
    one, other = both(monkeypatch, ramp, Augment(max_warp=0.05, max_rotate=5.0, max_zoom=1.0, min_scale=0.9), 120)
    inside = (one - other)[..., 12:-12, 12:-12].abs()  # beyond, what is mirrored at the border is mirrored twice or once
    assert inside.max() <= 1.6


def test_what_is_unknown_is_left_to_fastai(monkeypatch, batch):
    seen = []
    monkeypatch.setattr(transforms, "warp_batch", lambda batch, tfms: seen.append(batch))
    tfm = transforms._fastai_batch_tfms(60, Augment(), SampleSeeds(3))[0]  # fastai averages before it shrinks by more than two
    assert tfm(batch, split_idx=0).dtype == torch.float32
    tfm = transforms._fastai_batch_tfms(120, Augment(), SampleSeeds(3))[0]
    assert tfm(TensorImage(batch.float() / 255), split_idx=0).dtype == torch.float32 and not seen


def test_loaders_give_the_same_numbers_either_way_and_still_fork(monkeypatch, tmp_path):
    rows = []
    for number in range(8):
        draw_snake("Vipera berus", seed=number, size_px=160).save(tmp_path / f"{number}.png")
        rows.append({"path": str(tmp_path / f"{number}.png"), "label": "ab"[number % 2], "split": "train" if number < 6 else "valid"})
    batches = []
    for is_fast in (True, False):
        for workers in (0, 2):
            if not is_fast:
                monkeypatch.setattr(transforms, "can_warp", lambda batch, tfms: False)
            augment = Augment(backend="fastai" if workers == 0 or not is_fast else "albumentations")  # which uses OpenCV in its processes
            dls = photo_dls(pd.DataFrame(rows), 64, bs=6, augment=Augment(), num_workers=0)
            batches.append(dls.train.one_batch()[0])
            if is_fast and workers:
                assert len(list(photo_dls(pd.DataFrame(rows), 64, bs=6, augment=augment, num_workers=2).train)) == 1
    assert all(batch.dtype == torch.float32 for batch in batches) and (batches[0] == batches[1]).all()
    assert (batches[0] - batches[2]).abs().mean() < 0.15 < (batches[0] - batches[2].flip(-1)).abs().mean()
