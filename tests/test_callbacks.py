"""Callbacks that change the Learner leave nothing behind: whatever is cancelled, wherever a fit breaks, and in the fit after that."""
import tempfile

import pytest
import torch
from fastai.callback.core import Callback, CancelBatchException, CancelEpochException, CancelFitException, CancelTrainException, CancelValidException
from fastai.data.core import DataLoaders
from fastai.data.load import DataLoader
from fastai.learner import Learner
from fastai.losses import CrossEntropyLossFlat
from fastai.optimizer import SGD
from torch import nn

from snakecls.train.averaging import ExponentialMovingAverage, _ema_decay
from snakecls.train.lr_schedules import fit_policy


class Note(Callback):
    "Note the weights before the fit and after each step."
    order = 80

    def before_fit(self):
        self.start, self.steps = self.model.lin.weight.detach().clone(), []

    def after_step(self):
        self.steps.append(self.model.lin.weight.detach().clone())


class Interrupt(Callback):
    "Raise once: at an event, in an epoch (from 0), in its third batch where it is a batch's event."
    order = 90

    def __init__(self, event: str, exception: BaseException, epoch: int = 0):
        self.exception, self.at = exception, epoch
        setattr(self, event, self.strike)

    def strike(self):
        if self.epoch == self.at and (self.at == 1 or self.iter >= 2) and self.exception is not None:
            exception, self.exception = self.exception, None
            raise exception


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.bn, self.lin = nn.BatchNorm1d(3), nn.Linear(3, 2)

    def forward(self, x):
        return self.lin(self.bn(x))


def make_learner(*cbs) -> tuple[Learner, Note]:
    torch.manual_seed(0)
    data, note = [(row, (row.sum() > 0).long()) for row in torch.randn(32, 3)], Note()
    learn = Learner(DataLoaders(DataLoader(data, bs=8), DataLoader(data, bs=8)), Net(), loss_func=CrossEntropyLossFlat(), opt_func=SGD, lr=0.5, path=tempfile.mkdtemp(), cbs=[note, *cbs])
    return learn, note


def fit(epochs: int, *cbs) -> tuple[Learner, Note]:
    learn, note = make_learner(*cbs)
    with learn.no_bar(), learn.no_logging():
        learn.fit(epochs)
    return learn, note


def weight(learn: Learner) -> torch.Tensor:
    return learn.model.lin.weight.detach().clone()


def average_by_hand(note: Note, decay: float = 0.9) -> torch.Tensor:
    average = note.start.clone()
    for i, weights in enumerate(note.steps, 1):
        average = average * _ema_decay(i, decay) + weights * (1 - _ema_decay(i, decay))
    return average


@pytest.mark.parametrize("event, exception", [("before_batch", CancelBatchException), ("before_batch", CancelTrainException), ("before_validate", CancelValidException), ("before_batch", CancelEpochException), ("after_validate", CancelEpochException)])
def test_an_average_goes_on_where_a_part_of_a_fit_is_cancelled(event, exception):
    (learn, note), (_, plain) = fit(3, ExponentialMovingAverage(0.9), Interrupt(event, exception())), fit(3, Interrupt(event, exception()))
    assert len(note.steps) == len(plain.steps) and torch.equal(note.steps[-1], plain.steps[-1])
    torch.testing.assert_close(weight(learn), average_by_hand(note), atol=1e-6, rtol=0)


@pytest.mark.parametrize("event", ["before_batch", "after_loss", "before_validate", "after_epoch"])
def test_a_cancelled_fit_ends_with_the_average(event):
    learn, note = fit(3, ExponentialMovingAverage(0.9), Interrupt(event, CancelFitException(), 1))
    torch.testing.assert_close(weight(learn), average_by_hand(note), atol=1e-6, rtol=0)


@pytest.mark.parametrize("always", [True, False], ids=["of the Learner", "of the fit"])
@pytest.mark.parametrize("exception", [RuntimeError("broken"), KeyboardInterrupt()], ids=["error", "Ctrl-C"])
@pytest.mark.parametrize("event", ["before_batch", "before_validate", "after_epoch"])
def test_an_error_leaves_the_weights_themselves(event, exception, always):
    ema = ExponentialMovingAverage(0.9)
    learn, note = make_learner(Interrupt(event, exception, 1), *([ema] if always else []))
    with learn.no_bar(), learn.no_logging(), pytest.raises(type(exception)):
        fit_policy(learn, 3, lr=0.5, schedule="constant", cbs=[] if always else [ema])
    assert torch.equal(weight(learn), note.steps[-1]) and ema.average is None
    assert (ema in learn.cbs) == always


@pytest.mark.parametrize("event", ["before_batch", "before_validate", "after_epoch"])
def test_a_bare_fit_after_an_error_begins_with_the_weights_themselves(event):
    learn, note = make_learner(ExponentialMovingAverage(0.9), Interrupt(event, RuntimeError("broken"), 1))
    with learn.no_bar(), learn.no_logging():
        with pytest.raises(RuntimeError):
            learn.fit(3)
        last = note.steps[-1]
        learn.fit(1)
    torch.testing.assert_close(weight(learn), average_by_hand(note), atol=1e-6, rtol=0)
    assert torch.equal(note.start, last)
