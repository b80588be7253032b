"""Callbacks that change the Learner leave nothing behind: whatever is cancelled, wherever a fit breaks, and in the fit after that."""
import ast
import tempfile
from pathlib import Path

import pytest
import torch
from fastai.callback.core import Callback, CancelBatchException, CancelEpochException, CancelFitException, CancelTrainException, CancelValidException
from fastai.data.core import DataLoaders
from fastai.data.load import DataLoader
from fastai.learner import Learner
from fastai.losses import CrossEntropyLossFlat
from fastai.optimizer import SGD
from torch import nn

import snakecls
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


def stored_names(tree: ast.AST) -> set[str]:
    return {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and ast.unparse(node.value) == "self"}


def test_no_callback_sets_what_a_learner_or_its_network_has():
    "fastai looks an attribute up in the Learner and that in its network, and warns the user of what a callback sets under such a name."
    from snakecls.models.backbones import create_backbone

    network, found, n_seen = create_backbone("tf_efficientnet_lite0", 3, weights="none", depths=[5, 6]), {}, 0
    for file in Path(snakecls.__file__).parent.rglob("*.py"):
        tree = ast.parse(file.read_text(encoding="utf-8"))
        kinds = {node.name: node for node in ast.walk(tree) if isinstance(node, ast.ClassDef) and any("Callback" in ast.unparse(base) for base in node.bases)}
        patched = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and any(ast.unparse(each) == "patch" for each in node.decorator_list)]
        for method in patched:
            owner = ast.unparse(method.args.args[0].annotation)
            if owner in kinds and (names := {name for name in stored_names(method) if hasattr(network, name) or hasattr(Learner, name)}):
                found[f"{owner}.{method.name}"] = names
        for name, node in kinds.items():
            n_seen += 1
            for method in [part for part in node.body if isinstance(part, ast.FunctionDef) and part.name != "__init__"]:  # where it has no Learner yet
                if names := {each for each in stored_names(method) if hasattr(network, each) or hasattr(Learner, each)}:
                    found[f"{name}.{method.name}"] = names
    assert n_seen > 15 and not found, found
