"""`snakecls check`, decisions, and an experiment that uses them: from a folder of photos with something wrong to a run without it."""
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
from conftest import REPO
from PIL import Image

from snakecls.core import UserError
from snakecls.data.demo.draw import make_demo
from snakecls.experiment.file import make_experiment
from snakecls.experiment.schema import DataConfig
from snakecls.clean.check_folder import undecided
from snakecls.workflow.check import check_source
from snakecls.workflow.run import run_experiment
from test_cli import snakecls

SPECIES = ["Micrurus fulvius", "Lampropeltis elapsoides", "Thamnophis sirtalis"]


@pytest.fixture(scope="module")
def messy(tmp_path_factory) -> Path:
    "Drawn snakes with copies and broken files, and their check."
    folder = tmp_path_factory.mktemp("messy")
    make_demo(folder / "data", n_per_species=10, size_px=96, species=SPECIES, exact_duplicates=3, near_duplicates=3, broken=4, n_workers=1)
    done = snakecls("check", "data/photos.csv", "--set", "data.target=binomial", "--size", "96", "--json", cwd=folder)
    assert done.returncode == 0, done.stderr
    (folder / "said.json").write_text(done.stdout)
    return folder


def test_the_check_finds_what_the_generator_did(messy):
    said = json.loads((messy / "said.json").read_text())
    truth = pd.read_csv(messy / "data/truth.csv", keep_default_na=False)
    issues = pd.read_parquet(messy / said["folder"] / "issues.parquet")
    assert {"path", "issue", "verdict", "score", "reason"} <= set(issues)
    names = issues["path"].map(lambda path: Path(path).relative_to((messy / "data").resolve()).as_posix())
    assert set(truth.loc[truth["broken"] != "", "path"]) == set(names[(issues["verdict"] == "drop") & issues["issue"].isin(("truncated", "empty", "not an image"))])
    assert set(truth.loc[truth["duplicate_kind"] == "exact", "path"]) <= set(names[issues["issue"] == "exact duplicate"])
    assert (messy / said["report"]).stat().st_size > 10_000


def test_decisions_reach_the_run(messy):
    photos = {path: path.read_bytes() for path in (messy / "data/photos").rglob("*.*")}
    done = snakecls("review", "photos", "--accept", "exact duplicate", cwd=messy)
    assert done.returncode == 0 and "Decided on 3 photos" in done.stdout, done.stderr + done.stdout
    file = messy / "checks/photos/corrections.csv"
    experiment = make_experiment({
        "data": {"source": messy / "data/photos.csv", "target": "binomial", "corrections": file}, "model": {"arch": "resnet10t", "weights": "none"},
        "schedule": [{"size": 32, "epochs": 1}], "train": {"num_workers": 0}, "track": []})
    said = []
    result = run_experiment(experiment, root=messy / "runs", logbook=None, say=said.append)
    manifest, dropped = pd.read_parquet(result.run / "manifest.parquet"), set(pd.read_csv(file)["path"])
    assert not dropped & set(manifest["path"]) and any("3 dropped" in line for line in said)
    assert set(pd.read_csv(result.run / "corrections.csv")["outcome"]) == {"dropped"}
    assert (pd.read_parquet(result.run / "issues.parquet")["issue"] == "dropped").sum() == 3
    assert {path: path.read_bytes() for path in photos} == photos  # the photos are as they were


@pytest.mark.parametrize("words, sentence", [
    (["check", "nowhere"], "'nowhere' does not exist"),
    (["check", "data/photos.csv", "--set", "data.target=binomail"], "did you mean 'binomial'"),
    (["check", "data/photos.csv", "--set", "data.multi_labels=true"], "did you mean 'data.multi_label'"),
    (["check", "data/photos", "--output", "checks/photos"], "holds the check of"),
    (["check", "bad.yaml"], "does not exist"),
    (["review", "phtos"], "did you mean 'photos'"),
    (["review", "photos", "--accept", "near duplicat"], "--accept 'near duplicat'"),
    (["train", "--data", "data/photos.csv", "--set", "data.corrections=nothing.csv"], "no corrections at"),
])
def test_mistakes_are_one_sentence(messy, words, sentence):
    done = snakecls(*words, cwd=messy)
    assert done.returncode == 2 and sentence in done.stderr and "Traceback" not in done.stderr and len(done.stderr.strip().splitlines()) == 1, done.stderr


def test_an_interrupted_check_goes_on_where_it_stopped(tmp_path):
    (tmp_path / "photos/a").mkdir(parents=True), (tmp_path / "photos/b").mkdir()
    noise = Image.effect_noise((700, 700), 60).convert("RGB")
    for i in range(600):
        noise.rotate(i).save(tmp_path / f"photos/{'ab'[i % 2]}/{i}.jpg")
    code = "from snakecls.workflow.check import check_source; from snakecls.experiment.schema import DataConfig; check_source(DataConfig(source='photos'), 'check', files_only=True, n_workers=1)"
    process = subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(REPO)}, start_new_session=True)
    cache = tmp_path / "check/photos.sqlite"
    deadline = time.time() + 60
    while time.time() < deadline and count_facts(cache) < 50:
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    done = count_facts(cache)
    assert 50 <= done < 600 and not (tmp_path / "check/check.json").exists()
    stamp = cache_stamps(cache)
    result = check_source(DataConfig(source=str(tmp_path / "photos")), tmp_path / "check", files_only=True, say=lambda text: None)
    assert len(result.table) == 600 and stamp <= cache_stamps(cache)


def count_facts(cache: Path) -> int:
    return len(cache_stamps(cache))


def cache_stamps(cache: Path) -> set:
    import sqlite3
    if not cache.exists():
        return set()
    try:
        with sqlite3.connect(f"file:{cache}?mode=ro", uri=True) as db:
            return set(db.execute("select path, sha from files"))
    except sqlite3.OperationalError:
        return set()


def test_several_labels_are_checked_and_asked_about(tmp_path):
    (tmp_path / "photos").mkdir()
    rows = []
    for i in range(24):
        labels = [name for name, on in (("red", i % 2), ("green", i % 3 == 0)) if on] or ["dark"]
        Image.merge("RGB", [Image.effect_noise((96, 96), 40).point(lambda v, up=name in labels: v // 2 + 120 * up) for name in ("red", "green", "blue")]).save(tmp_path / f"photos/{i}.png")
        rows.append((f"photos/{i}.png", " ".join(labels)))
    pd.DataFrame(rows, columns=["Filenames", "labels"]).to_csv(tmp_path / "labels.csv", index=False)
    data = DataConfig(source=str(tmp_path / "labels.csv"), multi_label=True, separator=" ")
    result = check_source(data, tmp_path / "check", size=64, say=lambda text: None)
    _, photos, about = undecided(tmp_path / "check", tmp_path / "corrections.csv")
    assert about["multi_label"] and about["labels"] == ["dark", "green", "red"] and all(isinstance(cell, list) for cell in photos["labels"])
    assert len(result.table) == 24 and "Labels together" in (tmp_path / "check/report.html").read_text()
    with pytest.raises(UserError, match="label_column|multi_label"):
        check_source(DataConfig(source=str(tmp_path / "labels.csv"), label_column="nothing"), tmp_path / "other", say=lambda text: None)


@pytest.mark.parametrize("resize", ["squash", "pad", "crop"])
def test_checkboxes_run_as_they_lie(tmp_path, resize):
    "RGBA, very wide or very tall, folders train and val."
    for split, n in (("train", 8), ("val", 4)):
        for label, colour in (("checked", (0, 0, 0, 255)), ("unchecked", (255, 255, 255, 0)), ("other", (90, 0, 90, 128))):
            (tmp_path / "data" / split / label).mkdir(parents=True)
            for i in range(n):
                Image.new("RGBA", [(300, 20), (18, 200)][i % 2], colour).save(tmp_path / "data" / split / label / f"{i}.png")
    result = run_small(tmp_path, {"source": tmp_path / "data", "resize": resize})
    assert result.metrics["labels"] == ["checked", "other", "unchecked"] and result.metrics["valid"]["n"] == 12


def test_inaturalist_runs_as_it_lies(tmp_path):
    "The folder val is the test set; 20 % of train is taken, stratified, for validation."
    for split, n in (("train", 10), ("val", 3)):
        for label, colour in (("Aves", "red"), ("Fungi", "brown")):
            (tmp_path / "inaturalist_12K" / split / label).mkdir(parents=True)
            for i in range(n):
                Image.new("RGB", (60, 40 + i), colour).save(tmp_path / "inaturalist_12K" / split / label / f"{i}.jpg")
    result = run_small(tmp_path, {"source": tmp_path / "inaturalist_12K", "splits": {"val": "test"}, "valid": 0.2})
    counts = pd.read_parquet(result.run / "manifest.parquet").groupby(["split", "label"]).size().to_dict()
    assert counts == {("test", "Aves"): 3, ("test", "Fungi"): 3, ("train", "Aves"): 8, ("train", "Fungi"): 8, ("valid", "Aves"): 2, ("valid", "Fungi"): 2}
    assert result.metrics["test"]["n"] == 6


def run_small(folder: Path, data: dict):
    experiment = make_experiment({"data": data, "model": {"arch": "resnet10t", "weights": "none"}, "schedule": [{"size": 32, "epochs": 1}], "train": {"num_workers": 0, "bs": 4}, "track": []})
    return run_experiment(experiment, root=folder / "runs", logbook=None, say=lambda text: None)
