"""What was written before the house was drawn again (commit ae797a6) still loads: runs, bundles, experiment files, exports."""
import json
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest

from snakecls.deploy.predict import Predictor
from snakecls.evaluate.report import write_report
from snakecls.experiment.file import load_experiment
from snakecls.workflow.run_folder import RunFolder, list_runs

OLD = Path(__file__).parent / "old"
EXPECTED = json.loads((OLD / "expected.json").read_text())  # what that commit's Predictor said about each bundle's example photos


def old_run(name: str) -> Path:
    return next(OLD.glob(f"*-{name}"))


def photos_of(run: Path) -> list[Path]:
    return sorted((run / "best" / "examples").glob("*.jpg"))


@pytest.mark.parametrize("name", EXPECTED)
def test_a_bundle_answers_as_it_did(name):
    found = Predictor(old_run(name) / "best").probs_all(photos_of(old_run(name)))
    assert list(found) == list(EXPECTED[name]["probs"])
    for target, probs in EXPECTED[name]["probs"].items():
        np.testing.assert_allclose(found[target], probs, atol=1e-6)


@pytest.mark.parametrize("name", ["one", "multi", "targets"])
def test_an_experiment_file_of_a_run_is_read_as_it_was_meant(name):
    experiment = load_experiment(old_run(name) / "experiment.yaml")
    stage = experiment.schedule[0]
    assert (stage.size, stage.epochs, stage.bs, stage.lr_schedule, stage.warmup) == (32, 1, 8, "cosine", 0.5)
    assert experiment.model.kwargs == {"filters": [4, 4, 4, 4, 8], "dense_neurons": 8}
    assert experiment.data.multi_label == (name == "multi")


def test_the_list_of_runs_shows_them():
    runs = list_runs(OLD).set_index("name")
    assert set(runs.index) >= {"one", "multi", "targets"}
    assert (runs.loc[["one", "multi", "targets"], "status"] == "finished").all()
    for name in ("one", "multi", "targets"):
        assert runs.loc[name, "f1_macro"] == pytest.approx(RunFolder(old_run(name)).metrics()["valid"]["f1_macro"])


@pytest.mark.parametrize("name", ["one", "multi", "targets"])
def test_a_report_can_be_written_again(name, tmp_path):
    run = Path(shutil.copytree(old_run(name), tmp_path / old_run(name).name))
    write_report(run)
    assert "Macro F1" in (run / "report.html").read_text()


@pytest.mark.parametrize("name", ["one", "multi", "targets"])
def test_an_export_is_loaded_by_fastai(name):
    from fastai.learner import load_learner

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # fastai warns of pickle
        learn = load_learner(old_run(name) / "export.pkl")
    photo, expected = photos_of(old_run(name))[0], next(iter(EXPECTED[name]["probs"].values()))[0]
    with learn.no_bar(), learn.no_logging():
        probs = learn.predict(photo)[2]
    np.testing.assert_allclose(np.ravel(probs[0] if name == "targets" else probs), expected, atol=1e-4)
