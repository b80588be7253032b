"""The room models, case by case: what its notebooks show once is gone through here."""
import json
from dataclasses import replace

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torch import nn

from snakecls.core import UserError
from snakecls.disk import write_json
from snakecls.data.photos import PhotoError, PhotoSpec, prepare_photo
from snakecls.models.backbones import create_backbone
from snakecls.models.bundle import rebuild_network, copy_bundle, load_model, read_bundle, write_bundle
from snakecls.models.bundle_files import check_links, list_examples
from snakecls.models.bundle_info import BundleInfo, check_kinds, info_from_dict, info_to_dict, read_strictly
from snakecls.models.features import photo_probs, target_probs
from snakecls.models.freezing import freeze_groups, gradual_unfreezing, stage_groups
from snakecls.models.googlenet import GoogLeNet
from snakecls.models.heads import add_heads
from snakecls.models.info import measure_normalisation
from snakecls.models.networks import build_network, class_tensors, find_library, spare_building
from snakecls.models.pretrained import load_file, run_weights
from snakecls.models.scratch import ConfigurableCNN, create_scratch

TWO = {"num_classes": 2}
INFO = BundleInfo(model={"library": "timm", "arch": "test_resnet", "kwargs": TWO}, labels=["Micrurus fulvius", "Lampropeltis elapsoides"], photo=PhotoSpec(64),
                  label_facts={"Micrurus fulvius": {"common_name": "Eastern coral snake", "venomous": True}})
SEVERAL = replace(INFO, problem="multi_label", thresholds=(0.3, 1))
BOTH = replace(INFO, model=INFO.model | {"heads": {"binomial": 2, "country": 3}}, problem="several_targets", targets={"binomial": INFO.labels, "country": ["BE", "DE", "GH"]})


# normalisation ------------------------------------------------------------------------------------

def test_photos_of_one_colour_have_a_spread_above_zero():
    assert measure_normalisation([Image.new("RGB", (40, 40), (255, 0, 51))], size=8) == ((1.0, 0.0, 0.2), (1 / 255,) * 3)


def test_the_normalisation_needs_photos_that_can_be_read():
    with pytest.raises(UserError, match="no training photos"):
        measure_normalisation([np.zeros((8, 8, 3), np.uint8)], n=0)
    with pytest.raises(PhotoError, match="cannot be read as a photo"):
        measure_normalisation([b"broken"])


# networks from scratch ----------------------------------------------------------------------------

@pytest.mark.parametrize("kwargs, sentence", [
    ({"filters": [8, 16], "kernel_size": [3, 3, 3]}, "kernel_size has 3 values for 2 blocks"), ({"filters": [8, 16], "n_blocks": 5}, "filters has 2 values for 5 blocks"),
    ({"filters": []}, "n_blocks is 0"), ({"filters": [8, 16], "organisation": "double"}, "leave organisation out"), ({"filters": 8, "organisation": "half"}, "cannot be halved"),
    ({"organisation": "dubble"}, "did you mean 'double'"), ({"kernel_size": 4}, "give odd numbers"), ({"dropout": 1.0}, "below 1"), ({"activation": "swish2"}, "activation 'swish2' does not exist"),
    ({"dense_neurons": [64, -1]}, "dense_neurons is -1"), ({"pool": "maximum"}, "does not exist"), ({"batch_norm": 1}, "true or false"),
])
def test_a_cnn_that_cannot_be_is_refused(kwargs, sentence):
    with pytest.raises(UserError, match=sentence):
        ConfigurableCNN(3, **kwargs)


@pytest.mark.parametrize("kwargs, smallest", [({}, 32), ({"n_blocks": 3}, 8), ({"kernel_size": 5}, 48), ({"kernel_size": [11, 7, 3, 3, 3]}, 32), ({"kernel_size": 11}, 96)])
def test_the_smallest_photo_of_a_cnn(kwargs, smallest):
    assert ConfigurableCNN(3, **kwargs).min_size == smallest


def test_a_cnn_has_the_layers_that_are_asked_for():
    model = ConfigurableCNN(10, filters=[8, 16, 24], kernel_size=[7, 5, 3], activation="mish", batch_norm=True, dropout=0.2, dense_neurons=[64, 32], pool="avg")

    def kinds(kind):
        return [module for module in model.modules() if isinstance(module, kind)]

    assert [(layer.out_channels, layer.kernel_size[0]) for layer in kinds(nn.Conv2d)] == [(8, 7), (16, 5), (24, 3)]
    assert [layer.out_features for layer in kinds(nn.Linear)] == [64, 32, 10]
    assert [len(kinds(kind)) for kind in (nn.Mish, nn.BatchNorm2d, nn.AvgPool2d, nn.ReLU)] == [5, 3, 3, 0]
    assert [layer.p for layer in kinds(nn.Dropout)] == [0.2] * 3
    assert ConfigurableCNN(10, dense_neurons=0, grid=1).num_features == 32


def test_names_and_arguments_of_scratch_networks():
    for call, sentence in [(lambda: create_scratch("lenet5", 3, filters=3), "choose one of: activation"), (lambda: create_scratch("cnn", 0), "num_classes is 0"),
                           (lambda: create_scratch("googlenet_scratch", 3, batch_norm=True, local_norm=True), "choose one of them")]:
        with pytest.raises(UserError, match=sentence):
            call()


def test_googlenet_normalises_after_every_convolution():
    assert sum(isinstance(module, nn.BatchNorm2d) for module in GoogLeNet(10, aux=False, batch_norm=True).modules()) == 57


# networks by name ---------------------------------------------------------------------------------

@pytest.mark.parametrize("library, arch, kwargs, sentence", [
    ("keras", "resnet18", TWO, "choose one of: timm, torchvision, snakecls"), ("timm", "resnet_18", TWO, "did you mean 'resnet18'"), ("timm", "hf-hub:someone/something", TWO, "does not exist"),
    ("torchvision", "resnet18", TWO, "torchvision architecture 'resnet18' does not exist"), ("timm", "resnet18", {"checkpoint_path": "evil.pth"}, "load something from elsewhere"),
    ("timm", "resnet18", {"num_clases": 2}, "do not suit timm's 'resnet18'"), ("torchvision", "googlenet", TWO | {"aux_logits": True}, "use model.arch googlenet_scratch"),
    ("torchvision", "googlenet", TWO | {"weights": "DEFAULT"}, "takes no 'weights'; give dropout"),
])
def test_a_network_that_cannot_be_built_is_refused(library, arch, kwargs, sentence):
    with pytest.raises(UserError, match=sentence.replace("(", r"\(")):
        build_network(library, arch, kwargs)
    if library != "torchvision":
        with pytest.raises(UserError, match=sentence):
            rebuild_network({"library": library, "arch": arch, "kwargs": kwargs})


def test_the_nearest_name_is_found_in_all_libraries():
    with pytest.raises(UserError, match="did you mean 'shufflenet_v2_x0_5'"):
        find_library("shufflenet_v2_x05")


def test_a_deep_network_is_refused_before_it_is_made():
    with pytest.raises(UserError, match="much larger than its weights"), spare_building(10**9, "the network"):
        build_network("timm", "vit_tiny_patch16_224", TWO | {"depth": 100_000})


def test_the_tensors_of_the_classes():
    assert class_tensors("timm", "deit_tiny_distilled_patch16_224", TWO) == {"head.weight", "head.bias", "head_dist.weight", "head_dist.bias"}
    assert class_tensors("torchvision", "googlenet", TWO) == {"fc.weight", "fc.bias"}


@pytest.mark.parametrize("arch", ["vit_tiny_patch16_224", "swin_tiny_patch4_window7_224", "densenet121", "googlenet", "regnetx_002"])
def test_every_kind_of_network_takes_heads(arch):
    with torch.device("meta"):
        plain = create_backbone(arch, 4, weights="none").eval()
        before = [len(group) for group in stage_groups(plain)[:-1]]
        model = add_heads(plain, {"a": 4, "b": 2})
        assert [tuple(one.shape) for one in model(torch.zeros(1, 3, 224, 224))] == [(1, 4), (1, 2)]
        assert [len(group) for group in stage_groups(model)[:-1]] == before
        n_features = model.get_classifier().in_features
        assert freeze_groups(model, "body") == (n_features + 1) * 6


def test_gradual_unfreezing_ends_where_it_began_with_everything():
    model = create_backbone("convnext_atto", 12, weights="none")
    assert gradual_unfreezing(model, 2, start="none") == ["none", "none"]
    sizes = [sum(p.numel() for p in group) for group in stage_groups(model)]
    assert [freeze_groups(model, freeze) for freeze in gradual_unfreezing(model, 6)] == [sum(sizes[-n:]) for n in range(1, 7)]
    with pytest.raises(UserError, match="a block from 0"):
        gradual_unfreezing(model, 3, start=9)


# probabilities ------------------------------------------------------------------------------------

def test_probabilities_are_averaged_after_the_sigmoid_and_of_every_target():
    rng = np.random.default_rng(0)
    photos, spec = [rng.integers(0, 255, (64, 64, 3), dtype=np.uint8) for _ in range(5)], PhotoSpec(64)
    model = create_backbone("resnet10t", 3, weights="none").eval()
    batch = torch.from_numpy(np.stack([prepare_photo(photo, spec) for photo in photos]))
    with torch.inference_mode():
        logits, mirrored = model(batch), model(batch.flip(-1))
    np.testing.assert_allclose(photo_probs(model, photos, spec, problem="multi_label", flip=True), (logits.sigmoid() + mirrored.sigmoid()) / 2, atol=1e-5)
    np.testing.assert_allclose(photo_probs(model, photos, spec, temperature=2.0, bs=2), (logits / 2).softmax(1), atol=1e-5)
    double = add_heads(model, {"colour": 3, "half": 2}).eval()
    first, second = target_probs(double, photos, spec, problem="several_targets", flip=True, bs=2)
    with torch.inference_mode():
        wanted = (double(batch)[1].softmax(1) + double(batch.flip(-1))[1].softmax(1)) / 2
    np.testing.assert_allclose(second, wanted, atol=1e-5)
    np.testing.assert_allclose(photo_probs(double, photos, spec, flip=True), first, atol=1e-6)


# weights ------------------------------------------------------------------------------------------

def test_files_of_weights(tmp_path):
    make = {"num_classes": 3}
    heads = class_tensors("timm", "resnet10t", make)
    source, model = build_network("timm", "resnet10t", {"num_classes": 7}), build_network("timm", "resnet10t", make)
    for name, content in {"plain": source.state_dict(), "timm": {"state_dict": source.state_dict(), "epoch": 3}, "fastai": {"model": source.state_dict()}}.items():
        torch.save(content, tmp_path / f"{name}.pth")
        loaded = build_network("timm", "resnet10t", make)
        assert load_file(loaded, tmp_path / f"{name}.pth", heads) == ["fc.bias", "fc.weight"]
        assert torch.equal(loaded.conv1[0].weight, source.conv1[0].weight)
    (tmp_path / "cut.pth").write_bytes((tmp_path / "plain.pth").read_bytes()[:5000])
    (tmp_path / "empty.pth").touch(), (tmp_path / "empty.safetensors").touch()
    for name in ("cut.pth", "empty.pth", "empty.safetensors"):
        with pytest.raises(UserError, match=f"{name} cannot be read as weights"):
            load_file(model, tmp_path / name, heads)
    torch.save([torch.ones(2)], tmp_path / "list.pth")
    with pytest.raises(UserError, match="no tensors by name"):
        load_file(model, tmp_path / "list.pth", heads)


def test_a_run_of_another_shape_is_no_start(tmp_path):
    make = {"num_classes": 2}
    info = replace(INFO, model={"library": "timm", "arch": "resnet10t", "kwargs": make})
    bundle = read_bundle(write_bundle(tmp_path / "best", build_network("timm", "resnet10t", make), info))
    with pytest.raises(UserError, match="'fc.weight' does not fit"):
        run_weights("timm", "resnet10t", make | {"global_pool": "catavgmax"}, bundle, info.labels)
    same, _ = run_weights("timm", "resnet10t", make, bundle, info.labels)
    assert torch.equal(same.fc.weight, load_model(bundle).fc.weight)


# what a bundle says -------------------------------------------------------------------------------

@pytest.mark.parametrize("text, said", [
    ('{"flip": true, "flip": false}', "has 'flip' twice"), ('{"temperature": NaN}', "temperature is nan"), ('{"photo": {"mean": [1e999]}}', "photo.mean.0 is inf"), ("[" * 100_000, "nested without end"),
    ('{"a": ' * 50 + "1" + "}" * 50, "nested deeper than 40"), (f'{{"temperature": {"9" * 100_000}}}', "100000 digits"), ("[1]", "no object"), ('{"labels": ["\\ud800"]}', "no character"), ("", "is empty"),
])
def test_descriptions_with_two_meanings_are_refused(tmp_path, text, said):
    (file := tmp_path / "bundle.json").write_text(text)
    with pytest.raises(UserError, match=said):
        read_strictly(file)


def test_descriptions_in_other_encodings_and_sizes(tmp_path):
    file = tmp_path / "bundle.json"
    for encoding in ("utf-8", "utf-8-sig", "utf-16"):
        file.write_text('{"labels": ["Gürteltier"]}', encoding=encoding)
        assert read_strictly(file) == {"labels": ["Gürteltier"]}
    with open(file, "wb") as stream:
        stream.truncate(2 << 30)  # takes no room
    with pytest.raises(UserError, match="takes 2,048 MB"):
        read_strictly(file)
    with pytest.raises(UserError, match="cannot be read"):
        read_strictly(tmp_path)


@pytest.mark.parametrize("values, said", [
    ({"labels": {"a": 1}}, "its labels is {'a': 1}, but has to be a list of texts"), ({"model": {"arch": None}}, "has to be an object with"), ({"model": {"heads": {"a": 1.5}}}, "has to be an object with"), ({"flip": 1}, "true or false"),
    ({"photo": {"size": "64"}}, "photo.size is '64'"), ({"photo": {"size": True}}, "photo.size is True"), ({"photo": {"size": 10**9}}, "from 1 to 8192"), ({"photo": {"size": 64, "mean": "abc"}}, "three numbers"),
    ({"photo": {"crop_pct": "all"}}, "photo.crop_pct is 'all'"), ({"temperature": True}, "temperature is True"), ({"thresholds": [True]}, "a list of numbers"), ({"targets": {"a": "b"}}, "an object of target and labels"),
    ({"label_facts": {"a": 1}}, "an object of label and facts"), ({"danger_columns": [1]}, "a list of texts"), ({"title": None}, "its title is None, but has to be a text"),
])
def test_values_of_another_kind_are_refused(values, said):
    with pytest.raises(UserError, match=said):
        check_kinds(values)


def test_null_says_the_same_as_nothing_where_a_value_may_be_empty():
    assert check_kinds({"labels": ["a", 7], "metrics": None, "danger_columns": "toxic", "photo": {"size": [64, 96]}}) == {"labels": ["a", 7], "danger_columns": "toxic", "photo": {"size": [64, 96]}}


@pytest.mark.parametrize("changes, said", [
    ({"labels": ["a"]}, "1 labels, but its model has 2 classes"), ({"labels": ["a", "a"]}, "twice there: \\['a'\\]"), ({"label_facts": {"Micrurus fulvus": {}}}, "did you mean 'Micrurus fulvius'"),
    ({"label_facts": {"Micrurus fulvius": {"venomous": "mildly"}}}, "venomous of 'Micrurus fulvius' is 'mildly'"), ({"subject": 3}, "give a text"), ({"model": {"library": "timm"}}, "has no 'arch'"),
    ({"problem": "multilabel"}, "did you mean 'multi_label'"), ({"thresholds": [0.5, 0.5]}, "its problem is 'single_label'"), ({"labels": ["a", " "], "label_facts": {}}, "a label that is blank"),
    ({"labels": ["Naja naja", "Naja  naja "], "label_facts": {}}, "look the same"), ({"labels": ["Gürteltier", "Gu\u0308rteltier"], "label_facts": {}}, "look the same"),
    ({"photo": replace(INFO.photo, mean=[float("nan"), 0.5, 0.5])}, "give finite numbers"), ({"photo": replace(INFO.photo, std=[0.2, float("inf"), 0.2])}, "give finite numbers"),
    *[({"temperature": wrong}, "above 0") for wrong in (0, float("nan"), float("inf"), -1.0, 1e-30, 1e300, True, "1")],
])
def test_what_a_bundle_cannot_say(changes, said):
    with pytest.raises(UserError, match=said):
        replace(INFO, **changes)


@pytest.mark.parametrize("written, meant", [("yes", True), (1, True), (1.0, True), ("x", True), ("No ", False), (0, False), ("?", None), (None, None)])
def test_a_danger_is_read_by_its_meaning(written, meant):
    facts = replace(INFO, label_facts={"Micrurus fulvius": {"Venomous ": written}}).label_facts["Micrurus fulvius"]
    assert facts == {"venomous": meant} and facts["venomous"] is meant
    assert replace(INFO, label_facts={"Micrurus fulvius": {"Has thorns": "yes"}}, danger_columns=["has thorns"]).label_facts["Micrurus fulvius"] == {"has_thorns": True}
    assert replace(INFO, danger_columns=None).danger_columns == []


@pytest.mark.parametrize("wrong", [[0.5], [0.5, 1.5], [0.5, float("nan")], 0.5, ["a", "b"]])
def test_thresholds_are_one_number_for_each_label(wrong):
    with pytest.raises(UserError, match="one number from 0 to 1 for each of the 2 labels"):
        replace(SEVERAL, thresholds=wrong)


@pytest.mark.parametrize("changes, said", [
    ({"problem": "single_label"}, "with several targets give problem 'several_targets' and both"), ({"targets": None}, "and both"), ({"model": INFO.model}, "and both"),
    ({"targets": BOTH.targets | {"country": ["BE"]}}, "are not the numbers of labels"), ({"targets": {"country": ["BE", "DE", "GH"], "binomial": INFO.labels}}, "in their order"),
    ({"targets": BOTH.targets | {"country": ["BE", "DE", "BE"]}}, "twice there: \\['BE'\\]"), ({"labels": INFO.labels[::-1]}, "not those of its first target"),
])
def test_targets_heads_and_labels_say_the_same(changes, said):
    with pytest.raises(UserError, match=said):
        replace(BOTH, **changes)


def test_a_description_survives_json_and_the_keys_of_other_versions():
    for info in (INFO, SEVERAL, BOTH):
        assert info_from_dict(json.loads(json.dumps(info_to_dict(info)))) == info
    values = info_to_dict(INFO)
    assert info_from_dict({key: value for key, value in values.items() if key not in ("problem", "thresholds")}) == INFO  # written before there were several labels
    with pytest.raises(UserError, match="has no 'model'"):
        info_from_dict({"labels": []})


# the folder ---------------------------------------------------------------------------------------

@pytest.fixture
def whole(tmp_path):
    "A bundle of random weights, and the content of its bundle.json."
    torch.manual_seed(0)
    folder = write_bundle(tmp_path / "best", timm.create_model("test_resnet", num_classes=2).eval(), INFO)
    return folder, json.loads((folder / "bundle.json").read_text())


@pytest.mark.parametrize("changes, said", [
    ({"format": 3}, "reads format 1 and 2"), ({"labels": ["one"]}, "1 labels, but its model has 2 classes"), ({"photo": {}}, "have no 'size'"), ({"model": {"library": "timm"}}, "has no 'arch'"),
    ({"labels": INFO.labels[::-1]}, "labels, their order"), ({"temperature": 0.5}, "is damaged, or was edited"), ({"photo": INFO.photo.to_dict() | {"mean": [0.5] * 3}}, "the way photos are prepared"),
    ({"label_facts": {"Micrurus fulvius": {"venomous": False}}}, "snakecls facts FACTS.csv"), ({"seal": None}, "has lost its seal"),
])
def test_an_edited_bundle_is_refused(whole, changes, said):
    folder, values = whole
    write_json(folder / "bundle.json", values | changes)
    with pytest.raises(UserError, match=said):
        read_bundle(folder)


def test_a_bundle_without_a_seal_is_checked_as_far_as_that_goes(whole, tmp_path):
    folder, values = whole
    old = {key: value for key, value in values.items() if key != "seal"} | {"format": 1}
    for model, said in [({"arch": "test_vit"}, "does not hold the weights of 'test_vit'"), ({"kwargs": TWO | {"width_factor": 1}}, "do not suit")]:
        write_json(folder / "bundle.json", old | {"model": values["model"] | model})
        with pytest.raises(UserError, match=said):
            load_model(folder)
    write_json(folder / "bundle.json", old)
    copy = copy_bundle(read_bundle(folder), tmp_path / "copy")
    assert read_bundle(copy).seal and not read_bundle(copy).notes


def test_damaged_weights_are_refused(whole):
    folder, _ = whole
    weights = folder / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    with pytest.raises(UserError, match="copy the whole bundle again"):
        load_model(folder)
    weights.unlink()
    with pytest.raises(UserError, match="has no weights.safetensors"):
        read_bundle(folder)


@pytest.mark.parametrize("value", ["nan", "-inf"])
def test_weights_that_are_no_numbers_are_not_written(tmp_path, value):
    spoilt = timm.create_model("test_resnet", num_classes=2)
    with torch.no_grad():
        spoilt.get_classifier().bias[0] = float(value)
    with pytest.raises(UserError, match=r"holds weights that are no numbers \(NaN or infinite\), such as"):
        write_bundle(tmp_path / "best", spoilt, INFO)
    with pytest.raises(UserError, match="give the network itself"):
        write_bundle(tmp_path / "best", timm.create_model("test_resnet", num_classes=3), INFO)


def test_files_of_a_bundle_are_files(tmp_path):
    (tmp_path / "weights.safetensors").mkdir()
    with pytest.raises(UserError, match="is no file"):
        check_links(tmp_path)
    (tmp_path / "examples").mkdir()
    write_json(tmp_path / "examples" / "examples.json", [3, {"file": 7, "label": None}, {"file": "x.jpg"}])
    assert list_examples(tmp_path)[0] == [] and "3 of the examples" in list_examples(tmp_path)[1][0]
