"""Networks of every library: freezing by stages, starting from a run, and bundles that give the same numbers."""
import subprocess
import sys

import numpy as np
import pytest
import torch
from fastai.callback import progress as _progress  # noqa: F401  gives Learner its no_bar

from conftest import REPO
from snakecls.core import UserError
from snakecls.data.photos import PhotoSpec, prepare_photo
from snakecls.models.backbones import create_backbone
from snakecls.models.bundle import BundleInfo, rebuild_network, load_model, write_bundle
from snakecls.models.freezing import discriminative_lrs, freeze_groups, gradual_unfreezing, _head_modules, n_frozen_groups, stage_groups

LAST_BLOCK = {  # arch -> its blocks, and the modules that train with the head when all blocks but the last are frozen
    "resnet18": (4, ["layer4"]), "resnet50": (4, ["layer4"]), "resnext50_32x4d": (4, ["layer4"]), "convnext_atto": (4, ["stages.3", "head.norm"]), "regnetx_002": (4, ["s4"]),
    "efficientnet_b0": (7, ["blocks.6", "conv_head", "bn2"]), "tf_efficientnet_lite0": (7, ["blocks.6", "conv_head", "bn2"]), "mobilenetv3_small_050": (6, ["blocks.5", "conv_head"]),
    "vit_tiny_patch16_224": (12, ["blocks.11", "norm"]), "vit_base_patch16_224": (12, ["blocks.11", "norm"]), "deit_tiny_distilled_patch16_224": (12, ["blocks.11", "norm"]),
    "swin_tiny_patch4_window7_224": (4, ["layers.3", "norm"]), "densenet121": (4, ["features.denseblock4", "features.norm5"]),
    "hgnet_tiny": (4, ["stages.3", "head.last_conv"]), "fastvit_t8": (4, ["stages.3", "final_conv"]), "efficientformer_l1": (4, ["stages.3", "norm"]), "rdnet_tiny": (None, None), "csatv2": (4, ["stages.3", "head.norm"]), "poolformer_s12": (4, ["stages.3", "head.norm"]), "pit_ti_224": (3, ["transformers.2", "norm"]),
    "googlenet": (3, ["inception5a", "inception5b"]), "shufflenet_v2_x0_5": (3, ["stage4", "conv5"]),
}


def count(modules) -> int:
    return sum(p.numel() for module in modules for p in module.parameters())


@pytest.mark.parametrize("arch", LAST_BLOCK)
def test_what_trains_is_what_freeze_says(arch):
    n_blocks, last = LAST_BLOCK[arch]
    with torch.device("meta"):
        model = create_backbone(arch, 12, weights="none")
    total, head = count([model]), count(_head_modules(model))
    assert freeze_groups(model, "none") == total
    assert freeze_groups(model, "body") == head < total
    for name, p in model.named_parameters():
        assert p.requires_grad == any(p is own for module in _head_modules(model) for own in module.parameters()), name
    groups = stage_groups(model)
    assert sorted(id(p) for group in groups for p in group) == sorted(id(p) for p in model.parameters())
    trainable = [freeze_groups(model, k) for k in range(len(groups) - 1)]
    assert trainable == sorted(trainable, reverse=True) and trainable[0] == total - sum(p.numel() for p in groups[0]) and trainable[-1] == head
    if n_blocks:
        assert len(groups) == n_blocks + 2
        assert freeze_groups(model, n_blocks - 1) == head + count(model.get_submodule(name) for name in last)
    assert freeze_groups(model, gradual_unfreezing(model, 2)[1]) == trainable[-2]


@pytest.mark.parametrize("arch", ["resnet18", "convnext_atto", "densenet121", "mobilenetv3_small_050", "vit_tiny_patch16_224", "swin_tiny_patch4_window7_224", "googlenet", "shufflenet_v2_x0_5"])
def test_groups_stand_in_the_order_of_the_forward_pass(arch):
    with torch.device("meta"):
        model = create_backbone(arch, 12, weights="none").eval()
        group_of = {id(p): number for number, group in enumerate(stage_groups(model)) for p in group}
        seen = []
        for module in model.modules():
            if own := [group_of[id(p)] for p in module.parameters(recurse=False)]:
                module.register_forward_pre_hook(lambda *_, first=own[0]: seen.append(first))
        model(torch.zeros(1, 3, 224, 224))
    assert seen == sorted(seen) and set(seen) == set(range(max(seen) + 1))


def fit_once(model, freeze, lr):
    "Train two batches with fastai's SGD; gives by how much each group has moved."
    from fastai.data.core import DataLoaders
    from fastai.data.load import DataLoader
    from fastai.learner import Learner
    from fastai.losses import CrossEntropyLossFlat
    from fastai.optimizer import SGD

    from snakecls.train.callbacks import FrozenBatchNorm

    torch.manual_seed(0)
    samples = [(torch.randn(3, 64, 64), torch.tensor(i % 4)) for i in range(8)]
    loader = DataLoader(samples, bs=4, num_workers=0)
    learn = Learner(DataLoaders(loader, loader), model, loss_func=CrossEntropyLossFlat(), opt_func=SGD, splitter=stage_groups, train_bn=False, cbs=[FrozenBatchNorm("frozen")])
    before = {name: t.clone() for name, t in model.state_dict().items()}
    learn.create_opt()
    learn.freeze_to(n_frozen_groups(model, freeze))
    with learn.no_bar(), learn.no_logging():
        learn.fit(1, lr=lr)
    moved = {name: float((t - before[name]).abs().max()) for name, t in model.state_dict().items() if t.is_floating_point()}
    return moved, [hyper["lr"] for hyper in learn.opt.hypers]


@pytest.mark.parametrize("arch", ["resnet10t", "shufflenet_v2_x0_5", "cnn"])
def test_frozen_stages_stay_as_they_are_with_a_smaller_rate_below(arch):
    torch.manual_seed(0)
    model = create_backbone(arch, 4, weights="none", **({"batch_norm": True} if arch == "cnn" else {})).to(memory_format=torch.channels_last)
    moved, lrs = fit_once(model, 2, slice(1e-4, 1e-1))
    groups, names = stage_groups(model), {id(p): name for name, p in model.named_parameters()}
    np.testing.assert_allclose(lrs, np.geomspace(1e-4, 1e-1, len(groups)))
    for number, group in enumerate(groups):
        assert any(moved[names[id(p)]] > 0 for p in group) == (number > 2), number
    frozen = {names[id(p)].rpartition(".")[0] for group in groups[:3] for p in group}
    statistics = {name: value for name, value in moved.items() if "running_" in name}
    assert statistics and all((value == 0) == (name.rpartition(".")[0] in frozen) for name, value in statistics.items())  # frozen batch norm stays frozen


def test_a_list_of_rates_reaches_the_groups():
    torch.manual_seed(0)
    model = create_backbone("resnet10t", 4, weights="none")
    rates = discriminative_lrs(model, 1e-2, decay=0.1)
    moved, lrs = fit_once(model, "none", rates)
    assert lrs == rates and rates[-1] == 1e-2 and rates[0] == pytest.approx(1e-7)
    assert moved["fc.weight"] > 100 * moved["conv1.0.weight"] > 0


LIBRARIES = [("timm", "test_vit", {}), ("torchvision", "googlenet", {"dropout": 0.1}), ("torchvision", "shufflenet_v2_x0_5", {}), ("snakecls", "lenet5", {}), ("snakecls", "googlenet_scratch", {}),
             ("snakecls", "cnn", {"filters": [8, 16], "batch_norm": True})]


@pytest.mark.parametrize("library, arch, kwargs", LIBRARIES)
def test_a_bundle_of_every_library_gives_the_same_numbers(library, arch, kwargs, tmp_path, snake_photos):
    from snakecls.deploy.predict import Predictor

    torch.manual_seed(0)
    size = 160 if arch == "test_vit" else 64
    model = create_backbone(arch, 3, weights="none", **kwargs)
    with torch.no_grad():
        model.get_classifier().weight.mul_(20)  # random weights answer nearly the same to every photo
    backbone = model.eval().backbone_info
    assert backbone.library == library
    spec = PhotoSpec(size, mean=backbone.mean, std=backbone.std)
    info = BundleInfo(model={"library": backbone.library, "arch": backbone.arch, "kwargs": backbone.kwargs}, labels=["a", "b", "c"], photo=spec)
    folder = write_bundle(tmp_path / "best", model, info)
    batch = torch.from_numpy(np.stack([prepare_photo(photo, spec) for photo in snake_photos]))
    with torch.inference_mode():
        expected = model(batch)
        torch.testing.assert_close(load_model(folder)(batch), expected, atol=1e-6, rtol=0)
    np.testing.assert_allclose(Predictor(folder).probs(snake_photos), expected.softmax(-1), atol=1e-5)


@pytest.mark.parametrize("arch", ["test_resnet", "googlenet_scratch", "deit_tiny_distilled_patch16_224"])
def test_a_run_goes_on_with_other_classes(arch, tmp_path):
    torch.manual_seed(0)
    old = create_backbone(arch, 3, weights="none")
    info = BundleInfo(model={"library": old.backbone_info.library, "arch": arch, "kwargs": old.backbone_info.kwargs}, labels=["a", "b", "c"], photo=PhotoSpec(224 if "224" in arch else 64, std=(0.1, 0.2, 0.3)))
    folder = write_bundle(tmp_path / "first" / "best", old, info)
    new = create_backbone(arch, 4, weights=folder, labels=["c", "x", "a", "y"])
    assert new.backbone_info.weights_source == "run first" and new.backbone_info.std == (0.1, 0.2, 0.3)
    remade = 0
    for (name, ours), theirs in zip(new.state_dict().items(), old.state_dict().values()):
        if ours.shape == theirs.shape:
            assert torch.equal(ours, theirs), name
        else:
            remade += 1
            assert torch.equal(ours[[0, 2]], theirs[[2, 0]]), name
            assert not torch.isin(ours[[1, 3]][ours[[1, 3]] != 0], theirs).any(), name
    assert remade == {"test_resnet": 2, "googlenet_scratch": 6, "deit_tiny_distilled_patch16_224": 4}[arch]  # all classifiers: weight and bias of each
    again = create_backbone(arch, 3, weights=folder, labels=["a", "b", "c"])
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(again.state_dict().values(), old.state_dict().values()))


@pytest.mark.parametrize("model, sentence", [
    ({"library": "torchvision", "arch": "resnet18", "kwargs": {"num_classes": 2}}, "torchvision architecture 'resnet18' does not exist"),
    ({"library": "torchvision", "arch": "googlenet", "kwargs": {"num_classes": 2, "weights": "DEFAULT"}}, "takes no 'weights'"),
    ({"library": "snakecls", "arch": "cnn", "kwargs": {"num_classes": 2, "kernel": 3}}, "'kernel' does not exist"),
    ({"library": "timm", "arch": "local-dir:/tmp", "kwargs": {"num_classes": 2}}, "does not exist"),
    ({"library": "timm", "arch": "resnet18", "kwargs": {"num_classes": 2, "pretrained_cfg": {"url": "http://x"}}}, "could load something from elsewhere"),
])
def test_a_strange_bundle_builds_nothing(model, sentence):
    with pytest.raises(UserError, match=sentence):
        rebuild_network(model)


def test_reading_a_bundle_needs_no_torch():
    code = "import sys; import snakecls.models.bundle; print(sorted({name.split('.')[0] for name in sys.modules}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=REPO)
    assert not {"torch", "timm", "fastai"} & set(eval(done.stdout))
