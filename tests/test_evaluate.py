"""`snakecls evaluate`: photos of one class, of fewer, of unknown labels; observations and groups; predictions as Parquet."""
import html
import json
import re
from pathlib import Path

import pandas as pd
import pytest
from conftest import draw_colours
from test_faults_person import make_bundle, run

from snakecls.evaluate.predictions import table_probs
from snakecls.evaluate.scores import headline_scores, join_observations


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
    table = pd.read_parquet(photos / "said.parquet")
    assert said["scores"]["n"] == 20 == table.known.sum() and set(table.label[~table.known]) == {"mamba"} and len(table) == 40
    assert any("20 photos are of 1 label that the model does not know ('mamba'); the scores are without them" in note for note in said["notes"])
    assert "mamba: 20 photos, called" in run("evaluate", "best", "--data", "photos", cwd=photos).stdout
    (photos / "photos" / "green").rename(photos / "photos" / "viper")  # now it knows none
    done = run("evaluate", "best", "--data", "photos", cwd=photos)
    assert done.returncode == 2 and "none of the 2 labels of these photos is one that the model knows: given 'mamba', 'viper', known 'blue', 'green', 'red'" in done.stderr
    assert "snakecls predict" in done.stderr


def test_photos_of_one_animal_are_answered_or_drawn_together(photos):
    paths = sorted((photos / "photos").glob("*/*.png"))
    pd.DataFrame({"path": [str(path) for path in paths], "label": [path.parent.name for path in paths], "animal": [i // 4 for i in range(40)]}).to_csv(photos / "table.csv", index=False)
    each, drawn, joined = (evaluate(photos, "--data", "table.csv", "--predictions", "said.parquet", *more) for more in ([], ["--group", "animal"], ["--observation", "animal"]))
    assert each["scores"]["f1_macro"] == drawn["scores"]["f1_macro"] and each["headline"]["accuracy"]["value"] == drawn["headline"]["accuracy"]["value"]
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


def write_table(folder: Path, animal: list, name: str = "table.csv") -> Path:
    "Write a table of the photos with what animal each shows."
    paths = sorted((folder / "photos").glob("*/*.png"))
    pd.DataFrame({"path": [str(path) for path in paths], "label": [path.parent.name for path in paths], "animal": animal}).to_csv(folder / name, index=False)
    return folder / name


def page_of(folder: Path) -> str:
    return re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]+>", " ", re.sub(r"<style>.*?</style>", "", (folder / "report.html").read_text(), flags=re.DOTALL))))


def test_intervals_by_group_stand_in_the_first_line_in_the_scores_and_on_the_page(photos):
    write_table(photos, [i // 4 for i in range(40)])
    words = ["--data", "table.csv", "--group", "animal", "--report", "page"]
    said, text = evaluate(photos, *words), run("evaluate", "best", *words, cwd=photos).stdout
    score = said["headline"]["f1_macro"]
    assert said["scores"]["f1_macro_interval"] == [score["low"], score["high"]] != evaluate(photos, "--data", "table.csv")["scores"]["f1_macro_interval"]
    assert (said["scores"]["group"], said["scores"]["groups"]) == ("animal", 10)
    assert text.splitlines()[0].startswith(f"score  macro F1 {score['value']:.3f} ({score['low']:.3f} to {score['high']:.3f}, n=40 in 10 groups of 'animal')")
    page = page_of(photos / "page")
    assert f"95 %: {score['low']:.3f} to {score['high']:.3f} on 40 photos in 10 groups of 'animal'" in page


@pytest.mark.parametrize("option", ["--group", "--observation"])
def test_an_empty_cell_is_no_group_and_that_is_told(photos, option):
    write_table(photos, [None if i < 12 else i // 4 for i in range(40)])  # the first twenty are green
    said = evaluate(photos, "--data", "table.csv", option, "animal", "--report", "page")
    told = "12 photos of 40 have nothing in the column 'animal'; each of them stands alone."
    assert told in said["notes"] and told[1:] in page_of(photos / "page")
    assert page_of(photos / "page").count("Before you read on") == 1
    pd.read_csv(photos / "table.csv").query("label == 'green'").to_csv(photos / "green.csv", index=False)
    both = evaluate(photos, "--data", "green.csv", option, "animal", "--report", "page")["notes"]
    assert len([note for note in both if note[1:] in page_of(photos / "page")]) == 2 and page_of(photos / "page").count("Before you read on") == 1
    assert said["scores"]["groups" if option == "--group" else "n"] == 12 + 7


def test_observations_are_called_so_and_unknown_labels_stand_on_the_page(photos):
    (photos / "photos" / "red").rename(photos / "photos" / "Green_")
    write_table(photos, [i // 4 for i in range(40)])
    words = ["--data", "table.csv", "--observation", "animal", "--report", "page"]
    said, text, page = evaluate(photos, *words), run("evaluate", "best", *words, cwd=photos).stdout, None
    page = page_of(photos / "page")
    assert re.search(r"recall +F1 +observations", text) and "n=5 observations" in text.splitlines()[0] and "Green_: 5 observations, called" in text
    assert "5 observations of 20 photos" in page and "5 observations of labels that the model does not know" in page and "Green_" in page
    assert "Class F1 Precision Recall Observations" in page
    assert page.count("that the model does not know (") == 1  # said once
    assert any("'Green_' is its 'green', written with other case, spaces or underscores: rename them" in note for note in said["notes"])


def test_an_observation_of_a_known_and_an_unknown_label_is_refused(photos):
    (photos / "photos" / "red").rename(photos / "photos" / "mamba")
    write_table(photos, [i % 4 for i in range(40)])
    done = run("evaluate", "best", "--data", "table.csv", "--observation", "animal", cwd=photos)
    assert done.returncode == 2 and "has photos with different labels" in done.stderr and "mamba" in done.stderr


def test_the_files_hold_all_photos_with_observation_and_names_and_give_the_same_scores_again(photos):
    (photos / "photos" / "red" / "0.png").parent.joinpath("../mamba").mkdir()
    for path in sorted((photos / "photos" / "red").glob("*.png"))[:4]:
        path.rename(photos / "photos" / "mamba" / path.name)
    write_table(photos, [f"animal {i // 4}" for i in range(40)])
    said = evaluate(photos, "--data", "table.csv", "--observation", "animal", "--csv", "said.csv", "--predictions", "said.parquet")
    table, text = pd.read_parquet(photos / "said.parquet"), pd.read_csv(photos / "said.csv")
    assert table.attrs["labels"] == ["blue", "green", "red"] and table.attrs["target"] == "label"
    for kept in (table, text):
        assert sorted(kept.observation) == sorted(f"animal {i}" for i in range(10)) and kept.photos.tolist() == [4] * 10
        assert kept.label[~kept.known].tolist() == ["mamba"] and kept.known.sum() == said["scores"]["n"] == 9
    again = {score.key: score for score in headline_scores(table[table.known], table.attrs["labels"])}
    assert again["f1_macro"].value == pytest.approx(said["headline"]["f1_macro"]["value"]) and again["accuracy"].low == pytest.approx(said["headline"]["accuracy"]["low"])
    probs = table_probs(table)
    assert [table.attrs["labels"][i] for i in probs.argmax(1)] == table.predicted.tolist()


def test_of_one_class_its_recall_comes_first(photos):
    words = ["--data", "photos/green/*.png", "--report", "page"]
    said, text = evaluate(photos, *words), run("evaluate", "best", *words, cwd=photos).stdout
    assert text.startswith("score  recall of 'green' ") and "macro F1" not in text.splitlines()[0]
    assert next(iter(said["headline"])) == "accuracy" and said["scores"]["one_class"] == "green"
    page = page_of(photos / "page")
    assert page.index("Recall of 'green'") < page.index("Macro F1") and "says little, as all are of one class" in page


def test_butterflies_on_a_model_of_snakes_get_one_clear_sentence(photos):
    make_bundle(photos / "snakes", ["Naja naja", "Vipera berus"], target="binomial")
    done = run("evaluate", "snakes", "--data", "photos", cwd=photos)
    assert done.returncode == 2 and "given 'green', 'red', known 'Naja naja', 'Vipera berus'" in done.stderr and "cannot be found in names" not in done.stderr
    (photos / "photos" / "red").rename(photos / "photos" / "naja_naja")
    (photos / "photos" / "green").rename(photos / "photos" / "VIPERA  berus")
    make_bundle(photos / "plain", ["Naja naja", "Vipera berus"], target="label")
    done = run("evaluate", "plain", "--data", "photos", cwd=photos)
    assert "'naja_naja' is its 'Naja naja'" in done.stderr and "rename them as the model writes them" in done.stderr


def test_what_was_promised_stands_beside_what_is_measured(photos):
    import numpy as np

    from snakecls.evaluate.calibration import calibration_error, fit_reliability
    from snakecls.evaluate.conformal import expect_sets, fit_conformal, measure_sets, prediction_set

    every = evaluate(photos, "--data", "photos", "--predictions", "said.parquet")
    assert [row["key"] for row in every["promises"][0]["rows"]] == ["ece"] and "promised" in run("evaluate", "best", "--data", "photos", cwd=photos).stdout
    table = pd.read_parquet(photos / "said.parquet")
    probs, truth = table_probs(table).astype(float), table.label.map({"green": 1, "red": 2}).to_numpy()
    fitted = fit_conformal(probs[::2], truth[::2], coverage=0.8)
    trust = {"source": {"from": "validation", "n": 20, "groups": 20}, "reliability": {"label": fit_reliability(probs[::2], truth[::2])},
             "conformal": {"label": fitted | {"expected": expect_sets(probs[::2], truth[::2], coverage=0.8)}}}
    make_bundle(photos / "best", ["blue", "green", "red"], target="label", trust=trust)
    write_table(photos, [i // 4 for i in range(40)])
    said = evaluate(photos, "--data", "table.csv", "--report", "page")
    found, rows = measure_sets(prediction_set(probs, fitted), truth), {row["key"]: row for row in said["promises"][0]["rows"]}
    assert {key: rows[key]["value"] for key in ("coverage", "macro_coverage", "size", "single")} == pytest.approx(found)
    assert rows["coverage"]["promised"] == 0.8 and rows["coverage"]["low"] <= rows["coverage"]["value"] <= rows["coverage"]["high"]
    error = calibration_error(np.clip(probs, 0, 1), truth)
    assert (rows["ece"]["value"], rows["ece"]["low"], rows["ece"]["high"]) == pytest.approx((error["ece"], error["low"], error["high"]))
    page = page_of(photos / "page")
    assert "What Promised In training Here, on 40 photos" in page and "These figures come from training, and not from the photos of this page" in page
    assert "The promise of 80% is rough, as it comes from 20 photos" in page and "1 bins" not in page and "1 bin of all photos" in page
    grouped = {row["key"]: row for row in evaluate(photos, "--data", "table.csv", "--group", "animal")["promises"][0]["rows"]}
    assert grouped["ece"]["low"] != rows["ece"]["low"] and grouped["coverage"]["value"] == rows["coverage"]["value"]


def test_answers_never_take_the_place_of_another_table(tmp_path, tiny_bundle, snake_photos):
    from snakecls.core import UserError
    from snakecls.workflow.streamed import predict_given

    table = tmp_path / "photos.csv"
    table.write_text("path,binomial\na.jpg,Natrix natrix\n")
    photo = [("a.jpg", str(snake_photos[0]))]
    with pytest.raises(UserError, match="is no table of answers"):
        predict_given(photo, tiny_bundle, csv=table)
    assert table.read_text() == "path,binomial\na.jpg,Natrix natrix\n"
    for _ in range(2):  # answers may take the place of answers
        predict_given(photo, tiny_bundle, csv=tmp_path / "said.csv")


def test_probabilities_never_take_the_place_of_another_table(tmp_path):
    import pandas as pd

    from snakecls.core import UserError
    from snakecls.workflow.answers import _check_predictions

    table, said = tmp_path / "photos.parquet", tmp_path / "said.parquet"
    pd.DataFrame({"path": ["a.jpg"], "label": ["b"]}).to_parquet(table)
    pd.DataFrame({"path": ["a.jpg"], "p_0": [1.0]}).to_parquet(said)
    with pytest.raises(UserError, match="is no table of probabilities"):
        _check_predictions(table, [])
    with pytest.raises(UserError, match="would be lost"):
        _check_predictions(said, [said])
    _check_predictions(said, [table])  # probabilities may take the place of probabilities
