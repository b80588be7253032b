"""fp16 with its scaled loss. No GPU is needed: `torch.amp` scales and autocasts on a CPU as well, so the refusal there is lifted for these tests alone."""
import pytest
import torch
from fastai.callback.core import Callback
from fastai.data.core import DataLoaders
from fastai.data.load import DataLoader
from fastai.learner import Learner
from fastai.optimizer import SGD
from torch import nn

from snakecls.train import precision as precision_callback
from snakecls.train.gradients import AccumulateGradients, ClipGradients
from snakecls.train.precision import PrecisionCallback


class Watch(Callback):
    "Note what the forward pass gave and how long the gradient is at the step, after the scaler (10)."
    order = 12

    def __init__(self):
        self.inside, self.norms = [], []

    def before_fit(self):
        self.learn.model[0].register_forward_hook(lambda module, x, y: self.inside.append(y.dtype))

    def before_step(self):
        self.norms.append(float(nn.utils.clip_grad_norm_(self.learn.model.parameters(), 1e9)))


class Overflow(Callback):
    "Make the second batch's gradient infinite."
    order, run_valid = 9, False

    def after_loss(self):
        if self.iter == 1:
            self.learn.loss_grad = self.loss_grad * float("inf")


@pytest.fixture(autouse=True)
def fp16_on_a_cpu(monkeypatch):
    monkeypatch.setattr(precision_callback, "check_mode", lambda mode, device: None)


def fitted(*cbs: Callback, epochs: int = 2) -> tuple[torch.Tensor, torch.Tensor]:  # weights before and after
    torch.manual_seed(0)
    y, x = torch.arange(64) % 3, torch.randn(64, 3, 12, 12) * 0.3
    x[torch.arange(64), y] += 0.7
    loader = DataLoader(list(zip(x, y)), bs=16)
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3))
    learn = Learner(DataLoaders(loader, loader, device="cpu"), model, loss_func=nn.CrossEntropyLoss(), opt_func=SGD, path=".")
    before = torch.cat([p.detach().flatten().clone() for p in model.parameters()])
    with learn.no_logging(), learn.no_bar():
        learn.fit(epochs, 0.05, cbs=list(cbs))
    assert not hasattr(learn, "scaler") and not torch.is_autocast_enabled("cpu")
    return before, torch.cat([p.detach().flatten() for p in model.parameters()])


def test_fp16_takes_the_steps_of_fp32():
    scaled, watch, exact = PrecisionCallback("fp16"), Watch(), Watch()
    (start, half), (_, full) = fitted(scaled, watch), fitted(exact)
    assert torch.float16 in watch.inside and set(exact.inside) == {torch.float32}
    assert len(scaled.scales) == len(watch.norms) == 8 and scaled.scales[0] > 1  # the loss was scaled …
    assert watch.norms == pytest.approx(exact.norms, rel=0.01)  # … and the gradient is not, when it is used
    assert 0 < (half - full).norm() < 0.01 * (full - start).norm()


@pytest.mark.parametrize("cb", [lambda: ClipGradients(0.05), lambda: AccumulateGradients(2)], ids=["clip", "accumulate"])
def test_clipping_and_accumulation_see_the_gradient_unscaled(cb):
    (start, half), (_, full), (_, without) = fitted(PrecisionCallback("fp16"), cb()), fitted(cb()), fitted()
    assert (half - full).norm() < 0.01 * (full - start).norm() < 0.1 * (without - full).norm()


def test_a_step_that_overflows_is_left_out_and_the_scale_halved():
    scaled = PrecisionCallback("fp16")
    _, after = fitted(scaled, Overflow(), epochs=1)
    assert torch.isfinite(after).all() and len(scaled.scales) == 3 and scaled.scales[1] == scaled.scales[0] / 2
    _, broken = fitted(Overflow(), epochs=1)
    assert not torch.isfinite(broken).all()  # without a scaler it would not be
