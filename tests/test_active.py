"""Photos worth asking about: which come first, what is told and refused, and that no answer is lost when the page is killed."""
import os
import shutil
import signal

import numpy as np
import pandas as pd
import pytest

from conftest import FACTS, draw_snake, need
from warm import run_command
from snakecls.clean.questions import choose_questions, find_densities, rank_questions
from snakecls.clean.unlabelled import find_questions, labelled_table, write_labelled
from snakecls.core import UserError
from snakecls.data.corrections import add_correction, read_corrections
from snakecls.data.manifest import write_manifest


def test_twenty_copies_are_not_asked_about_one_after_another():
    generator = np.random.default_rng(0)
    features = generator.normal(size=(60, 30))
    features[:20] = features[0] + generator.normal(0, 0.01, (20, 30))  # of which the model is least sure
    probs = np.full((60, 3), 0.2)
    probs[:, 0] = 0.6
    probs[:20] = [0.36, 0.34, 0.3]
    ranking = rank_questions(features, probs, paths=[str(i) for i in range(60)], labels=["a", "b", "c"])
    copies = ranking["path"].astype(int) < 20
    assert copies.iloc[0] and copies.iloc[:20].sum() == 1 and copies.iloc[-19:].all()
    assert ranking["score"].is_monotonic_decreasing and sorted(ranking["path"].astype(int)) == list(range(60))
    assert ranking.loc[0, ["likely", "second"]].tolist() == ["a", "b"] and ranking["margin"].iloc[0] == pytest.approx(0.02)
    asked = np.arange(60) == int(ranking["path"].iloc[0])  # the copies of what was answered come last
    later = rank_questions(features, probs, paths=[str(i) for i in range(60)], labels=["a", "b", "c"], n=40, asked=asked)
    assert not (later["path"].astype(int) < 20).any()


def test_what_is_far_from_all_is_not_dense_and_lazy_choice_is_greedy_choice(monkeypatch):
    generator = np.random.default_rng(1)
    points = np.vstack([generator.normal(1, 0.5, (80, 8)), -np.ones((1, 8))])
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    doubt = generator.random(81)
    assert find_densities(points, doubt).argmin() == 80
    rows, values = choose_questions(doubt, points, 12)
    similar, covered, shares = (points @ points.T).clip(0, 1), np.zeros(81), doubt / doubt.sum()
    for row, value in zip(rows, values):  # each is the best of all that are left
        worth = doubt * (np.maximum(similar - covered, 0) @ shares)
        assert value == pytest.approx(worth.max(), rel=1e-4) and worth[row] == pytest.approx(worth.max(), rel=1e-4)
        covered = np.maximum(covered, similar[row])
    assert len(choose_questions(doubt[:3], points[:3], 9)[0]) == 3
    monkeypatch.setattr("snakecls.clean.questions.MOST_PAIRS", 81 * 20)  # a sample of at least 200 is all of them
    assert choose_questions(doubt, points, 12)[0].tolist() == rows.tolist()


@pytest.fixture
def run(tiny_bundle, tmp_path):
    "A run with two labelled photos, and a folder of nine more, one unreadable and one a copy of a labelled one."
    shutil.copytree(tiny_bundle, tmp_path / "run" / "best")
    (tmp_path / "new").mkdir()
    for number in range(7):
        draw_snake(number).save(tmp_path / "new" / f"{number}.png")
    for number in (20, 21):
        draw_snake(number).save(tmp_path / f"{number}.png")
    shutil.copy(tmp_path / "20.png", tmp_path / "new" / "copy.png")
    (tmp_path / "new" / "broken.jpg").write_bytes(b"no photo")
    table = pd.DataFrame({"path": [str(tmp_path / f"{n}.png") for n in (20, 21)], "label": ["Natrix natrix", "Micrurus fulvius"], "split": ["train", "valid"]})
    write_manifest(table, tmp_path / "run" / "manifest.parquet")
    return tmp_path


def test_what_is_not_asked_about_is_told_in_a_sentence_each(run):
    found = find_questions(run / "run", run / "new", n=3)
    assert len(found.table) == 3 and found.n_waiting == 7 and found.labels == list(FACTS)
    assert [note.partition(" (")[0] for note in found.notes] == [
        "1 photo has the content of photos that the model's run knows, and is not asked about", "1 photo cannot be read, and will not be asked about"]
    few = find_questions(run / "run", run / "new", n=50)
    assert len(few.table) == 7 and few.notes[-1] == "50 questions were wanted, and 7 photos without an answer are left, so all are asked about."
    (run / "known").mkdir()
    shutil.copy(run / "20.png", run / "known" / "a.png")
    none = find_questions(run / "run", run / "known")
    assert none.table.empty and none.notes[0].startswith("all photos have the content")


def test_what_is_refused(run):
    for name, content in (("empty", None), ("bad", b"no photo")):
        (run / name).mkdir()
        if content:
            (run / name / "a.jpg").write_bytes(content)
    for source, said in (("empty", "holds no photos"), ("bad", "none of the 1 photo"), ("nowhere", "nowhere")):
        with pytest.raises(UserError, match=said):
            find_questions(run / "run", run / source)
    with pytest.raises(UserError, match="at least 1"):
        find_questions(run / "run", run / "new", n=0)


def test_a_model_of_several_labels_is_refused(tmp_path):
    import timm

    from snakecls.models.bundle import write_bundle

    info = {"model": {"library": "timm", "arch": "test_resnet", "kwargs": {"num_classes": 2}}, "labels": ["sea", "sunset"], "problem": "multi_label",
            "thresholds": [0.5, 0.5], "photo": {"size": 64, "mean": [0.5] * 3, "std": [0.5] * 3}}
    bundle = write_bundle(tmp_path / "best", timm.create_model("test_resnet", num_classes=2), info, graph=False)
    with pytest.raises(UserError, match="gives a photo several labels"):
        find_questions(bundle, tmp_path)


def test_answers_become_the_next_experiments_photos(run):
    from snakecls.experiment.schema import DataConfig
    from snakecls.experiment.table import load_source

    answers, first = run / "answers.csv", find_questions(run / "run", run / "new", n=3).table["path"].tolist()
    add_correction(answers, first[0], action="relabel", label="Natrix natrix")
    add_correction(answers, first[0], action="relabel", label="Micrurus fulvius")  # the last counts
    add_correction(answers, first[1], action="drop")
    shutil.copy(first[0], run / "new" / "again.png")  # has its answer under another name
    later = find_questions(run / "run", run / "new", n=9, answers=answers)
    assert later.n_waiting == 5 and not set(later.table["path"]) & {*first[:2], str(run / "new" / "again.png")}
    written = write_labelled(run / "labelled.csv", answers, run / "run")
    noted, _ = load_source(DataConfig(source=str(run / "labelled.csv")))
    assert sorted(noted.table[["path", "label", "split"]].itertuples(index=False, name=None)) == sorted(
        [(str(run / "20.png"), "Natrix natrix", "train"), (str(run / "21.png"), "Micrurus fulvius", "valid"), (first[0], "Micrurus fulvius", "train")])
    assert len(written) == 3 and list(labelled_table(answers)) == ["path", "label"]


@pytest.mark.parametrize("words, said", [
    (["--unlabelled", "new", "--all"], "and --all would need one"), (["--questions", "5"], "only --unlabelled FOLDER takes --questions"),
    (["--unlabelled", "nowhere", "--model", "run"], "nowhere")])
def test_the_command_refuses_in_a_sentence(run, words, said):
    done = run_command("review", *words, cwd=run)
    assert done.returncode == 2 and said in done.stderr and "Traceback" not in done.stderr


SCRIPT = """
from snakecls.deploy.ask import ask_unlabelled
ask_unlabelled("run/best", "new", n=3)
"""


def test_a_killed_page_has_lost_nothing_and_a_second_call_goes_on(run, start_app, browser):
    need("gradio")
    from test_review import open_page, wait_for

    (run / "ask.py").write_text(SCRIPT)
    app = start_app(run / "ask.py", run).wait()
    page = open_page(browser, app, "1 of 3", width=390, height=844)
    first = page.input_value("#path textarea, #path input")
    assert "What does it show?" in page.content() and not page.is_visible("#keep") and " or " in page.inner_text("#case")
    suggested = page.inner_text("#actions .suggested")
    assert suggested in FACTS and page.inner_text("#drop") == "None of these"
    page.keyboard.press("Enter")
    wait_for(page, "2 of 3")
    page.keyboard.press("d")
    wait_for(page, "3 of 3")
    os.killpg(app.process.pid, signal.SIGKILL)
    app.process.wait(10)
    folder = run / "questions" / "new"
    decided = read_corrections(folder / "answers.csv").decisions
    assert decided["action"].tolist() == ["relabel", "drop"] and decided["path"].iloc[0] == first and decided["label"].iloc[0] == suggested
    table = pd.read_csv(folder / "labelled.csv")
    assert len(table) == 3 and table.iloc[-1].tolist() == [first, suggested, "train"]
    again = start_app(run / "ask.py", run).wait()
    page.goto(again.url)
    wait_for(page, "1 of 3")
    assert page.input_value("#path textarea, #path input") not in set(decided["path"])
    page.keyboard.press("s")
    wait_for(page, "2 of 3")
    page.click("#drop")
    wait_for(page, "3 of 3")
    page.click("#drop")
    wait_for(page, "Done")
    end = page.inner_text("#photo-shown")
    assert "0 given a class, 2 none of these, 1 skipped" in end and "data: {source: questions/new/labelled.csv}" in end
    page.close()
