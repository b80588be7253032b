"""Answers to many photos: the table's form is known before, a killed command goes on to the same bytes, nothing is lost or mixed, and a listing takes no memory."""
import csv
import json
import os
import signal
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path

import pandas as pd
import pytest
from conftest import REPO, draw_snake
from warm import run_command

from snakecls.core import UserError
from snakecls.data.folders import list_photos
from snakecls.data.given import given_photos, iter_photos
from snakecls.deploy.predict import Predictor
from snakecls.workflow.answers import answer_batch
from snakecls.workflow.streamed import MANY, Listing, answer_columns, predict_given, stream_answers
from snakecls.workflow.submission import read_layout

LABELS = ["cobra", "rat snake", "boa"]


def make_bundle(folder: Path, *, seed: int = 0, labels=LABELS, **more) -> Path:
    "Write a tiny network with random weights."
    import timm
    import torch

    from snakecls.models.bundle import write_bundle

    torch.manual_seed(seed)
    facts = {"label_facts": {label: {"venomous": label == "cobra"} for label in labels}}
    described = {"library": "timm", "arch": "test_resnet", "kwargs": {"num_classes": len(labels)}}
    return write_bundle(folder, timm.create_model("test_resnet", num_classes=len(labels)), {"model": described, "labels": labels, "photo": {"size": 64}} | facts | more)


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    "Forty photos, two of them damaged, a table that names them 3,000 times, and models."
    folder = tmp_path_factory.mktemp("streamed")
    (folder / "photos").mkdir()
    for i in range(40):
        draw_snake(i, (60, 48)).save(folder / f"photos/{i:02}.jpg")
    for i in (7, 31):
        (folder / f"photos/{i:02}.jpg").write_bytes(b"\xff\xd8 no photo")
    pd.DataFrame({"path": [f"photos/{i % 40:02}.jpg" for i in range(3000)]}).to_csv(folder / "many.csv", index=False)
    make_bundle(folder / "best")
    make_bundle(folder / "other", seed=1)
    make_bundle(folder / "several", labels=["sea", "boat", "sun"], problem="multi_label", thresholds=[0.1, 0.999, 0.1], label_facts={})
    return folder


def table(file: Path) -> list[dict[str, str]]:
    with open(file, newline="") as stream:
        return list(csv.DictReader(stream))


# The form of a table


def test_the_columns_are_the_same_for_one_photo_and_for_many(place, tmp_path):
    one, many = tmp_path / "one.csv", tmp_path / "many.csv"
    for words in ((place / "photos/00.jpg", "--csv", one), (place / "photos", "--csv", many)):
        run_command("predict", *words, "--model", "best", cwd=place)
    heads = [file.read_text().split("\n")[0] for file in (one, many)]
    assert heads[0] == heads[1] == "path,rank1,prob1,rank2,prob2,rank3,prob3,venomous_among_them,venomous_at_most,caution,error"
    assert answer_columns(Predictor(place / "best"), 99) == heads[0].split(",")  # ranks end with the labels
    rows = table(many)
    assert len(rows) == 40 and [bool(row["error"]) for row in rows] == [i in (7, 31) for i in range(40)]
    assert all(not row["rank1"] and not row["caution"] for row in rows if row["error"])


def test_several_labels_are_all_there_and_the_ranks_are_as_many_as_were_asked_for(place, tmp_path):
    run_command("predict", "photos/00.jpg", "photos/01.jpg", "--model", "several", "--top", "1", "--csv", tmp_path / "said.csv", cwd=place)
    rows = table(tmp_path / "said.csv")
    assert list(rows[0]) == ["path", "predicted", "predicted_probs", "rank1", "prob1", "error"]
    for row in rows:
        assert set(row["predicted"].split(";")) == {"sea", "sun"} and row["rank1"] == row["predicted"].split(";")[0]
        assert row["predicted_probs"].split(";")[0] == row["prob1"] and len(row["predicted_probs"].split(";")) == 2


def test_a_batch_says_what_each_photo_alone_does(place):
    predictor = Predictor(place / "best")
    files = [str(place / f"photos/{i:02}.jpg") for i in range(16)]  # with a damaged one
    good = [file for i, file in enumerate(files) if i != 7]
    for asked in (files, good):
        for file, (row, lines) in zip(asked, answer_batch(predictor, asked)):
            ((alone, said),) = answer_batch(predictor, [file])
            assert lines == said and row.keys() == alone.keys()
            assert [guess["label"] for guess in row.get("top", [])] == [guess["label"] for guess in alone.get("top", [])]
            assert [guess["prob"] for guess in row.get("top", [])] == pytest.approx([guess["prob"] for guess in alone.get("top", [])], abs=1e-5)


# What is shown


def test_few_photos_have_a_line_each_and_many_a_summary(place, tmp_path):
    few = run_command("predict", "photos", "--model", "best", "--csv", tmp_path / "few.csv", cwd=place)
    assert few.stdout.count("\nphotos/") + few.stdout.startswith("photos/") == 40 and "2 of 40 photos got no answer" in few.stderr and few.returncode == 2
    done = run_command("predict", "many.csv", "--model", "best", "--csv", tmp_path / "many.csv", cwd=place)
    assert done.returncode == 2 and "photos/00.jpg" not in done.stdout and len(done.stdout.splitlines()) < 10
    assert "Answered 2,850 of 3,000 photos." in done.stdout and "  150  cannot be read as a photo" in done.stdout
    rows = table(tmp_path / "many.csv")
    first = pd.Series([row["rank1"] for row in rows if row["rank1"]]).value_counts()
    assert f"The most frequent first answers: {first.index[0]} ({first.iloc[0]:,})" in done.stdout
    assert f"Warned loudly of {sum(bool(row['caution']) for row in rows):,}, quietly of 0." in done.stdout
    assert "150 of 3,000 photos got no answer; each one's reason stands in the column error of" in done.stderr


def test_programs_get_one_list_for_many_as_for_few(place, tmp_path):
    pd.DataFrame({"path": [f"photos/{i % 5:02}.jpg" for i in range(MANY + 20)]}).to_csv(place / "some.csv", index=False)
    done = run_command("predict", "some.csv", "--model", "best", "--json", cwd=place)
    with_table = run_command("predict", "some.csv", "--model", "best", "--json", "--csv", tmp_path / "said.csv", cwd=place)
    rows = json.loads(done.stdout)
    assert len(rows) == MANY + 20 and rows == json.loads(with_table.stdout) and done.returncode == 0
    assert [row["top"][0]["label"] for row in rows] == [row["rank1"] for row in table(tmp_path / "said.csv")]
    assert "Answered 120 of 120 photos." in with_table.stderr
    lines = run_command("predict", "some.csv", "--model", "best", cwd=place)
    assert sum(line.startswith("photos/") for line in lines.stdout.splitlines()) == MANY + 20  # without a table there is a line for each


# A command that was stopped


def start(place: Path, *words: str) -> subprocess.Popen:
    environment = {**os.environ, "PYTHONPATH": str(REPO), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([sys.executable, "-m", "snakecls", "predict", *words], cwd=place, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for(part: Path, rows: int, process: subprocess.Popen) -> None:
    end = time.monotonic() + 120
    while not part.exists() or part.read_bytes().count(b"\n") < rows:
        assert process.poll() is None and time.monotonic() < end, process.communicate()
        time.sleep(0.005)


@pytest.fixture(scope="module")
def unstopped(place) -> bytes:
    "The table of a command that nothing stopped."
    assert run_command("predict", "many.csv", "--model", "best", "--csv", "whole.csv", cwd=place).returncode == 2
    assert not list(place.glob("whole.csv.*"))
    return (place / "whole.csv").read_bytes()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
def test_a_command_that_was_stopped_goes_on_to_the_same_bytes(place, unstopped, number):
    name = f"{number.name}.csv"
    words, part = ["many.csv", "--model", "best", "--csv", name], place / f"{name}.part"
    process = start(place, *words)
    wait_for(part, 200, process)
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert process.returncode == (-9 if number == signal.SIGKILL else 128 + number) and not (place / name).exists()
    if number != signal.SIGKILL:
        assert "photos are answered, in" in said and "the same command goes on after them" in said and len(said.splitlines()) == 1, said
    kept = part.read_bytes()
    assert unstopped.startswith(kept[: kept.rfind(b"\n") + 1])
    part.write_bytes(kept + b"photos/00.jpg,rat sn")  # as a power cut leaves it
    again = run_command("predict", *words, cwd=place)
    assert again.returncode == 2 and "of 3,000 photos were answered before, and it goes on after them" in again.stderr, again.stderr
    assert (place / name).read_bytes() == unstopped and not list(place.glob(f"{name}.*"))
    before = int(again.stderr.split(" of 3,000 photos were answered before")[0].split()[-1].replace(",", ""))
    assert before >= 192 and before % 16 == 0 and f"Answered 2,850 of 3,000 photos, {before:,} of them before." in again.stdout


def stop_after(place: Path, csv: Path, n: int, **more) -> Listing:
    "Leave an unfinished table."
    asked = []

    def each(row, lines):
        asked.append(row)
        if len(asked) == n:
            raise KeyboardInterrupt

    listing = Listing(iter_photos([place / "photos"]), sources=["photos"])
    with pytest.raises(KeyboardInterrupt):
        stream_answers(listing, place / "best", csv=csv, each=each, **more)
    return listing


def test_what_differs_is_told_and_nothing_is_lost(place, tmp_path):
    csv = tmp_path / "said.csv"
    listing = stop_after(place, csv, 20)
    kept = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    assert set(kept) == {"said.csv.part", "said.csv.part.json"}
    fewer = Listing(iter_photos([place / "photos/00.jpg"]), sources=["photos/00.jpg"])
    for photos, bundle, more, part in ((listing, "other", {}, "model was .*best and is .*other"), (listing, "best", {"top": 1}, "--top was 3 and is 1"), (listing, "best", {"country": "DE"}, "--country was not given and is Germany"),
                                       (fewer, "best", {}, "the photos were 40 photos of photos and are 1 photo of photos/00.jpg")):
        with pytest.raises(UserError, match=f"holds 32 rows of a command that differs: {part}; repeat that command, give another file, or remove .*said.csv.part to begin anew"):
            stream_answers(photos, place / bundle, csv=csv, **more)
        assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == kept
    rows = kept["said.csv.part"].decode().split("\n")
    (tmp_path / "said.csv.part").write_text("\n".join([rows[0], rows[1].replace("00.jpg", "99.jpg"), *rows[2:]]))
    with pytest.raises(UserError, match="row 1 of .* is of '.*99.jpg', and not of '.*00.jpg'"):
        stream_answers(listing, place / "best", csv=csv)
    (tmp_path / "said.csv.part.json").unlink()
    with pytest.raises(UserError, match="is there without said.csv.part.json"):
        stream_answers(listing, place / "best", csv=csv)
    assert (tmp_path / "said.csv.part").exists()


@pytest.mark.parametrize("end", [b"", b"\0" * 5000, b'photos,"half', b"a,b\n", b"\xff\xfe\n"], ids=["nothing", "zeros", "quote", "cells", "bytes"])
def test_what_is_no_whole_row_is_made_again(place, tmp_path, end):
    whole, csv = tmp_path / "whole.csv", tmp_path / "said.csv"
    listing = stop_after(place, csv, 40)
    stream_answers(listing, place / "best", csv=whole)
    part = tmp_path / "said.csv.part"
    rows = part.read_bytes().split(b"\n")
    part.write_bytes(b"\n".join(rows[:21]) + b"\n" + end)
    tally = stream_answers(listing, place / "best", csv=csv)
    assert csv.read_bytes() == whole.read_bytes() and (tally.n, tally.kept, tally.failed) == (40, 16, 2)


def test_a_command_that_ended_before_its_table_took_its_place_needs_no_photo(place, tmp_path, monkeypatch):
    listing = stop_after(place, tmp_path / "said.csv", 40)  # the last row was written
    monkeypatch.setattr("snakecls.workflow.streamed.answer_batch", lambda *args, **more: pytest.fail("a photo was asked"))
    assert stream_answers(listing, place / "best", csv=tmp_path / "said.csv").kept == 40
    assert len(table(tmp_path / "said.csv")) == 40


def test_two_commands_do_not_write_one_table(place, tmp_path):
    listing, csv = Listing(iter_photos([place / "photos"])), tmp_path / "said.csv"

    def each(row, lines):
        other = Listing(iter_photos([place / "photos"]))
        with pytest.raises(UserError, match="is being written by another command"):
            stream_answers(other, place / "best", csv=csv)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stream_answers(listing, place / "best", csv=csv, each=each)


def test_an_asked_table_is_no_place_for_its_answers(place, tmp_path):
    (tmp_path / "photos.csv").write_text(f"path,rank1\n{place}/photos/00.jpg,cobra\n")  # answers of before
    before = (tmp_path / "photos.csv").read_bytes()
    done = run_command("predict", "photos.csv", "--model", place / "best", "--csv", "photos.csv", cwd=tmp_path)
    assert done.returncode == 2 and "is what was asked about, and would be lost" in done.stderr
    assert (tmp_path / "photos.csv").read_bytes() == before and [file.name for file in tmp_path.iterdir()] == ["photos.csv"]


# Kaggle


def test_a_submission_has_a_row_for_each_photo_and_no_apostrophe(place, tmp_path):
    draw_snake(1).save(tmp_path / "=odd.jpg")
    draw_snake(2).save(tmp_path / "b.jpg")
    (tmp_path / "broken.jpg").write_bytes(b"no")
    done = run_command("predict", ".", "--model", place / "best", "--csv", "out.csv", "--layout", "kaggle-single", cwd=tmp_path)
    rows = table(tmp_path / "out.csv")
    assert [list(row) for row in rows] == [["id", "label"]] * 3 and [row["id"] for row in rows] == ["=odd.jpg", "b.jpg", "broken.jpg"]
    assert [row["label"] in LABELS for row in rows] == [True, True, False] and rows[2]["label"] == ""
    assert done.returncode == 2 and "their labels are empty in out.csv, which Kaggle may refuse" in done.stderr and "./broken.jpg: " in done.stderr
    plain, _ = predict_given(given_photos([tmp_path / "b.jpg"]), place / "best")
    assert rows[1]["label"] == plain[0]["top"][0]["label"]
    again = run_command("predict", ".", "--model", place / "best", "--csv", "out.csv", "--layout", "kaggle-single", cwd=tmp_path)
    assert again.returncode == 2 and "looks like training labels; give another name, or remove it" in again.stderr


def test_several_labels_follow_the_thresholds(place, tmp_path):
    done = run_command("predict", "photos/00.jpg", "photos/01.jpg", "--model", "several", "--csv", tmp_path / "out.csv", "--layout", "kaggle-multi", cwd=place)
    rows = table(tmp_path / "out.csv")
    assert done.returncode == 0 and [row["ImageID"] for row in rows] == ["00.jpg", "01.jpg"]
    assert all(set(row["Labels"].split(" ")) == {"sea", "sun"} for row in rows)  # the boat's threshold is 0.999


def test_a_sample_gives_names_and_order(place, tmp_path):
    (tmp_path / "sample.csv").write_text("image,species\n02,x\nphotos/00.jpg,x\n01.jpg,x\n")
    words = ["--model", "best", "--csv", tmp_path / "out.csv", "--layout", tmp_path / "sample.csv"]
    done = run_command("predict", "photos", *words, cwd=place)
    assert done.returncode == 0 and "left out 37 photos that" in done.stderr
    plain = {row["path"]: row["top"][0]["label"] for row in predict_given(given_photos([place / "photos"]), place / "best")[0] if "top" in row}
    assert table(tmp_path / "out.csv") == [{"image": name, "species": plain[str(place / f"photos/{file}")]} for name, file in (("02", "02.jpg"), ("photos/00.jpg", "00.jpg"), ("01.jpg", "01.jpg"))]
    lost = run_command("predict", "photos/00.jpg", "photos/01.jpg", *words[:2], "--csv", tmp_path / "two.csv", *words[4:], cwd=place)
    assert lost.returncode == 2 and "1 name of 3 in" in lost.stderr and "has no photo ('02')" in lost.stderr and not (tmp_path / "two.csv").exists()


@pytest.mark.parametrize("words, part", [
    (["--layout", "kaggle-single"], "give the file with --csv submission.csv"),
    (["--csv", "x.csv", "--layout", "kaggle-sinlge"], "did you mean 'kaggle-single'?"),
    (["--csv", "x.csv", "--layout", "kaggle-multi"], "gives one label; give --layout kaggle-single"),
    (["--csv", "x.csv", "--layout", "kaggle-single", "--model", "several"], "gives several labels; give --layout kaggle-multi"),
    (["--csv", "x.csv", "--layout", "none.csv"], "'none.csv' does not exist"),
    (["--csv", "x.csv", "--layout", "whole.csv"], "a sample that can be followed has two"),
    (["--csv", "x.csv", "--layout", "twice.csv"], "has 'a' twice in its column 'id'"),
    (["--engine", "rey"], "did you mean 'ray'?"),
    (["--jobs", "2"], "--jobs is for --engine ray"),
    (["--csv", "x.csv", "--country", "Frnace"], "did you mean 'France'?"),
], ids=lambda value: " ".join(value) if isinstance(value, list) else "")
def test_wrong_words_are_told_in_one_sentence(place, unstopped, words, part):
    (place / "twice.csv").write_text("id,label\na,x\na,x\n")
    done = run_command("predict", "photos/00.jpg", *([] if "--model" in words else ["--model", "best"]), *words, cwd=place)
    assert done.returncode == 2 and part in done.stderr and done.stderr.count("snakecls:") == 1 and "Traceback" not in done.stderr, done.stderr
    assert not list(place.glob("x.csv*"))


def test_labels_that_blanks_could_not_part_are_refused(tmp_path, photo):
    make_bundle(tmp_path / "best", labels=["sea", "fishing boat"], problem="multi_label", thresholds=[0.1, 0.1], label_facts={})
    with pytest.raises(UserError, match="1 label of this model holds one or a semicolon .'fishing boat'."):
        stream_answers(Listing([("a.jpg", str(photo))]), tmp_path / "best", csv=tmp_path / "x.csv", submission=read_layout("kaggle-multi"))


# Listings


def test_a_plain_folder_is_walked_as_it_is_listed(tmp_path):
    from snakecls.data.given import _walk_plain

    for name in ("b/1.jpg", "b.jpg", "b c/2.png", "b-c/3.JPG", "b/d/4.jpg", "a.txt", "b/e/notes.md", ".hidden/5.jpg", ".6.jpg", "b0/7.jpg", "ä/8.jpg", "B/9.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    photos, others = _walk_plain(tmp_path)
    assert list(photos) == list_photos(tmp_path)[0] and [Path(one["path"]).name for one in others] == ["a.txt", "notes.md"]
    said, told = [], []
    assert given_photos([tmp_path], say=said.append) == [(path, path) for path in list_photos(tmp_path)[0]]
    for change in (lambda: (tmp_path / "link.jpg").symlink_to(tmp_path / "b.jpg"), lambda: (tmp_path / "b/thumbs").mkdir(), lambda: (tmp_path / "@eaDir").mkdir(), lambda: (tmp_path / "b/status.json").touch() or (tmp_path / "b/run.log").touch()):
        change()
        assert _walk_plain(tmp_path) is None and given_photos([tmp_path], say=told.append) == [(path, path) for path in list_photos(tmp_path)[0]]
        for made in ("link.jpg", "b/status.json", "b/run.log"):
            (tmp_path / made).unlink(missing_ok=True)
        for made in ("b/thumbs", "@eaDir"):
            (tmp_path / made).rmdir() if (tmp_path / made).exists() else None
    assert said == ["Note: left out 2 files in '" + tmp_path.name + "' that can be no photos ('a.txt', 'notes.md')."]


@pytest.mark.parametrize("kind", ["csv", "parquet", "semicolons", "crlf", "gaps", "quotes", "lost", "guarded", "latin", "numbers"])
def test_a_table_in_pieces_is_the_table_as_a_whole(tmp_path, monkeypatch, kind):
    "Whatever asks for a second look is read whole, and what is said is the same."
    from snakecls.data import given

    names = [f"{i % 7}.jpg" for i in range(500)]
    for name in (*names[:7], "'=8.jpg", "=8.jpg", "ä.jpg"):
        (tmp_path / name).touch()
    file = tmp_path / ("t.parquet" if kind == "parquet" else "t.csv")
    frame = pd.DataFrame({"n": range(500), "path": names, "label": "cobra"})
    if kind in ("lost", "guarded", "latin", "gaps"):
        frame.loc[100:110, "path"] = {"lost": "none.jpg", "guarded": "'=8.jpg", "latin": "ä.jpg", "gaps": None}[kind]
    if kind == "quotes":
        frame.loc[3, "label"] = 'a "b", c'
    if kind == "parquet":
        frame.to_parquet(file, index=False)
    else:
        frame.to_csv(file, index=False, sep=";" if kind == "semicolons" else ",", lineterminator="\r\n" if kind == "crlf" else "\n", encoding="cp1252" if kind == "latin" else "utf-8")
    whole, said = [], []
    expected = given_photos([file], say=whole.append)
    monkeypatch.setattr(given, "LARGE_BYTES", 0)
    monkeypatch.setattr(given, "LARGE_ROWS", 0)
    assert (given._read_plainly(file, [].append) is None) == (kind in ("quotes", "lost", "latin"))
    assert given_photos([file], say=said.append) == expected and said == whole and len(expected) == (489 if kind == "gaps" else 500)


def test_a_listing_is_not_held_in_memory():
    tracemalloc.start()
    try:
        listing = Listing((f"photos/{i:08}.jpg", f"/data/photos/{i:08}.jpg") for i in range(50_000))
        n = sum(len(batch) for batch in listing.batches(1000, 16))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert n == 49_000 and peak < 1_000_000, peak  # as a list they are 10 MB
    assert Listing([("a", "b")]).hash != Listing([("a", "c")]).hash


# Ray


def test_without_ray_there_is_one_sentence(place, monkeypatch):
    from snakecls.workflow.answers_on_ray import ray_answers

    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match=r"pip install 'snakecls\[ray\]'"):
        ray_answers()


@pytest.mark.slow
def test_ray_answers_the_same_and_goes_on(place, tmp_path):
    "Row by row; what one machine has begun is gone on with by many."
    pytest.importorskip("ray")
    listing = Listing(iter_photos([place / "photos"]), sources=["photos"])
    stream_answers(listing, place / "best", csv=tmp_path / "here.csv")
    stop_after(place, tmp_path / "ray.csv", 20)
    quick = tmp_path / "quick"
    quick.mkdir()
    (quick / "rfc3987_syntax.py").write_text("raise ImportError('not needed here')")  # see tests/test_ray.py
    code = f"""
from snakecls.data.given import iter_photos
from snakecls.workflow.answers_on_ray import ray_answers
from snakecls.workflow.streamed import Listing, stream_answers
tally = stream_answers(Listing(iter_photos([{str(place / "photos")!r}]), sources=["photos"]), {str(place / "best")!r}, csv={str(tmp_path / "ray.csv")!r}, engine=ray_answers(2))
print(tally.n, tally.kept, tally.failed)
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(quick), str(REPO)]), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    if "Ray did not start" in done.stderr:
        pytest.skip(f"this machine is too busy for Ray: {done.stderr[-300:]}")
    assert done.returncode == 0 and done.stdout.split() == ["40", "32", "2"], done.stderr
    here, there = table(tmp_path / "here.csv"), table(tmp_path / "ray.csv")
    assert len(here) == len(there) == 40
    for one, two in zip(here, there):
        probs = {name for name in one if name.startswith("prob") or name.endswith("at_most")}
        assert {name: one[name] for name in one if name not in probs} == {name: two[name] for name in two if name not in probs}
        assert all(one[name] == two[name] or float(one[name]) == pytest.approx(float(two[name]), abs=2e-6) for name in probs)
