"timm's layout of a bundle: the same logits from `local-dir:`, and one sentence for what timm does not have."
import json
from pathlib import Path

import numpy as np
import pytest
import timm
import torch

from snakecls.core import UserError
from snakecls.deploy.timm_folder import why_not_timm, write_timm
from snakecls.models.bundle import load_model, read_bundle, write_bundle
from snakecls.models.networks import build_network
from snakecls.models.probe import Probe, set_head

LABELS = ["Naja naja", "Vipera berus", "Natrix natrix"]
KWARGS = {"test_resnet": {}, "test_vit": {"img_size": 96}, "test_efficientnet": {"drop_rate": 0.2}}


def make(folder: Path, arch: str, library: str = "timm", model=None, **more) -> Path:
    "Write a bundle of random weights."
    torch.manual_seed(1)
    kwargs = {"num_classes": 3, **KWARGS.get(arch, {})}
    info = {"model": {"library": library, "arch": arch, "kwargs": kwargs}, "labels": LABELS,
            "photo": {"size": 96, "crop_pct": 0.875, "mean": [0.5] * 3, "std": [0.4] * 3, "interpolation": "bilinear"}, "temperature": 1.5}
    return write_bundle(folder, model or build_network(library, arch, kwargs), info | more, graph=False)


def same(folder: Path, bundle: Path) -> None:
    model, own = timm.create_model(f"local-dir:{folder}", pretrained=True).eval(), load_model(read_bundle(bundle))
    batch = torch.randn(3, 3, 96, 96)
    with torch.inference_mode():
        expected = own(batch).numpy()
        assert np.ptp(expected) > 1e-3
        np.testing.assert_allclose(model(batch).numpy(), expected, atol=1e-5)


@pytest.mark.parametrize("arch", KWARGS)
def test_same_logits(tmp_path: Path, arch: str) -> None:
    bundle = make(tmp_path / "best", arch)
    folder = write_timm(bundle, tmp_path / "timm")
    same(folder, bundle)
    config = json.loads((folder / "config.json").read_text())
    assert config["architecture"] == arch and config["label_names"] == LABELS and config["num_classes"] == 3
    told = timm.data.resolve_model_data_config(timm.create_model(f"local-dir:{folder}", pretrained=True))
    assert tuple(told["input_size"]) == (3, 96, 96) and told["crop_pct"] == 0.875 and told["interpolation"] == "bilinear"
    assert tuple(told["mean"]) == (0.5,) * 3 and tuple(told["std"]) == (0.4,) * 3
    assert sorted(file.name for file in tmp_path.iterdir()) == ["best", "timm"]


def test_a_probe_goes_along(tmp_path: Path) -> None:
    model = build_network("timm", "test_resnet", {"num_classes": 3})
    rng = np.random.default_rng(0)
    probe = Probe(rng.normal(size=(3, model.num_features)).astype(np.float32), rng.normal(size=3).astype(np.float32), 0.1, {})
    set_head(model, probe)
    bundle = make(tmp_path / "best", "test_resnet", model=model)
    folder = write_timm(bundle, tmp_path / "timm")
    same(folder, bundle)
    np.testing.assert_allclose(timm.create_model(f"local-dir:{folder}", pretrained=True).get_classifier().weight.detach().numpy(), probe.weight, atol=1e-6)


@pytest.mark.parametrize(("resize", "mode"), [("squash", "squash"), ("pad", "border")])
def test_ways_to_fill_a_square(tmp_path: Path, resize: str, mode: str) -> None:
    bundle = make(tmp_path / "best", "test_resnet", photo={"size": 96, "resize": resize})
    model = timm.create_model(f"local-dir:{write_timm(bundle, tmp_path / 'timm')}", pretrained=True)
    assert timm.data.resolve_model_data_config(model)["crop_mode"] == mode


def test_refused(tmp_path: Path) -> None:
    own = make(tmp_path / "own", "lenet5", "snakecls", photo={"size": 32})
    with pytest.raises(UserError, match="lenet5 of snakecls, is none of timm's; a run with a model.arch of timm"):
        write_timm(own, tmp_path / "timm")
    heads = {"species": 3, "sex": 2}
    several = write_bundle(tmp_path / "several", build_network("timm", "test_resnet", {"num_classes": 3}, heads=heads), {
        "model": {"library": "timm", "arch": "test_resnet", "kwargs": {"num_classes": 3}, "heads": heads}, "labels": LABELS, "photo": {"size": 64},
        "targets": {"species": LABELS, "sex": ["f", "m"]}, "target": "species", "problem": "several_targets"}, graph=False)
    with pytest.raises(UserError, match="several targets"):
        write_timm(several, tmp_path / "timm")
    assert not (tmp_path / "timm").exists()


def test_what_is_joined_names_the_run_that_would_do(tmp_path: Path) -> None:
    said = {}
    for name, arch, kwargs in (("depths", "test_resnet", {"depths": [2], "maximum": True}), ("scales", "test_resnet", {"scales": [0.75]}),
                               ("several", "test_resnet+test_efficientnet", {})):
        kwargs = {"num_classes": 3, **kwargs}
        info = {"model": {"library": "joined", "arch": arch, "kwargs": kwargs}, "labels": LABELS, "photo": {"size": 96}}
        bundle = write_bundle(tmp_path / name, build_network("joined", arch, kwargs), info, graph=False)
        with pytest.raises(UserError) as e:
            write_timm(bundle, tmp_path / "timm")
        said[name] = str(e.value)
        assert why_not_timm(read_bundle(bundle)) in said[name] and not (tmp_path / "timm").exists()
    assert "(model.depths, model.maximum)" in said["depths"] and "--set model.depths=[] --set model.maximum=false gives" in said["depths"]
    assert "--set model.scales=[] gives" in said["scales"]
    assert "(several networks)" in said["several"] and "--set model.arch=test_resnet --set" in said["several"]


def test_another_answer_is_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle, create = make(tmp_path / "best", "test_resnet"), timm.create_model

    def other(name: str, pretrained: bool = False, **kwargs):
        return create(name, pretrained=False, **kwargs)  # random weights: what timm reads is not what was written

    monkeypatch.setattr(timm, "create_model", other)
    with pytest.raises(UserError, match="answer otherwise"):
        write_timm(bundle, tmp_path / "timm")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["best"]
