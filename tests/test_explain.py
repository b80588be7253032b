"Where the network looked: exact maps add up, others are asked of grad-cam, and a right map beats random deletion."
import numpy as np
import pytest
import torch
from conftest import draw_snake, need
from torch import nn

from snakecls.core import UserError
from snakecls.data.photos import PhotoSpec
from snakecls.evaluate.explain import ClassMap, as_batch, class_map, deletion_curve, feature_maps, logit_parts, look, look_uris, overlay

SPEC = PhotoSpec(64)
PHOTO = draw_snake(0)


def make(arch: str, **kwargs) -> nn.Module:
    import timm

    torch.manual_seed(0)
    return timm.create_model(arch, num_classes=3, **kwargs).eval()


def make_joined(**how) -> nn.Module:
    from snakecls.models.joined import JoinedNetwork

    return JoinedNetwork([make("test_efficientnet"), make("test_resnet")], 3, **how).eval()


@pytest.mark.parametrize("network", [
    lambda: make("test_efficientnet"), lambda: make("test_resnet"), lambda: make_joined(), lambda: make_joined(maximum=True),
    lambda: make_joined(scales=[0.5], maximum=True),
])
def test_places_and_bias_add_up_to_the_logit(network):
    network = network()
    batch = as_batch(PHOTO, SPEC)
    for label in range(3):
        parts = logit_parts(network, batch, label)
        bias = network.get_classifier().bias[label].item()
        assert sum(part.sum() for part in parts) + bias == pytest.approx(network(batch)[0, label].item(), abs=1e-4)


def test_depths_add_up_too():
    from snakecls.models.joined import JoinedNetwork, block_places

    member = make("test_efficientnet")
    network = JoinedNetwork([member], 3, depths=list(block_places(make("test_efficientnet")))[:2], maximum=True).eval()
    batch = as_batch(PHOTO, SPEC)
    parts = logit_parts(network, batch, 1)
    assert len(parts) == 4
    assert sum(part.sum() for part in parts) + network.classifier.bias[1].item() == pytest.approx(network(batch)[0, 1].item(), abs=1e-4)


def test_each_of_several_targets_has_its_map():
    from snakecls.models.heads import add_heads

    network = add_heads(make("test_efficientnet"), {"species": 3, "genus": 2}).eval()
    batch = as_batch(PHOTO, SPEC)
    (part,) = logit_parts(network, batch, 1, target=1)
    head = network.get_classifier()["1"]
    assert part.sum() + head.bias[1].item() == pytest.approx(network(batch)[1][0, 1].item(), abs=1e-4)


@pytest.mark.parametrize("arch", ["test_vit", "test_convnext"])
def test_other_heads_are_asked_of_grad_cam(arch):
    need("pytorch_grad_cam")
    network = make(arch)
    spec = PhotoSpec(160)
    assert logit_parts(network, as_batch(PHOTO, spec), 0) is None
    for weights in network.parameters():
        weights.requires_grad_(False)  # as a served network's may be
    found = class_map(network, PHOTO, spec, 0)
    assert found.how == "grad-cam" and found.values.shape == (160, 160) and np.isfinite(found.values).all()
    assert not network.training and all(weights.grad is None for weights in network.parameters())
    with pytest.raises(UserError, match="grad-cam"):
        class_map(network, PHOTO, spec, 0, how="exact")


def test_without_the_package_it_is_said(monkeypatch):
    from snakecls.evaluate import explain

    monkeypatch.setattr(explain, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install snakecls\[explain\]"):
        class_map(make("test_vit"), PHOTO, PhotoSpec(160), 0)
    assert look_uris(make("test_vit"), [(PHOTO, 0)], PhotoSpec(160)) == [""]  # a report goes on without


class RedCorner(nn.Module):
    "A network that sees red, wherever it is: its answer is known."

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(3, 2)
        with torch.no_grad():
            self.fc.weight.copy_(torch.tensor([[40.0, -20, -20], [-40, 20, 20]]))
            self.fc.bias.zero_()

    def forward_features(self, x):
        return nn.functional.relu(nn.functional.avg_pool2d(x, 8) - 1.2)  # strong colours alone, which a blur takes away

    def forward_head(self, x, pre_logits=False):
        pooled = x.mean((2, 3))
        return pooled if pre_logits else self.fc(pooled)

    def forward(self, x):
        return self.forward_head(self.forward_features(x))

    def get_classifier(self):
        return self.fc


def draw_corner():
    from PIL import Image

    pixels = np.full((64, 64, 3), 128, np.uint8)
    pixels[:16, :16] = 250, 20, 20
    return Image.fromarray(pixels)


def test_a_map_is_where_the_cause_is_and_deletion_shows_it():
    spec = PhotoSpec(64, crop_pct=1.0)
    network, photo = RedCorner().eval(), draw_corner()
    found = class_map(network, photo, spec, 0)
    assert np.unravel_index(found.values.argmax(), (64, 64)) < (16, 16) and found.values[:16, :16].mean() > 10 * np.abs(found.values[24:, 24:]).mean()
    right, wrong = (deletion_curve(network, photo, spec, 0, found=one, grid=8) for one in (found, ClassMap(-found.values, "exact")))
    assert right["area"] < right["random_area"] < wrong["area"]
    shown = np.asarray(overlay(photo, found, spec)).astype(int)
    assert shown[:12, :12].sum() == pytest.approx(np.asarray(photo)[:12, :12].astype(int).sum(), rel=0.05) and shown[40, 40].max() < 40


def test_what_cannot_be_shown_is_said():
    network = make("test_efficientnet")
    with pytest.raises(UserError, match="how"):
        class_map(network, PHOTO, SPEC, 0, how="lime")
    with pytest.raises(UserError, match="layer"):
        feature_maps(network, PHOTO, SPEC, ["blocks.9"])
    with pytest.raises(UserError, match="gives no maps"):
        feature_maps(network, PHOTO, SPEC, ["classifier"])
    picture, sentence = look(network, PHOTO, SPEC, 2)
    assert picture.size == (64, 64) and sentence.endswith(".")
    assert 500 < len(look_uris(network, [(PHOTO, 1)], SPEC)[0]) < 20_000
