"The losses of auxiliary classifiers, checked by hand on a network small enough to follow."
import pytest
import torch
from fastai.callback.core import Callback
from fastai.callback.mixup import MixUp as FastaiMixUp
from fastai.callback.training import GradientAccumulation
from fastai.data.core import DataLoaders
from fastai.data.load import DataLoader
from fastai.learner import Learner
from fastai.losses import BCEWithLogitsLossFlat, CrossEntropyLossFlat
from torch import nn

from snakecls.train.auxiliary import AuxLoss
from snakecls.train.mixing import MixUp


class Small(nn.Module):
    "Two layers with an auxiliary classifier between them."

    def __init__(self):
        super().__init__()
        self.first, self.head, self.aux, self.aux_logits = nn.Linear(4, 4), nn.Linear(4, 3), nn.Linear(4, 3), ()

    def forward(self, x):
        x = self.first(x)
        self.aux_logits = (self.aux(x),) if self.training else ()
        return self.head(x)


class Seen(Callback):
    "Keep the last training batch's losses, targets and logits."
    order, run_valid = 95, False

    def before_batch(self):
        self.y1, self.mixup = self.yb[0], next((cb for cb in self.learn.cbs if isinstance(cb, MixUp)), None)
        self.y2 = self.mixup.targets2[0] if self.mixup else None

    def after_loss(self):
        self.value, self.aux, self.main = self.learn.loss.item(), self.model.aux_logits[0].detach(), self.pred.detach()

    def after_backward(self):
        self.gradient = self.model.aux.weight.grad.clone() if self.model.aux.weight.grad is not None else None


@pytest.fixture
def make_learner(tmp_path):
    def make(loss=None, make_y=lambda i: torch.tensor(i % 3)):
        torch.manual_seed(0)
        data = [(torch.randn(4), make_y(i)) for i in range(8)]
        return Learner(DataLoaders(DataLoader(data, bs=8), DataLoader(data, bs=8)), Small(), loss_func=loss or CrossEntropyLossFlat(), path=tmp_path)
    return make


def fit(learn, **kwargs):
    with learn.no_bar(), learn.no_logging():
        learn.fit(1, **kwargs)


@pytest.mark.parametrize("more", [list, lambda: [MixUp(0.4)], lambda: [GradientAccumulation(8)]])
@pytest.mark.parametrize("loss, make_y", [
    (CrossEntropyLossFlat(), lambda i: torch.tensor(i % 3)), (BCEWithLogitsLossFlat(), lambda i: torch.tensor([i % 2, 1.0, 0.0])),
])
def test_the_sum_is_what_it_is_by_hand(make_learner, loss, make_y, more):
    learn, seen = make_learner(loss, make_y), Seen()
    fit(learn, cbs=[AuxLoss(), seen, *more()])

    def both(y):
        return loss(seen.main, y) + 0.3 * loss(seen.aux, y)

    by_hand = both(seen.y1) if seen.y2 is None else seen.mixup.weight * both(seen.y1) + (1 - seen.mixup.weight) * both(seen.y2)
    assert seen.value == pytest.approx(by_hand.item(), abs=1e-6)
    assert learn.loss_func is loss and seen.gradient.abs().max() > 0


def test_fastais_own_mixup_goes_with_it(make_learner):
    learn, seen = make_learner(), Seen()
    fit(learn, cbs=[AuxLoss(), seen, FastaiMixUp(0.4)])
    assert seen.gradient.abs().max() > 0 and isinstance(learn.loss_func, CrossEntropyLossFlat)


def test_an_interruption_leaves_nothing_behind(make_learner):
    class Interrupt(Callback):
        order = 99

        def after_pred(self):
            raise KeyboardInterrupt

    learn, seen = make_learner(), Seen()
    own = learn.loss_func
    with pytest.raises(KeyboardInterrupt):
        fit(learn, cbs=[AuxLoss(), Interrupt()])
    with learn.no_bar(), learn.no_logging():
        assert learn.validate()[0] == pytest.approx(own(learn.get_preds(act=lambda x: x)[0], torch.arange(8) % 3).item(), abs=1e-6)
    fit(learn, cbs=[AuxLoss(), seen])
    assert seen.value == pytest.approx((own(seen.main, seen.y1) + 0.3 * own(seen.aux, seen.y1)).item(), abs=1e-6) and learn.loss_func is own


def test_a_frozen_auxiliary_classifier_adds_nothing(make_learner):
    learn, seen = make_learner(), Seen()
    for layer in (learn.model.first, learn.model.aux):
        layer.requires_grad_(False)
    fit(learn, cbs=[AuxLoss(), seen])
    assert seen.value == pytest.approx(learn.loss_func(seen.main, seen.y1).item(), abs=1e-6) and seen.gradient is None
