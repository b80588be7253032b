"Data, training and prediction agree: what the Learner measured is what the bundle says, and wrong settings are refused before a photo is read."
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from fastai.interpret import ClassificationInterpretation
from fastai.learner import load_learner
from sklearn.metrics import f1_score

import snakecls.data.readable
import snakecls.data.photos
from snakecls.core import UserError
from snakecls.data.datablocks import photo_dls
from snakecls.data.demo.draw import make_demo
from snakecls.deploy.predict import Predictor
from snakecls.experiment.file import load_experiment, make_experiment
from snakecls.experiment.plan import make_plan
from snakecls.train.schedules import progressive_fit
from snakecls.workflow.run import run_experiment

REPO = Path(__file__).resolve().parent.parent
SPECIES = ["Micrurus fulvius", "Lampropeltis elapsoides", "Vipera berus"]


def settings(data: Path, *, flip: bool = False) -> dict:
    "The smallest experiment that has a probe, an epoch, and validation at a size of its own."
    return {"name": f"flip {flip}", "seed": 1, "data": {"source": str(data / "photos.csv"), "target": "binomial"}, "model": {"arch": "resnet10t", "weights": "none"},
            "train": {"num_workers": 0, "device": "cpu"}, "predict": {"flip": flip}, "track": ["logbook"],
            "schedule": [{"size": 64, "valid_size": 80, "epochs": 1, "head": "probe", "bs": 8, "lr": 1e-3}]}


@pytest.fixture(scope="session")
def drawn(tmp_path_factory) -> Path:
    return make_demo(tmp_path_factory.mktemp("loop") / "data", n_per_species=10, size_px=80, species=SPECIES, n_workers=1)


@pytest.fixture(scope="session", params=[False, True], ids=["plain", "flip"])
def trained(request, drawn, tmp_path_factory):
    "A run of the whole loop."
    folder = tmp_path_factory.mktemp("run")
    return run_experiment(make_experiment(settings(drawn, flip=request.param)), root=folder / "runs", logbook=folder / "logbook.md", say=lambda text: None)


@pytest.fixture(scope="session")
def fitted(drawn, tmp_path_factory):
    "A Learner after progressive_fit, with nothing of the workflow around it."
    experiment = make_experiment(settings(drawn))
    plan = make_plan(experiment).open_photos(tmp_path_factory.mktemp("learner"))
    learn = plan.learn
    with learn.no_bar(), learn.no_logging():
        result = progressive_fit(learn, plan.stages, seed=1)
    return learn, result


def valid_photos(run) -> pd.DataFrame:
    return pd.read_parquet(run / "manifest.parquet").query("split == 'valid'")


def test_the_bundle_says_what_the_run_has_measured(trained):
    predictor, photos = Predictor(trained.run / "best"), valid_photos(trained.run)
    probs = predictor.probs(photos["path"])
    assert predictor.info.photo.size == 80 and predictor.info.flip == trained.metrics["flip"]
    predicted = [predictor.labels[i] for i in probs.argmax(1)]
    f1 = f1_score(photos["label"], predicted, average="macro", labels=predictor.labels)
    assert trained.metrics["best"]["monitor"] == "f1_macro"
    assert f1 == pytest.approx(trained.metrics["best"]["value"], abs=1e-6) == trained.metrics["valid"]["f1_macro"]
    kept = pd.read_parquet(trained.run / "predictions-valid.parquet").set_index("path").loc[photos["path"]]
    np.testing.assert_allclose(kept[[f"p_{i}" for i in range(3)]].to_numpy(), probs, atol=1e-5)


def test_a_refitted_probe_is_served_with_the_validation_scores_from_before(drawn, tmp_path):
    given = settings(drawn) | {"schedule": [{"size": 64, "epochs": 0, "head": "probe"}]}
    plain, refit = (run_experiment(make_experiment(given | {"name": name, "train": given["train"] | {"refit": name == "refit"}}), root=tmp_path / "runs", logbook=None, say=lambda text: None)
                    for name in ("plain", "refit"))
    assert (plain.metrics["refit"], refit.metrics["refit"]) == (False, True) and "fitted again" in refit.message
    assert plain.metrics["valid"] == refit.metrics["valid"]  # selection is the same, and its score too
    assert "fitted again" in (refit.run / "report.html").read_text()
    photos = pd.read_parquet(refit.run / "manifest.parquet").query("split == 'test'")["path"].tolist()
    before, after = (Predictor(result.run / "best").probs(photos) for result in (plain, refit))
    assert np.abs(before - after).max() > 1e-3  # what is served has seen more photos
    tested = pd.read_parquet(refit.run / "predictions-test.parquet")
    assert np.abs(tested[[f"p_{i}" for i in range(3)]].to_numpy() - after).max() < 1e-5  # and is what the test scores are of


def test_the_exported_learner_predicts_like_the_bundle(trained):
    predictor, photos = Predictor(trained.run / "best"), valid_photos(trained.run)
    learn = load_learner(trained.run / "export.pkl")
    table = pd.read_parquet(trained.run / "manifest.parquet")
    for dl in (learn.dls.test_dl(photos["path"].tolist(), num_workers=0), photo_dls(table, 80, labels=predictor.labels, spec=predictor.info.photo, num_workers=0, device="cpu").valid):
        with learn.no_bar(), learn.no_logging():
            probs = learn.get_preds(dl=dl)[0].numpy()
        np.testing.assert_allclose(probs, predictor.probs(photos["path"]), atol=1e-5)


def test_fastai_still_works_after_progressive_fit(fitted, tmp_path):
    learn, result = fitted
    first = learn.dls.valid_ds.items
    first = (first.iloc[0] if hasattr(first, "iloc") else first[0])["path"]
    with learn.no_bar(), learn.no_logging():
        probs, targets = learn.get_preds()
        f1 = f1_score(targets, probs.argmax(1), average="macro")
        assert f1 == pytest.approx(result.best["value"], abs=1e-6)
        assert learn.tta(n=1)[0].shape == probs.shape
        assert ClassificationInterpretation.from_learner(learn).confusion_matrix().sum() == len(targets)
        assert learn.predict(first)[2].numpy() == pytest.approx(probs[0].numpy(), abs=1e-5)
        learn.export(tmp_path / "plain.pkl")
        again = load_learner(tmp_path / "plain.pkl")
        with again.no_bar():
            np.testing.assert_allclose(again.get_preds(dl=learn.dls.valid)[0], probs, atol=1e-5)
        learn.path = tmp_path  # lr_find saves and loads
        assert learn.lr_find(num_it=4, show_plot=False).valley > 0
        np.testing.assert_allclose(learn.get_preds()[0], probs, atol=1e-5)


@pytest.mark.parametrize("change, said", [
    ({"model": {"arch": "resnet10"}}, "resnet10"),
    ({"schedule": [{"size": 64, "epochs": 1, "freeze": 99}]}, "99"),
    ({"monitor": "f1_marco"}, "did you mean 'f1_macro'"),
    ({"train": {"device": "cdua"}}, "cdua"),
    ({"train": {"device": "cuda:99"}}, "cuda:99"),
    ({"facts": "none.csv"}, "none.csv"),
    ({"facts": "strangers.csv"}, "strangers.csv"),
    ({"augment": {"backend": "albumentations", "transforms": ["Blurr"]}}, "Blurr"),
], ids=["arch", "freeze", "monitor", "device", "device number", "facts file", "facts of others", "transform"])
def test_what_cannot_work_is_refused_before_a_photo_is_read(drawn, tmp_path, monkeypatch, change, said):
    def never(*args, **kwargs):
        raise AssertionError("a photo was read")

    (tmp_path / "strangers.csv").write_text("binomial,venomous\nHomo sapiens,no\n")
    for module in (snakecls.data.photos, snakecls.data.readable, sys.modules["snakecls.data.datablocks"]):
        monkeypatch.setattr(module, "open_photo", never)
    values = settings(drawn)
    facts = change.get("facts")
    values = values | {key: value for key, value in change.items() if key != "facts"} | ({"data": values["data"] | {"facts": str(tmp_path / facts)}} if facts else {})
    with pytest.raises(UserError, match=re.escape(said)):
        run_experiment(make_experiment(values), root=tmp_path / "runs", logbook=tmp_path / "logbook.md", say=lambda text: None)
    assert not (tmp_path / "runs").exists() and not (tmp_path / "logbook.md").exists()


TRAIN = """
import json, sys
import snakecls.deploy.export, fastai.vision.all, timm
from snakecls.experiment.file import load_experiment, make_experiment
from snakecls.workflow.run import run_experiment
print("ready", flush=True)
sys.stdin.readline()
run_experiment(make_experiment(json.loads(sys.argv[1])), root=sys.argv[2], logbook=sys.argv[3], say=lambda text: None)
"""


def test_a_runs_own_experiment_file_can_be_run_again_from_anywhere(drawn, tmp_path, monkeypatch):
    monkeypatch.chdir(drawn.parent)
    given = settings(Path(drawn.name)) | {"schedule": [{"size": 64, "epochs": 0, "head": "probe"}]}
    first = run_experiment(make_experiment(given), root=tmp_path / "runs", logbook=tmp_path / "logbook.md", say=lambda text: None)
    monkeypatch.chdir(tmp_path)
    again = run_experiment(load_experiment(first.run / "experiment.yaml"), root=tmp_path / "runs", logbook=None, say=lambda text: None)
    assert again.metrics["valid"] == first.metrics["valid"] and again.metrics["test"] == first.metrics["test"]
    assert re.search(r"Seeds:\W* 1 \(1\)", (tmp_path / "logbook.md").read_text())


def test_two_runs_at_once_into_one_logbook_lose_nothing(drawn, tmp_path):
    logbook = tmp_path / "logbook.md"
    logbook.write_text("# Log\n\nBy hand.\n")
    values = settings(drawn) | {"name": "same", "schedule": [{"size": 64, "epochs": 0, "head": "probe"}]}
    command = [sys.executable, "-c", TRAIN, json.dumps(values), str(tmp_path / "runs"), str(logbook)]
    other = subprocess.Popen(command, cwd=REPO, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert other.stdout.readline() == "ready\n"
    other.stdin.write("go\n")
    other.stdin.flush()
    run_experiment(make_experiment(values), root=tmp_path / "runs", logbook=logbook, say=lambda text: None)
    said = other.communicate()[1]
    assert other.returncode == 0, said
    runs = sorted(path.name for path in (tmp_path / "runs").iterdir())
    text = logbook.read_text()
    assert len(runs) == 2 and text.startswith("# Log\n\nBy hand.\n") and text.count("\n## ") == 2
    for run in runs:
        assert text.count(f"](runs/{run})") == 1 and (tmp_path / "runs" / run / "report.html").exists()
