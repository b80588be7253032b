"What a schedule does in every case: policies, optimisers, mixing, freezing, rates that are searched, callbacks that end a stage."
import re

import numpy as np
import pandas as pd
import pytest
import torch
from fastai.callback.core import Callback, CancelFitException
from fastai.data.core import DataLoaders
from fastai.data.load import DataLoader
from fastai.learner import Learner
from fastai.losses import CrossEntropyLossFlat
from fastai.metrics import error_rate
from torch import nn

from snakecls.core import IdleWarning, UserError
from snakecls.models.freezing import stage_groups
from snakecls.train.learner_probe import valid_metrics
from snakecls.train.metrics import epoch_metrics
from snakecls.train.monitoring import SaveBestF1
from snakecls.train.optimisers import make_optimiser
from snakecls.train.schedules import progressive_fit
from snakecls.train.stages import Stage


def part(n_in: int, n_out: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(n_in, n_out, 3, stride=2, padding=1), nn.BatchNorm2d(n_out), nn.ReLU())


class Blocks(nn.Sequential):
    "Stem, two blocks, head."

    def __init__(self):
        super().__init__(part(3, 8), part(8, 8), nn.Sequential(part(8, 16), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.1)), nn.Linear(16, 4))


def stripes(size: int, bs: int, seed: int) -> DataLoaders:
    "Four classes of noise with and without stripes, across and down."
    rng = np.random.default_rng(0)

    def photo(i: int):
        wave = np.sin(np.arange(size) / 1.5 + rng.uniform(0, 6))
        x = rng.normal(0, 0.7, (3, size, size)) + (wave[:, None] if i % 2 else wave[None, :]) * (i % 4 > 1) + (i % 4 == 1)
        return torch.tensor(x, dtype=torch.float32), torch.tensor(i % 4)

    data = [photo(i) for i in range(96)]
    dls = DataLoaders(DataLoader(data[:64], bs=bs, shuffle=True), DataLoader(data[64:], bs=32))
    dls.train.rng.seed(seed)
    return dls


class Watch(Callback):
    "Note rates and what trains, step by step."
    order, run_valid = 95, False

    def __init__(self):
        self.seen = []

    def before_step(self):
        hypers = self.opt.hypers
        trains = sum(group[0].requires_grad for group in stage_groups(self.model))
        self.seen.append({"epoch": self.epoch, "first": hypers[0]["lr"], "head": hypers[-1]["lr"], "trains": trains, "mom": hypers[-1].get("mom")})


@pytest.fixture
def fit(tmp_path):
    "Train the small network through stages: Learner, result, what every step saw."
    def run(stages, *, optimiser="adamw", monitor="f1_macro", cbs=(), **kwargs):
        torch.manual_seed(0)
        learn = Learner(stripes(20, 8, 0), Blocks(), loss_func=CrossEntropyLossFlat(), opt_func=make_optimiser(optimiser), splitter=stage_groups,
                        metrics=epoch_metrics(), path=tmp_path, train_bn=False)
        watch = Watch()
        with learn.no_bar(), learn.no_logging():
            result = progressive_fit(learn, stages, loaders=stripes, saver=SaveBestF1(monitor, verbose=False), batch_norm="train", cbs=[watch, *cbs], **kwargs)
        return learn, result, pd.DataFrame(watch.seen)
    return run


def test_gradual_unfreezing_layer_decay_and_warmup_go_together(fit):
    _, _, seen = fit(Stage(20, epochs=4, bs=8, freeze=0, gradual=True, layer_decay=0.5, lr=0.02, lr_schedule="cosine", warmup=0.25,
                           cutmix=1.0, mixup=0.2, mix_p=0.5, label_smoothing=0.1), optimiser="sgd")
    assert seen.groupby("epoch").trains.first().tolist() == [1, 2, 3, 3]  # head, then a block more each epoch; the stem stays frozen
    moves = seen[seen["head"] > 0]
    assert np.allclose(moves["first"] / moves["head"], 0.125, atol=1e-6)
    assert np.allclose(seen["head"].iloc[[0, 4, 8]], [0, 0.01, 0.02], atol=1e-6) and seen["head"].iloc[-1] < 1e-3 and set(seen.mom) == {0.9}


def test_mixing_and_smoothing_belong_to_their_stage(fit):
    started, losses = [], {}

    def stage_cbs(stage, number):
        started.append((stage.size, number))
        return []

    for name, extra in {"plain": {}, "smoothed": {"label_smoothing": 0.4}, "cutmix": {"cutmix": 1.0}, "half": {"cutmix": 1.0, "mix_p": 0.5}}.items():
        _, result, _ = fit([Stage(20, epochs=2, bs=8, lr=0.01, **extra), Stage(24, epochs=1, bs=8, lr=0.003)], stage_cbs=stage_cbs)
        losses[name] = [row["train_loss"] for row in result.rows]
    assert started[:2] == [(20, 1), (24, 2)]
    assert losses["smoothed"][1] > losses["plain"][1] and losses["cutmix"][1] > losses["half"][1] > losses["plain"][1]
    assert losses["smoothed"][2] < losses["smoothed"][1]  # the second stage is not smoothed


def test_a_search_for_the_rate_leaves_no_trace(fit, tmp_path):
    auto = dict(epochs=2, bs=4, lr_schedule="constant", mixup=0.2)
    searched, result, _ = fit(Stage(20, lr="auto", **auto), lr_pictures=tmp_path / "plots")
    lr = result.stages[0]["lr_found"]
    assert 1e-4 < lr < 1 and (tmp_path / "plots" / "lr-stage1.png").exists() and [row["lr"] for row in result.rows] == [lr, lr]
    given, again, _ = fit(Stage(20, lr=lr, **auto))
    for one, other in zip(searched.model.state_dict().values(), given.model.state_dict().values()):
        assert torch.equal(one, other)
    assert [row["train_loss"] for row in result.rows] == [row["train_loss"] for row in again.rows]


def test_a_rising_loss_is_told(fit):
    class Inflate(Callback):
        def after_loss(self):
            self.learn.loss = self.learn.loss * (1 + 3 * self.epoch)

    _, result, _ = fit([Stage(20, epochs=2, bs=8, lr=0.01, lr_schedule="constant")], stage_cbs=lambda stage, number: [Inflate()])
    assert "Stage 1: the training loss rose from" in result.message and "the rate (0.01)" in result.message


def test_nothing_of_a_frozen_body_moves_by_weight_decay_either(fit):
    kept = {}

    def note(stage, number):
        class Note(Callback):
            def before_train(self):
                kept[number] = self.model[0][0].weight.detach().clone()
        return [Note()]

    frozen = Stage(20, epochs=1, bs=8, freeze="body", wd=0.1)
    fit([Stage(20, epochs=1, bs=8, wd=0.1), frozen, frozen], stage_cbs=note)
    assert (kept[1] != kept[2]).any() and torch.equal(kept[2], kept[3])


@pytest.mark.parametrize("optimiser, lr", [("sgd", 0.05), ("adam", 0.01), ("adamw", 0.01), ("adadelta", 1.0)])
def test_each_optimiser_goes_through_each_policy(fit, optimiser, lr):
    options = {"patience": 1, "min_delta": 0.9}  # nothing gains 0.9
    _, _, seen = fit(Stage(20, epochs=1, bs=16, lr=lr, lr_schedule="one_cycle"), optimiser=optimiser)
    assert lr / 2 < seen["head"].max() <= lr  # the peak may lie between two of so few steps
    _, _, seen = fit(Stage(20, epochs=3, bs=16, lr=lr, lr_schedule="cosine_restarts"), optimiser=optimiser)
    assert np.allclose(seen["head"].iloc[[0, 4]], lr, atol=1e-6)
    _, _, seen = fit(Stage(20, epochs=3, bs=16, lr=lr, lr_schedule="plateau", lr_options=options), optimiser=optimiser)
    assert np.allclose(seen["head"].iloc[[0, 4, 8]], [lr, lr, lr / 10], atol=1e-6)


def test_plateau_follows_the_savers_monitor(fit):
    _, result, _ = fit(Stage(20, epochs=3, bs=16, lr=0.01, lr_schedule="plateau"), monitor="valid_loss")
    assert len(result.rows) == 3


def test_a_stage_that_a_callback_ends_before_its_first_epoch_is_measured(fit):
    class EndEarly(Callback):
        def before_batch(self):
            if self.training:
                raise CancelFitException

    learn, ended, _ = fit([Stage(20, bs=8)], cbs=[EndEarly()])
    with learn.no_bar():
        assert ended.stages[0]["own"]["f1_macro"] == pytest.approx(valid_metrics(learn, learn.dls.valid)["f1_macro"])
    assert ended.stages[0]["epochs"] == 0


def test_what_cannot_work_is_refused(fit, tmp_path):
    with pytest.raises(UserError, match="to 2"):
        fit(Stage(20, lr=0.01, gradual=True, epochs=2, freeze=9))
    learn = Learner(stripes(20, 8, 0), Blocks(), loss_func=CrossEntropyLossFlat(), splitter=stage_groups, metrics=error_rate, path=tmp_path)
    with pytest.raises(UserError, match="not measured for a linear probe"):
        progressive_fit(learn, Stage(20, head="probe"), loaders=stripes, saver=SaveBestF1("error_rate"))
    with pytest.raises(UserError, match="make them with photo_dls"):
        progressive_fit(learn, Stage(20), saver=SaveBestF1("error_rate"))


@pytest.mark.parametrize("wrong, said", [
    ({"head": "prob"}, "did you mean 'probe'"), ({"size": 4}, "greater than or equal to 8"), ({"batch_size": 8}, "did you mean 'bs'"),
    ({"lr": -1}, "above 0"), ({"lr": "atuo"}, "or auto"),
    ({"lr": (1e-4, 1e-3), "layer_decay": 0.8}, "both spread the rate"), ({"layer_decay": 1.5}, "less than or equal to 1"), ({"freeze": "boddy"}, "number of a block"),
    ({"cutmix": 1.0, "size": 12}, "at least 16 px"), ({"cutmix": -1}, "greater than or equal to 0"), ({"mix_p": 0}, "greater than 0"), ({"label_smoothing": 1.0}, "less than 1"),
    ({"gradual": True, "freeze": "body", "epochs": 5}, "keeps them all"),
    ({"lr_schedule": "one-cycle"}, "did you mean 'one_cycle'"),
])
def test_a_stage_that_makes_no_sense_is_refused(wrong, said):
    with pytest.raises(UserError, match=re.escape(said)):
        Stage(**{"size": 128} | wrong)


@pytest.mark.parametrize("idle, said", [
    ({"epochs": 0}, "head: probe"), ({"gradual": True}, "at least 2"), ({"lr_schedule": "cosine_restarts", "epochs": 4}, "3 or 7 epochs"),
    ({"lr_schedule": "plateau", "epochs": 2}, "at least 3"), ({"warmup": 0.2}, "rises by itself"), ({"warmup": 0.2, "lr_schedule": "plateau", "epochs": 5}, "waits"),
])
def test_a_stage_that_does_nothing_says_so(idle, said):
    assert any(said in note for note in Stage(**{"size": 128} | idle).idle())


def test_what_a_stage_does_not_do_is_told_by_a_bare_fit(fit):
    with pytest.warns(IdleWarning, match="stage 2: epochs is 0"):
        fit([Stage(20, epochs=1, bs=16), Stage(20, epochs=0, bs=16)])


def test_a_cut_cycle_falls_within_what_is_left(fit):
    "Five epochs of four batches, in cycles of 1, 2 and 4 epochs: the last falls within two."
    _, _, seen = fit(Stage(20, epochs=5, bs=16, lr=1e-3, lr_schedule="cosine_restarts"))
    head = seen["head"].to_numpy()
    assert np.allclose(head[[0, 4, 12]], 1e-3, atol=1e-9) and head[19] < 1e-4
