"""Every experiment file can be read, and runs: small, for one epoch a stage, from random weights where its own cannot be had offline."""
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import REPO
from PIL import Image

from snakecls.core import UserError
from snakecls.experiment.file import load_experiment, make_experiment
from snakecls.experiment.schema import FIXED_KWARGS
from snakecls.workflow.run import run_experiment
from snakecls.workflow.space import check_space, read_space

FILES = sorted((REPO / "experiments").glob("*.yaml"))
SMALL = {"scenes": 64, "checkboxes": 64, "butterflies_scratch": 64, "inaturalist_cnn": 128}


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    "Sixty small photos of three classes, and a table that gives each one or two labels."
    folder, rng = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    rows = []
    for i in range(60):
        label = ["red", "green", "blue"][i % 3]
        pixels = rng.integers(0, 150, (72, 80, 3), dtype=np.uint8)
        pixels[..., i % 3] += 100
        (folder / "all" / label).mkdir(exist_ok=True, parents=True)
        Image.fromarray(pixels).save(folder / "all" / label / f"{i}.png")
        rows.append((f"all/{label}/{i}.png", label if i % 4 else f"{label} light"))
    pd.DataFrame(rows, columns=["Filenames", "labels"]).to_csv(folder / "labels.csv", index=False)
    return folder


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_experiment_file_runs(path, photos, tmp_path):
    whole = load_experiment(path)
    several = whole.data.multi_label
    values = whole.model_dump(mode="json")
    values["data"] = {"source": str(photos / ("labels.csv" if several else "all")), "valid": 0.2, "test": 0.2, "resize": whole.data.resize} | ({"multi_label": True, "separator": " "} if several else {})
    size = 64 if whole.model.arch != "cnn" else 96
    for stage in values["schedule"]:
        most = 3 if whole.train.patience or stage["lr_schedule"] in ("plateau", "cosine_restarts") else 1
        stage |= {"size": size, "valid_size": None, "epochs": min(stage["epochs"], most), "bs": 4}
    values["augment"]["presize"] = None
    values["train"] |= {"num_workers": 0, "precision": "fp32+channels_last", "patience": 1 if whole.train.patience else None}  # the fewest epochs in which it can act are 3
    offline = whole.model.arch.split(".")[0] in ("tf_efficientnet_lite0",)
    values["model"]["weights"] = whole.model.weights if offline else "none"
    small = {"convnext_tiny": "convnext_atto", "resnet50": "resnet10t"}  # the same family, so that CI has the time
    values["model"]["arch"] = small.get(whole.model.arch, whole.model.arch)
    if whole.model.arch == "cnn":
        values["model"]["kwargs"] |= {"filters": [4, 8, 8, 8, 8], "dense_neurons": 16}
    values["track"] = []
    experiment = make_experiment(values)
    assert (experiment.train.optimiser, experiment.train.loss, experiment.monitor) == (whole.train.optimiser, whole.train.loss, whole.monitor)
    result = run_experiment(experiment, root=tmp_path / "runs", logbook=None, say=lambda text: None)
    assert 0 <= result.metrics["test"]["f1_macro"] <= 1 and result.metrics["bundle_mb"] < 100
    assert (result.run / "report.html").exists()


SPACES = {"inaturalist_cnn": "inaturalist_cnn", "butterflies_probe": "butterflies_convnext", "butterflies_finetune": "butterflies_convnext"}


def test_every_space_fits_its_experiment():
    "Each key and value is one that the experiment takes, and the command in the file names both."
    files = sorted((REPO / "experiments" / "spaces").glob("*.yaml"))
    assert [path.stem for path in files] == sorted(SPACES)
    for path in files:
        experiment = REPO / "experiments" / f"{SPACES[path.stem]}.yaml"
        check_space(read_space(path), load_experiment(experiment))
        assert f"# snakecls sweep experiments/{experiment.name} --space experiments/spaces/{path.name}" in path.read_text(encoding="utf-8")


WRONG = [
    ({"train": {"target_weights": 2}}, "holds names with values; write train.target_weights: {NAME: …}"),
    ({"monitor": "f1_marco"}, "did you mean 'f1_macro'"),
    *(({"model": {"kwargs": {key: 1}}}, f"model.kwargs is {{'{key}': 1}}: '{key}' ") for key in FIXED_KWARGS),
    *(({"schedule": [{"size": 64} | stage]}, "as a truth value") for stage in (
        {"freeze": False}, {"freeze": True}, {"mixup": False}, {"epochs": True}, {"size": True}, {"lr": [True, 1e-3]}, {"bs": True})),
    ({"seed": True}, "seed is True: YAML reads"), ({"seed": False}, "seed is False: YAML reads"), ({"augment": {"backend": False}}, "in quotes"),
    ({"model": {"weights": False}}, "truth value"), ({"schedule": [{"size": 64, "freeze": None}]}, "is left empty"),
    *(({"schedule": [{"size": 64, "freeze": freeze}]}, "give body, none, or the number of a block from 0") for freeze in ("boddy", -1, 1.5, [1])),
    ({"schedule": [64, 128]}, "- {size: 64, epochs: 3}"), ({"schedule": {"size": 64}}, "- {size: 64, epochs: 3}"), ({"track": ["wandbb"]}, "did you mean 'wandb'"),
    ({"batch_size": 8}, "train.bs or schedule.N.bs"), ({"schedule": [{"size": 64, "batch_size": 8}]}, "did you mean 'bs'"),
    *(({key: 3}, f"schedule.N.{key}") for key in ("epochs", "lr", "size")), ({"train": {"learning_rate": 0.1}}, "schedule.N.lr"),
    ({"schedule": [{"size": 64, "learning_rate": 1}]}, "did you mean 'lr'"), ({"schedule": [{"image_size": 64}]}, "did you mean 'size'"),
    ({"schedule": [{"size": 64, "lr": "fast"}]}, "unable to parse string as a number"), ({"train": {"weight_decay": 0}}, "did you mean 'wd'"),
    *(({"train": {"device": device}}, "did you mean cuda") for device in ("gpu", "GPU:0", "cuda0")), ({"train": {"device": "tpu"}}, "cuda:N"),
    ({"model": "resnet18"}, "model: {arch: resnet18}"), ({"data": None}, "'data.source' is missing"), ({"data": {"sorce": "x"}}, "did you mean 'source'"),
]


@pytest.mark.parametrize("values, said", WRONG, ids=[str(values) for values, _ in WRONG])
def test_what_an_experiment_cannot_be_is_said_with_its_place(values, said):
    with pytest.raises(UserError, match=re.escape(said)):
        make_experiment({"data": {"source": "photos.csv"}} | values)


@pytest.mark.parametrize("overrides, said", [(["model.arch"], "key=value"), (["schedule.7.epochs=1"], "the list has one entry, 0"), (["model.archi=resnet18"], "did you mean 'model.arch'")])
def test_what_cannot_be_set_is_said_with_its_key(overrides, said):
    with pytest.raises(UserError, match=re.escape(said)):
        make_experiment({"data": {"source": "photos.csv"}}, overrides=overrides)


@pytest.mark.parametrize("place", ["schedule[0].lr", "schedule.0.lr"])
def test_a_place_in_a_list_is_taken_as_messages_and_as_comparisons_write_it(place):
    experiment = make_experiment({"data": {"source": "photos.csv"}}, overrides=["model.arch=resnet18", f"{place}=1e-4", "data.top_classes=10"])
    assert (experiment.model.arch, experiment.schedule[0].lr, experiment.data.top_classes) == ("resnet18", 1e-4, 10)


@pytest.mark.parametrize("device", ["cpu", "cuda", "cuda:1", "mps", None])
def test_a_device_is_taken_by_its_name(device):
    assert make_experiment({"data": {"source": "photos.csv"}, "train": {"device": device}}).train.device == device


@pytest.mark.parametrize("text, overrides, kept", [
    ("data: photos\nname: 2024-05-01\nmodel: {weights: best.safetensors}\n", [], ("2024-05-01", "/photos", "/best.safetensors")),
    ("data: photos\nname: 2024-05-01\nmodel: {weights: best.safetensors}\n", ["name=2025-05-01", "model.weights=mine.pth", "data=here"], ("2025-05-01", "here", "mine.pth")),
    ("data: photos\nmodel: {weights: an-earlier-run}\n", [], ("first", "/photos", "an-earlier-run")),
    ("data: photos\nmodel: {weights: best.safetensors}\n", ["model.weights=none"], ("first", "/photos", "none")),
    ("data: {source: photos.csv, target: genus}\n", ["seed=7"], ("first", "/photos.csv", "auto")),
])
def test_paths_start_from_the_file_and_those_of_the_command_line_from_where_it_is_typed(text, overrides, kept, tmp_path):
    (tmp_path / "first.yaml").write_text(text)
    experiment = load_experiment(tmp_path / "first.yaml", overrides=overrides)
    assert (experiment.name, experiment.data.source.replace(str(tmp_path), ""), experiment.model.weights.replace(str(tmp_path), "")) == kept


@pytest.mark.parametrize("text, said", [("data: {source: [}", "not valid YAML"), ("data: photos\nseed: 1\nseed: 2\n", "the key 'seed' is given twice (again in line 3)")])
def test_a_file_that_cannot_be_read_says_why(text, said, tmp_path):
    (tmp_path / "first.yaml").write_text(text)
    with pytest.raises(UserError, match=re.escape(said)):
        load_experiment(tmp_path / "first.yaml")
