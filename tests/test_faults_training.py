"""Faults that outsiders met in training: losses that want the wrong thing, hours spent without a word, runs that were trained by hand."""
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from scipy.optimize import minimize, minimize_scalar
from torch import nn

from snakecls.core import UserError
from snakecls.train.experiment import make_experiment
from snakecls.train.losses import make_loss
from snakecls.workflow.run import run_experiment

COUNTS = {"red": 240, "green": 240, "blue": 3}
PHOTOS = torch.tensor(np.repeat([0, 1, 2], list(COUNTS.values())))
SHARES = np.array(list(COUNTS.values())) / sum(COUNTS.values())


def best_constant(loss, targets: torch.Tensor, n_outputs: int, activation: str = "softmax") -> np.ndarray:
    "What the loss wants of a model that can tell nothing apart: the constant answer with the smallest mean loss over the photos."
    def value(logits: np.ndarray) -> tuple[float, np.ndarray]:
        constant = torch.tensor(logits, dtype=torch.float32, requires_grad=True)
        total = loss(constant.expand(len(targets), n_outputs), targets)
        total.backward()
        return float(total.detach()), constant.grad.double().numpy()

    logits = torch.tensor(minimize(value, np.zeros(n_outputs), jac=True, method="BFGS", options={"gtol": 1e-7}).x)
    return (logits.softmax(-1) if activation == "softmax" else logits.sigmoid()).numpy()


# What is wanted is written from the definition, in numpy: each photo's smoothed loss times the weight of its own class.

def wanted_cross_entropy(weights: np.ndarray, amount: float) -> np.ndarray:
    "p of class c goes with its own weighted share, and with what smoothing takes of all photos' weights alike."
    weighed = SHARES * weights
    wanted = (1 - amount) * weighed + amount * weighed.sum() / len(weighed)
    return wanted / wanted.sum()


def wanted_focal(weights: np.ndarray, gamma: float) -> np.ndarray:
    def value(logits: np.ndarray) -> float:
        p = np.exp(logits - np.logaddexp.reduce(logits))
        return float((SHARES * weights * -((1 - p) ** gamma) * np.log(p)).sum())

    logits = minimize(value, np.zeros(3), method="BFGS", options={"gtol": 1e-9}).x
    return np.exp(logits - np.logaddexp.reduce(logits))


def own_weights(name: str) -> np.ndarray:
    counts = np.array(list(COUNTS.values()), float)
    weights = {"none": np.ones(3), "balanced": 1 / counts, "effective": (1 - 0.999) / (1 - 0.999**counts)}[name]
    return weights / (SHARES * weights).sum()


@pytest.mark.parametrize("class_weights", ["none", "balanced", "effective"])
def test_weights_average_one_over_the_training_photos(class_weights):
    loss = make_loss("cross_entropy", counts=list(COUNTS.values()), class_weights=class_weights)
    weights = np.ones(3) if loss.weights is None else loss.weights.numpy()
    assert weights[PHOTOS].mean() == pytest.approx(1, abs=1e-5)
    assert weights == pytest.approx(own_weights(class_weights), rel=1e-4)


@pytest.mark.parametrize("class_weights", ["none", "balanced", "effective"])
@pytest.mark.parametrize("amount", [0.0, 0.1, 0.5])
def test_class_weights_with_label_smoothing(class_weights, amount):
    loss = make_loss("cross_entropy", counts=list(COUNTS.values()), class_weights=class_weights, label_smoothing=amount)
    assert best_constant(loss, PHOTOS, 3) == pytest.approx(wanted_cross_entropy(own_weights(class_weights), amount), abs=2e-3)


@pytest.mark.parametrize("class_weights", ["none", "balanced", "effective"])
@pytest.mark.parametrize("gamma", [0.5, 2.0])
def test_class_weights_with_focal(class_weights, gamma):
    loss = make_loss("focal", counts=list(COUNTS.values()), class_weights=class_weights, focal_gamma=gamma)
    wanted = wanted_focal(own_weights(class_weights), gamma)
    assert best_constant(loss, PHOTOS, 3) == pytest.approx(wanted, abs=3e-3)
    if class_weights == "balanced":
        assert wanted == pytest.approx(np.ones(3) / 3, abs=1e-3)


@pytest.mark.parametrize("weighed", [False, True])
@pytest.mark.parametrize("amount", [0.0, 0.1])
@pytest.mark.parametrize("gamma", [0.0, 2.0])
def test_pos_weight_with_smoothing_and_focal(weighed, amount, gamma):
    "Two labels on 1 and on 30 of a hundred photos; each is judged by itself."
    if amount and gamma:
        with pytest.raises(UserError, match="focal has none"):
            make_loss("focal", multi_label=True, label_smoothing=amount)
        return
    photos = torch.zeros(1000, 2)
    photos[:10, 0], photos[:300, 1] = 1, 1
    loss = make_loss("focal" if gamma else "bce", multi_label=True, counts=[10, 300], n_photos=1000, pos_weight="balanced" if weighed else "none", label_smoothing=amount, focal_gamma=gamma or 2.0)

    def wanted(share: float) -> float:
        positive, negative = share * ((1 - share) / share if weighed else 1), 1 - share

        def value(logit: float) -> float:
            yes, no = -np.logaddexp(0, -logit), -np.logaddexp(0, logit)
            of_yes = -(1 - amount / 2) * np.exp(no) ** gamma * yes - amount / 2 * np.exp(yes) ** gamma * no
            of_no = -(1 - amount / 2) * np.exp(yes) ** gamma * no - amount / 2 * np.exp(no) ** gamma * yes
            return positive * of_yes + negative * of_no

        return 1 / (1 + np.exp(-minimize_scalar(value, bounds=(-15, 15), method="bounded", options={"xatol": 1e-9}).x))

    assert best_constant(loss, photos, 2, "sigmoid") == pytest.approx([wanted(0.01), wanted(0.3)], abs=3e-3)
    if weighed:
        assert wanted(0.01) == pytest.approx(0.5, abs=1e-3)


def test_seesaw_against_its_equations():
    "Its own correction of the long tail, by the paper's formula: the gradient vanishes where the equations say so."
    loss = make_loss("seesaw", counts=list(COUNTS.values()))
    loss.seen = torch.tensor(list(COUNTS.values()))
    seen, p_power, q_power = np.array(list(COUNTS.values()), float), 0.8, 2.0
    mitigation = np.minimum(1, (seen[None] / seen[:, None]) ** p_power)  # of class j for a photo of class i

    def gradient(logits: np.ndarray) -> np.ndarray:
        p = np.exp(logits - np.logaddexp.reduce(logits))
        factors = mitigation * np.maximum(1, (p[None] / np.maximum(p[:, None], 0.01)) ** q_power)
        np.fill_diagonal(factors, 1)
        answers = factors * np.exp(logits)[None]
        answers /= answers.sum(1, keepdims=True)  # (class of the photo, class)
        return (SHARES[:, None] * (answers - np.eye(3))).sum(0)

    for logits in (np.zeros(3), np.array([1.0, 0.5, -2.0])):
        constant = torch.tensor(logits, dtype=torch.float32, requires_grad=True)
        with torch.enable_grad():
            loss.losses(constant.expand(len(PHOTOS), 3), PHOTOS).mean().backward()
        assert constant.grad.numpy() == pytest.approx(gradient(logits), abs=1e-4)


class Constant(nn.Module):
    "A model that can tell nothing apart."

    def __init__(self, n: int):
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(n))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.logits.expand(len(x), -1)


@pytest.mark.parametrize("with_", ["mixup", "cutmix", "accumulate", "mixup and accumulate", "oversample"])
def test_class_weights_in_a_fit(with_):
    "Blends weigh each photo by its own class, and a step of several batches weighs all its photos alike: a constant model learns the hand-made optimum either way."
    from fastai.data.core import DataLoaders
    from fastai.data.load import DataLoader
    from fastai.learner import Learner
    from fastai.optimizer import SGD

    from snakecls.data.weights import draw_photos, draw_weights
    from snakecls.train.gradients import AccumulateGradients
    from snakecls.train.mixing import CutMix, MixUp

    counts = {"a": 12, "b": 9, "c": 3}
    answers = np.repeat(list(counts), list(counts.values()))
    weights, amount = {"class_weights": "balanced"}, 0.1
    if with_ == "oversample":  # in place of class weights: together they would overdo it, and an experiment refuses that
        answers, weights = answers[draw_photos(draw_weights(answers, oversample=1.0), seed=0)], {}
    numbers = torch.tensor(["abc".index(answer) for answer in answers])
    photos = list(zip(torch.rand(24, 3, 16, 16), numbers[torch.randperm(24, generator=torch.Generator().manual_seed(0))]))
    bs = 7 if "accumulate" in with_ else 24  # unequal batches: 7, 7, 7, 3
    dls = DataLoaders(DataLoader(photos, bs=bs), DataLoader(photos, bs=24))
    cbs = [{"mixup": MixUp(0.4), "cutmix": CutMix(1.0)}[with_.split()[0]]] if with_.split()[0] in ("mixup", "cutmix") else []
    cbs += [AccumulateGradients(4)] if "accumulate" in with_ else []
    learn = Learner(dls, Constant(3), loss_func=make_loss("cross_entropy", counts=list(counts.values()), label_smoothing=amount, **weights), opt_func=SGD, cbs=cbs, wd=0)
    with learn.no_bar(), learn.no_logging():
        learn.fit(60, 3.0)
    assert learn.model.logits.softmax(-1).detach().numpy() == pytest.approx(np.ones(3) / 3, abs=0.05 if with_ == "oversample" else 0.02)  # one photo more or less


def test_target_weights_and_each_targets_own_class_weights():
    from snakecls.train.targets import TargetsLoss

    first = make_loss("cross_entropy", counts=list(COUNTS.values()), class_weights="balanced", label_smoothing=0.1)
    second = make_loss("focal", counts=[470, 13])
    others = torch.tensor([0] * 470 + [1] * 13)
    loss = TargetsLoss({"genus": first, "country": second}, weights={"country": 3.0})
    zeros = (torch.zeros(483, 3), torch.zeros(483, 2))
    by_hand = np.log(3) + 3 * 0.25 * np.log(2)  # weights that average 1, smoothing of a flat answer costs nothing, and (1 - 1/2) ** 2 of the focal loss
    assert float(loss(zeros, PHOTOS, others)) == pytest.approx(by_hand, abs=1e-4)
    assert best_constant(lambda logits, y: loss((logits, zeros[1]), y, others), PHOTOS, 3) == pytest.approx(np.ones(3) / 3, abs=2e-3)


@pytest.fixture(scope="module")
def colours(tmp_path_factory):
    "240 red, 240 green and 3 blue photos of plain colours: the example of the issue."
    folder, rng = tmp_path_factory.mktemp("colours"), np.random.default_rng(0)
    rows = []
    for place, (label, n) in enumerate(COUNTS.items()):
        (folder / label).mkdir()
        for i in range(n):
            pixels = rng.integers(0, 60, (16, 16, 3), dtype=np.uint8)
            pixels[..., place] += 180
            Image.fromarray(pixels).save(folder / label / f"{i}.png")
            rows.append((f"{label}/{i}.png", label, "valid" if i % 3 == 0 else "train"))
    pd.DataFrame(rows, columns=["path", "label", "split"]).to_csv(folder / "photos.csv", index=False)
    return folder


def test_plain_colours_are_learned_with_class_weights_and_label_smoothing(colours, tmp_path):
    values = {
        "name": "colours", "data": {"source": str(colours / "photos.csv")}, "model": {"arch": "lenet5", "weights": "none"}, "augment": {"backend": "none", "min_scale": 1.0, "flip": False},
        "train": {"num_workers": 0, "precision": "fp32", "class_weights": "balanced", "label_smoothing": 0.1}, "schedule": [{"size": 32, "epochs": 6, "bs": 32, "lr": 3e-3}], "track": [], "predict": {"examples": 0},
    }
    metrics = run_experiment(make_experiment(values), root=tmp_path / "runs", logbook=None, say=lambda text: None).metrics
    assert metrics["valid"]["f1_macro"] > 0.95
