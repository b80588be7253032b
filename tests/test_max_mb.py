"A bar for the size of a model: the run ends as usual, and everything that tells its metrics tells whether it was reached."
import json

import numpy as np
import pytest
from PIL import Image

from snakecls.core import UserError
from snakecls.experiment.file import make_experiment
from snakecls.workflow.leaderboard import leaderboard_text
from snakecls.workflow.run import run_experiment
from snakecls.workflow.run_folder import list_runs


@pytest.fixture(scope="module")
def experiment(tmp_path_factory):
    folder, rng = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for i in range(24):
        file = folder / ("red", "green")[i % 2] / f"{i}.png"
        file.parent.mkdir(exist_ok=True)
        pixels = rng.integers(0, 150, (40, 40, 3), dtype=np.uint8)
        pixels[..., i % 2] += 100
        Image.fromarray(pixels).save(file)
    return lambda **predict: make_experiment({
        "data": {"source": str(folder)}, "model": {"arch": "test_resnet", "weights": "none"}, "schedule": [{"size": 32, "epochs": 1, "bs": 4}],
        "predict": {"examples": 1, **predict}, "name": "sized"})


@pytest.mark.parametrize(("max_mb", "within"), [(0.1, False), (100, True), (None, None)])
def test_told_in_metrics_report_logbook_and_leaderboard(experiment, tmp_path, max_mb, within) -> None:
    said: list[str] = []
    result = run_experiment(experiment(max_mb=max_mb), root=tmp_path / "runs", logbook=tmp_path / "logbook.md", say=said.append)
    metrics = json.loads((result.run / "metrics.json").read_text())
    files = sum(file.stat().st_size for file in (result.run / "best").rglob("*") if file.is_file()) / 1e6
    assert metrics["model_mb"] == pytest.approx(files, abs=0.01) and metrics["model_mb"] > metrics["bundle_mb"]
    assert metrics.get("max_mb") == max_mb and metrics.get("within_max_mb") is within
    assert 0 < metrics["training_seconds"] <= metrics["seconds"]
    assert metrics["training_seconds"] == pytest.approx(sum(stage["seconds"] for stage in metrics["stages"]), abs=0.1)
    words = {False: "MORE THAN max_mb 0.1", True: "within max_mb 100", None: ""}[within]
    logbook, report = (tmp_path / "logbook.md").read_text(), (result.run / "report.html").read_text()
    board = leaderboard_text(list_runs(tmp_path / "runs"), tmp_path / "runs")
    assert all(words in text for text in (logbook, report, board))
    assert words or "max_mb" not in logbook + board
    assert ("Size of the model" in report) is (within is not None)
    assert f"(training {metrics['training_seconds']:.0f} s)" in logbook and "training alone" in report
    assert any("choose a smaller model.arch" in line for line in said) is (within is False)


def test_a_bar_is_a_size(experiment) -> None:
    with pytest.raises(UserError, match="max_mb"):
        experiment(max_mb=0)
