"""Networks from scratch learn what they are shown, and pass through everything that a timm network passes through."""
import math

import pytest
import torch
from fastai.data.core import DataLoaders
from fastai.data.load import DataLoader
from fastai.learner import Learner
from fastai.losses import CrossEntropyLossFlat
from fastai.optimizer import Adam
from PIL import Image, ImageDraw
from torch.nn import functional as F

from snakecls.core import seed_everything
from snakecls.models.graph_export import pooled_features
from snakecls.models.probe import fit_probe, set_head
from snakecls.models.freezing import count_parameters, freeze_groups, stage_groups
from snakecls.models.scratch import SCRATCH_ARCHS, create_scratch
from snakecls.train.auxiliary import AuxLoss
from snakecls.train.mixing import MixUp

N_CLASSES, SIZE = 4, 64
KWARGS = {"lenet5": {}, "alexnet_scratch": {"dense_neurons": 512}, "googlenet_scratch": {}, "cnn": {}}
STAGES = {"lenet5": 4, "alexnet_scratch": 7, "googlenet_scratch": 5, "cnn": 7}


def draw_shape(label: int, seed: int) -> Image.Image:
    "Draw a circle, triangle, square or cross anywhere, in any colour on any ground."
    import numpy as np

    rng = np.random.default_rng(seed)
    ground, colour = (tuple(int(c) for c in rng.integers(low, low + 110, 3)) for low in ((0, 145) if rng.random() < 0.5 else (145, 0)))
    photo = Image.new("RGB", (SIZE, SIZE), ground)
    draw, r = ImageDraw.Draw(photo), rng.uniform(12, 20)
    x, y = rng.uniform(r, SIZE - r, 2)
    if label == 0:
        draw.ellipse((x - r, y - r, x + r, y + r), fill=colour)
    elif label == 3:
        draw.rectangle((x - r, y - r / 4, x + r, y + r / 4), fill=colour)
        draw.rectangle((x - r / 4, y - r, x + r / 4, y + r), fill=colour)
    else:
        corners = 2 + label
        angles = [2 * math.pi * (i + 0.5) / corners for i in range(corners)]
        draw.polygon([(x + r * math.sin(a), y + r * math.cos(a)) for a in angles], fill=colour)
    return photo


@pytest.fixture(scope="module")
def shapes() -> tuple[torch.Tensor, torch.Tensor]:
    "32 photos (n, 3, 64, 64) about 0, and their labels."
    import numpy as np

    photos = np.stack([np.asarray(draw_shape(i % N_CLASSES, seed=i), np.float32) for i in range(32)])
    return torch.from_numpy(photos / 127.5 - 1).permute(0, 3, 1, 2).contiguous(), torch.arange(32) % N_CLASSES


def make_learner(model, photos, labels, bs=32, cbs=None) -> Learner:
    data = list(zip(photos, labels))
    loaders = DataLoaders(DataLoader(data, bs=bs, shuffle=False), DataLoader(data[:4], bs=4))
    return Learner(loaders, model, loss_func=CrossEntropyLossFlat(), opt_func=Adam, splitter=stage_groups, cbs=cbs)


LEARNING_RATES = {"lenet5": 3e-3, "alexnet_scratch": 3e-4, "googlenet_scratch": 3e-4, "cnn": 3e-3}


@pytest.mark.parametrize("arch", SCRATCH_ARCHS)
def test_it_overfits_32_photos(arch, shapes):
    "Accuracy 1.0 on what it was trained on; untrained, it guesses."
    photos, labels = shapes
    seed_everything(1)
    model = create_scratch(arch, N_CLASSES, **KWARGS[arch])
    learn = make_learner(model, photos, labels, bs=8 if arch.startswith("googlenet") else 32, cbs=[AuxLoss()] if arch.startswith("googlenet") else None)

    def accuracy() -> float:
        return float((learn.get_preds(ds_idx=0)[0].argmax(1) == labels).float().mean())

    with learn.no_bar(), learn.no_logging():
        assert accuracy() < 0.7
        for _ in range(8):  # of 5 epochs
            learn.fit(5, lr=LEARNING_RATES[arch])
            if accuracy() == 1.0:
                break
        assert accuracy() == 1.0


@pytest.mark.parametrize("arch", SCRATCH_ARCHS)
def test_its_stages_freeze(arch):
    "Stem, blocks, dense layers, head; each parameter once; what is frozen gets no gradient."
    model = create_scratch(arch, 3, **KWARGS[arch])
    groups = stage_groups(model)
    assert len(groups) == STAGES[arch]
    assert sum(p.numel() for group in groups for p in group) == count_parameters(model)
    assert [tuple(p.shape) for p in groups[-1]] == [(3, model.num_features), (3,)]
    assert freeze_groups(model, "body") == count_parameters(model.get_classifier()) == count_parameters(model, trainable_only=True)
    freeze_groups(model, 1)
    model.train()(torch.randn(2, 3, 64, 64)).sum().backward()
    assert all(p.grad is None for group in groups[:2] for p in group)
    assert all(p.grad is not None for p in groups[2][:2])


@pytest.mark.parametrize("arch", SCRATCH_ARCHS)
def test_a_probe_becomes_its_head(arch, shapes):
    photos, labels = shapes
    model = create_scratch(arch, N_CLASSES, **KWARGS[arch]).eval()
    with torch.no_grad():
        features = pooled_features(model, photos).numpy()
        assert features.shape == (32, model.num_features)
        probe = fit_probe(features, labels.numpy(), C=0.01)
        set_head(model, probe)
        assert torch.allclose(model(photos), torch.from_numpy(probe.logits(features)), atol=1e-4)


@pytest.mark.parametrize("arch", SCRATCH_ARCHS)
def test_it_is_made_again_from_json(arch, shapes):
    "Name, arguments and tensors are all of it; sizes other than the paper's work."
    model = create_scratch(arch, N_CLASSES, **KWARGS[arch]).eval()
    info = model.backbone_info.to_dict()
    assert info["library"] == "snakecls" and info["weights_source"] == "none"
    again = create_scratch(info["arch"], **info["kwargs"]).eval()
    again.load_state_dict(model.state_dict())
    for size in (model.min_size, 97):
        photo = F.interpolate(shapes[0][:1], size)
        assert torch.equal(again(photo), model(photo))


def test_auxiliary_losses_teach_the_lower_layers(shapes):
    "The callback changes the gradient of block 4's beginning and not that of block 5, and a dropped one leaves the answer as it is."
    photos, labels = shapes[0][:4], shapes[1][:4]

    class Gradients(AuxLoss):
        "Keep the first batch's gradients."

        def after_backward(self):
            self.seen = {name: p.grad.clone() for name, p in self.model.named_parameters() if p.grad is not None}

    def gradients(weight: float, cbs=()) -> dict[str, torch.Tensor]:
        seed_everything(0)
        learn = make_learner(create_scratch("googlenet_scratch", N_CLASSES, dropout=0.0), photos, labels)
        keep = Gradients(weight)
        with learn.no_bar(), learn.no_logging():
            learn.fit(1, lr=0.0, cbs=[keep, *cbs])
        return keep.seen

    none, usual, mixed = gradients(1e-12), gradients(0.3), gradients(0.3, cbs=[MixUp(1.0)])
    lower, upper = "block4.inception4a.branch1.0.weight", "block5.inception5b.branch1.0.weight"
    assert torch.allclose(none[upper], usual[upper], rtol=1e-4, atol=1e-6)
    assert (none[lower] - usual[lower]).norm() > 0.01 * usual[lower].norm()
    assert usual["block4.aux4a.head.weight"].norm() > 0 and not torch.allclose(usual[lower], mixed[lower])


def test_auxiliary_losses_when_compiled(shapes):
    "torch.compile's wrapper does not hide the auxiliary classifiers."
    photos, labels = shapes[0][:4], shapes[1][:4]
    model = create_scratch("googlenet_scratch", N_CLASSES)
    before = model.block4.aux4d.head.weight.detach().clone()
    learn = make_learner(torch.compile(model, backend="eager"), photos, labels)
    learn.splitter = lambda wrapped: stage_groups(model)
    with learn.no_bar(), learn.no_logging():
        learn.fit(1, lr=1e-3, cbs=AuxLoss())
    assert not torch.equal(before, model.block4.aux4d.head.weight)
