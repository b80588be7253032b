"""Every experiment file can be read, and runs: small, for one epoch a stage, from random weights where its own cannot be had offline."""
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import REPO
from PIL import Image

from snakecls.experiment.file import load_experiment, make_experiment
from snakecls.workflow.run import run_experiment

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
