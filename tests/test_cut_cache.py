"""What is frozen is computed once: the training that follows is the ordinary one, whatever network, loader or callback takes part."""
import errno
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import timm
import torch
from fastai.callback.core import Callback, CancelBatchException, CancelEpochException, CancelFitException, CancelTrainException, CancelValidException
from fastai.callback.training import GradientAccumulation
from fastai.learner import Learner

from snakecls.core import gather_notes, seed_everything
from snakecls.data.augmentation import Augment
from snakecls.data.datablocks import photo_dls
from snakecls.data.demo.draw import make_demo
from snakecls.data.tables import load_table
from snakecls.disk import cache_folder
from snakecls.models.backbones import create_backbone
from snakecls.models.cut import NoCutError, find_cut
from snakecls.models.freezing import freeze_groups, n_frozen_groups, stage_groups
from snakecls.train.averaging import ExponentialMovingAverage
from snakecls.train.callbacks import FlipAverage, FrozenBatchNorm
from snakecls.train.cut_cache import CutCache
from snakecls.train.metrics import epoch_metrics
from snakecls.train.monitoring import SaveBestF1
from snakecls.train.precision import PrecisionCallback
from snakecls.train.schedules import progressive_fit
from snakecls.train.stages import Stage
from snakecls.train.unfreezing import GradualUnfreezing


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> pd.DataFrame:
    folder = make_demo(tmp_path_factory.mktemp("demo"), n_per_species=11, size_px=80, species=["Bungarus fasciatus", "Vipera berus", "Natrix natrix"], seed=2)
    return load_table(folder / "photos.csv", target="binomial")


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SNAKECLS_CACHE", str(tmp_path / "cache"))


def make_learner(table: pd.DataFrame, path: Path, *cbs, freeze: str | int = 4, augment: str = "none", weights: str = "none", arch: str = "tf_efficientnet_lite0", **loading) -> Learner:
    "A Learner whose lower blocks are frozen, the same each time."
    seed_everything(0)
    several = "labels" in table
    model = create_backbone(arch, 3, weights=weights)
    dls = photo_dls(table, 64, bs=4, augment=Augment(backend=augment), network=model, device="cpu", **loading)
    kind = {"problem": dls.problem}
    learn = Learner(dls, model, metrics=epoch_metrics(**kind), splitter=stage_groups, cbs=[FrozenBatchNorm("all"), *cbs], train_bn=False, path=path,
                    **({"loss_func": torch.nn.BCEWithLogitsLoss()} if several else {}))
    learn.freeze_to(n_frozen_groups(model, freeze))
    return learn


def fit(learn: Learner, epochs: int = 3, *cbs) -> np.ndarray:  # training and validation loss of each epoch
    seed_everything(1)
    with learn.no_bar(), learn.no_logging():
        learn.fit(epochs, 1e-4, cbs=list(cbs))
    return np.array([[float(value) for value in row[:2]] for row in learn.recorder.values if len(row) > 1])


def weights(learn: Learner) -> torch.Tensor:
    return torch.cat([p.detach().float().flatten() for p in learn.model.state_dict().values()])


def assert_clean(learn: Learner) -> None:
    "Nothing of the cut is left in the network, and no file."
    assert [name for name, module in learn.model.named_modules() if "forward" in vars(module) or module._forward_pre_hooks or module._forward_hooks] == []
    assert not cache_folder("activations").exists() or list(cache_folder("activations").iterdir()) == []


@pytest.mark.parametrize("arch", ["resnet18", "tf_efficientnet_lite0", "mobilenetv3_small_050", "convnext_atto", "vit_tiny_patch16_224", "swin_tiny_patch4_window7_224",
                                  "densenet121", "regnetx_002", "mobilevit_xxs", "deit_tiny_distilled_patch16_224", "mixer_s32_224", "googlenet_scratch", "cnn"])
@pytest.mark.parametrize("freeze", [0, 1, "body"])
def test_a_network_answers_from_its_cut(arch, freeze):
    known = arch in ("googlenet_scratch", "cnn")
    model = create_backbone(arch, 3, weights="none") if known else timm.create_model(arch, num_classes=3)
    size = 224 if arch.endswith("_224") or arch == "cnn" else 96
    freeze_groups(model.eval(), freeze)
    photos = torch.randn(3, 3, size, size)
    try:
        cut = find_cut(model, photos[:2])
    except NoCutError as e:
        assert (freeze != "body" or "distilled" in arch) and str(e).endswith("."), (arch, freeze, e)  # which has two heads, two doors
        pytest.skip(f"{arch} has no cut behind {freeze}: {e}")
    with torch.no_grad():
        whole = model(photos)
        kept = cut.activations(photos)
        with cut.above():
            above = model(kept)
    for one, two in zip(*([each] if isinstance(each, torch.Tensor) else each for each in (whole, above))):
        assert torch.allclose(one, two, rtol=1e-4, atol=1e-5)
    assert all(p.requires_grad for p in cut.at.parameters())


def test_most_networks_have_a_cut_behind_their_first_block():
    found = []
    for arch in ("resnet18", "tf_efficientnet_lite0", "mobilenetv3_small_050", "convnext_atto", "vit_tiny_patch16_224", "regnetx_002"):
        model = timm.create_model(arch, num_classes=3).eval()
        freeze_groups(model, 1)
        found.append(find_cut(model, torch.randn(2, 3, 224, 224)).name)
    assert len(found) == 6 and "" not in found


SETTINGS = {
    "as it comes": {},
    "head alone": {"freeze": "body"},
    "two processes": {"num_workers": 2},
    "oversampled": {"oversample": 1.0},
    "gradients of two batches": {"cbs": [lambda: GradientAccumulation(8)]},
    "averaged": {"cbs": [lambda: ExponentialMovingAverage(0.9)]},
    "channels last": {"cbs": [lambda: PrecisionCallback(channels_last=True)]},
    "bf16": {"arch": "test_efficientnet", "cbs": [lambda: PrecisionCallback("bf16")], "eps": 0.02},  # slow where it is played
    "validated in float32": {"arch": "test_efficientnet", "cbs": [lambda: PrecisionCallback("bf16", in_validation=False)], "eps": 0.02},
    "mirrored in validation": {"cbs": [FlipAverage]},
    "the best is kept": {"cbs": [lambda: SaveBestF1(verbose=False)]},
    "unfrozen on the way": {"cbs": [lambda: GradualUnfreezing(4)], "freeze": "body"},
}


@pytest.mark.parametrize("how", list(SETTINGS))
def test_the_training_is_the_ordinary_one(photos, tmp_path, how):
    settings = dict(SETTINGS[how])
    cbs, eps = settings.pop("cbs", []), settings.pop("eps", 1e-5)
    if how == "oversampled":  # of one class few photos, so that epochs draw some of them several times
        rare = photos["label"] == photos["label"].unique()[0]
        photos = photos[~(rare & (photos.groupby("label").cumcount() > 4))].reset_index(drop=True)
    plain, kept, cache = make_learner(photos, tmp_path, **settings), make_learner(photos, tmp_path, **settings), CutCache()
    expected, got = fit(plain, 4, *(make() for make in cbs)), fit(kept, 4, *(make() for make in cbs), cache)
    assert np.allclose(expected, got, rtol=eps, atol=eps), (expected, got, cache.message)
    assert torch.allclose(weights(plain), weights(kept), rtol=10 * eps, atol=10 * eps)
    assert ("trained only what is above" in cache.message) == (how != "unfrozen on the way"), cache.message
    assert_clean(kept)


def test_several_labels(photos, tmp_path):
    table = photos.assign(labels=[[label, "wild"] if i % 2 else [label] for i, label in enumerate(photos["label"])]).drop(columns="label")
    table = table[table["labels"].map(lambda labels: labels[0] != table["labels"].iloc[0][0])].reset_index(drop=True)
    losses = [fit(make_learner(table, tmp_path, target="labels"), 3, *cache) for cache in ([], [CutCache()])]
    assert np.allclose(*losses, rtol=1e-5, atol=1e-5)


def test_half_of_the_bytes_cost_no_half_of_a_point(photos, tmp_path):
    plain, kept, cache = make_learner(photos, tmp_path, weights="auto"), make_learner(photos, tmp_path, weights="auto"), CutCache(precision="bf16")
    expected, got = fit(plain, 6), fit(kept, 6, cache)
    assert np.allclose(expected, got, rtol=0.08) and not np.array_equal(expected, got)
    names = plain.recorder.metric_names
    place = names.index("f1_macro") - 1
    assert abs(plain.recorder.values[-1][place] - kept.recorder.values[-1][place]) <= 0.005


class Interrupt(Callback):
    "Raise once: at an event, in an epoch, in its third batch where it is a batch's event."
    order = 90

    def __init__(self, event: str, exception: BaseException, epoch: int):
        self.exception, self.at_epoch = exception, epoch
        setattr(self, event, self.strike)

    def strike(self):
        there = self.training != isinstance(self.exception, CancelValidException)
        if self.epoch == self.at_epoch and self.exception is not None and self.iter >= 1 and there:
            exception, self.exception = self.exception, None
            raise exception


@pytest.mark.parametrize("epoch", [0, 1])
@pytest.mark.parametrize("event, exception", [
    ("before_batch", CancelBatchException), ("after_pred", CancelBatchException), ("after_loss", CancelTrainException), ("after_pred", CancelValidException),
    ("after_backward", CancelEpochException), ("after_pred", CancelFitException), ("after_pred", RuntimeError), ("before_batch", KeyboardInterrupt),
])
def test_whatever_ends_a_fit_nothing_is_left(photos, tmp_path, event, exception, epoch):
    cache, learn = CutCache(), make_learner(photos, tmp_path)
    try:
        fit(learn, 3, cache, Interrupt(event, exception("stop"), epoch))
    except (RuntimeError, KeyboardInterrupt):
        cache.undo()  # as our own fits do (`undone_after_error`)
    assert_clean(learn)
    plain = make_learner(photos, tmp_path)
    plain.model.load_state_dict(learn.model.state_dict())
    plain.dls.train.seeds.epoch = learn.dls.train.seeds.epoch
    plain.create_opt(), learn.create_opt()
    plain.freeze_to(5), learn.freeze_to(5)
    assert np.allclose(fit(plain, 3), fit(learn, 3, cache), rtol=1e-5, atol=1e-5)


def test_a_photo_that_vanishes_is_still_known(photos, tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    table = photos.assign(path=[str(folder / f"{i}.png") for i in range(len(photos))])
    for old, new in zip(photos["path"], table["path"]):
        Path(new).write_bytes(Path(old).read_bytes())

    class Vanish(Callback):
        "Remove all photos after the second epoch."
        def after_epoch(self):
            if self.epoch == 1:
                for path in table["path"]:
                    os.remove(path)

    plain, kept = make_learner(table, tmp_path), make_learner(table, tmp_path)
    expected = fit(plain, 4)
    assert np.allclose(expected, fit(kept, 4, CutCache(), Vanish()), rtol=1e-5, atol=1e-5)


def test_a_full_disk_is_told_and_the_training_goes_on(photos, tmp_path, monkeypatch):
    plain, kept, cache = make_learner(photos, tmp_path), make_learner(photos, tmp_path), CutCache()
    expected = fit(plain, 2)

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    assert np.allclose(expected, fit(kept, 2, cache), rtol=1e-5, atol=1e-5)
    assert cache.message.endswith("GB, and No space left on device.") and "view(s) have at" in cache.message
    assert_clean(kept)


def test_a_schedule_keeps_what_its_stages_freeze(photos, tmp_path):
    stages = [Stage(64, epochs=3, freeze=3, lr=1e-3), Stage(80, epochs=2, freeze="body", lr=1e-3)]
    results = {}
    for views in (None, 0):
        learn = make_learner(photos, tmp_path, freeze="none")
        seed_everything(3)
        results[views] = progressive_fit(learn, [stage.replace(cached_views=views) for stage in stages], batch_norm="all")
    rows, plain = (pd.DataFrame(results[views].rows)[["train_loss", "valid_loss", "f1_macro"]].to_numpy(float) for views in (None, 0))
    assert np.allclose(rows, plain, rtol=1e-4, atol=1e-5)
    assert results[None].message.count("trained only what is above") == 2 and "above" not in results[0].message
    assert [stage.get("cached", "") != "" for stage in results[None].stages] == [True, True]


def test_views_take_turns_and_idle_ones_are_told(photos, tmp_path):
    learn, cache = make_learner(photos, tmp_path, augment="fastai"), CutCache(2)
    fit(learn, 5, cache)
    assert "in 2 views" in cache.message and "3 epoch(s)" in cache.message
    learn = make_learner(photos, tmp_path, freeze="none")
    with gather_notes() as notes:
        progressive_fit(learn, Stage(64, epochs=1, cached_views=2))
    assert any("cached_views is 2, and does nothing with freeze: none" in note for note in notes)
