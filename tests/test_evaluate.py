"""`snakecls evaluate`: photos of one class, of fewer, of unknown labels; observations and groups; predictions as Parquet."""
import json
from pathlib import Path

import pandas as pd
import pytest
from conftest import draw_colours
from test_faults_person import make_bundle, run

from snakecls.evaluate.predictions import table_probs
from snakecls.evaluate.scores import join_observations


@pytest.fixture
def photos(tmp_path) -> Path:
    "Forty photos of two colours, and a bundle that knows three."
    draw_colours(tmp_path / "photos", n=40, step=60)
    make_bundle(tmp_path / "best", ["blue", "green", "red"], target="label")
    return tmp_path


def evaluate(folder: Path, *words: object) -> dict:
    done = run("evaluate", "best", *words, "--json", cwd=folder)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_every_headline_score_has_an_interval_and_classes_and_confusion_are_shown(photos):
    said = evaluate(photos, "--data", "photos", "--predictions", "said.parquet")
    assert {"f1_macro", "f1_weighted", "accuracy", "balanced_accuracy"} <= set(said["headline"])
    assert all(0 <= score["low"] <= score["value"] <= score["high"] <= 1 for score in said["headline"].values())
    table = pd.read_parquet(photos / "said.parquet")
    assert len(table) == 40 and said["headline"]["accuracy"]["value"] == pytest.approx((table.label == table.predicted).mean())
    assert said["headline"]["accuracy"]["value"] == pytest.approx(said["scores"]["accuracy"])
    assert {row["label"]: row["n"] for row in said["classes"]} == {"blue": 0, "green": 20, "red": 20}
    text = run("evaluate", "best", "--data", "photos", cwd=photos).stdout
    assert "40 photos, 95 % intervals" in text and "Truth (row), answer (column)" in text and "precision  recall" in text and "nan" not in text


def test_photos_of_one_class_alone_are_scored(photos):
    said = evaluate(photos, "--data", "photos/red/*.png")
    assert said["scores"]["n"] == 20 and any("all 20 photos are of 'red'" in note for note in said["notes"])
    assert said["headline"]["accuracy"]["value"] == pytest.approx(said["scores"]["accuracy"])


def test_labels_that_the_model_does_not_know_are_reported_apart(photos):
    (photos / "photos" / "red").rename(photos / "photos" / "mamba")
    said = evaluate(photos, "--data", "photos", "--predictions", "said.parquet")
    (row,) = said["unknown"]
    assert (row["label"], row["n"], sum(row["answers"].values())) == ("mamba", 20, 20) and 0 < row["median_prob"] <= 1
    assert said["scores"]["n"] == 20 and len(pd.read_parquet(photos / "said.parquet")) == 20
    assert any("20 photos are of 1 label that the model does not know ('mamba'); the scores are without them" in note for note in said["notes"])
    assert "mamba: 20 photos, called" in run("evaluate", "best", "--data", "photos", cwd=photos).stdout
    (photos / "photos" / "green").rename(photos / "photos" / "viper")  # now it knows none
    done = run("evaluate", "best", "--data", "photos", cwd=photos)
    assert done.returncode == 2 and "are not among the model's 3" in done.stderr


def test_photos_of_one_animal_are_answered_or_drawn_together(photos):
    paths = sorted((photos / "photos").glob("*/*.png"))
    pd.DataFrame({"path": [str(path) for path in paths], "label": [path.parent.name for path in paths], "animal": [i // 4 for i in range(40)]}).to_csv(photos / "table.csv", index=False)
    each, drawn, joined = (evaluate(photos, "--data", "table.csv", "--predictions", "said.parquet", *more) for more in ([], ["--group", "animal"], ["--observation", "animal"]))
    assert each["scores"] == drawn["scores"] and each["headline"]["accuracy"]["value"] == drawn["headline"]["accuracy"]["value"]
    assert each["headline"]["accuracy"] != drawn["headline"]["accuracy"]
    table = pd.read_parquet(photos / "said.parquet")
    assert joined["scores"]["n"] == len(table) == 10 and table["photos"].tolist() == [4] * 10
    evaluate(photos, "--data", "table.csv", "--predictions", "all.parquet")
    every = pd.read_parquet(photos / "all.parquet")
    again = join_observations(every, [i // 4 for i in range(40)], ["blue", "green", "red"])
    assert table_probs(again) == pytest.approx(table_probs(table), abs=1e-5) and again.predicted.tolist() == table.predicted.tolist()
    assert "10 observations of 40 photos" in run("evaluate", "best", "--data", "table.csv", "--observation", "animal", cwd=photos).stdout


@pytest.mark.parametrize("words, why", [
    (["--observation", "animl"], "--observation animl is no column of the photos' table"), (["--group", "x"], "it has none beside path and label"),
    (["--predictions", "said.csv"], "said.csv is to be a file of the kind .parquet"), (["--predictions", "photos/red/0.png/x.parquet"], "the folder of --predictions"),
])
def test_what_cannot_be_is_told_in_one_sentence(photos, words, why):
    done = run("evaluate", "best", "--data", "photos", *words, cwd=photos)
    assert done.returncode == 2 and why in done.stderr and "Traceback" not in done.stderr, done.stderr
