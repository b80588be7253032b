"""What anybody may write takes a time that grows with its length, and unfolds to no more than it may."""
import json
import math
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from snakecls import core
from snakecls.core import UserError
from snakecls.disk import read_json, read_parquet
from snakecls.data import label_facts as dangers, labels, messy_csv
from snakecls.data.given import _find_photos
from snakecls.data.tables import load_table, read_table, read_unlabelled
from snakecls.models.bundle_info import read_strictly
from snakecls.experiment.file import _override_key
from snakecls.experiment.facts import read_facts
from snakecls.workflow.grid import _parse_grid


def attempt(function, text):
    "Run a function on a text; a sentence is an answer, too."
    start = time.perf_counter()
    try:
        function(text)
    except ValueError as e:
        assert "\n" not in str(e)
    return time.perf_counter() - start


def read_rows(text):
    messy_csv.read_messy(text.split("\n"), ",", columns=8, path=0)


TEXTS = {
    "header": (dangers.danger_key, ["a ", "a  ,  ", "snake ", "? ", "is ", " status", "1 = no "]),
    "sound": (lambda text: dangers.sounds_dangerous(text) or dangers.has_odd_coding(text), ["a ", "is ", "? ", "ly "]),
    "cell": (lambda text: dangers.speaks_of_danger("x", [text]), ["a ", "1 ", "non "]),
    "list": (labels._read_list, ['\\"', "'\\", "[", "'a' ", "-", "0 "]),
    "rows": (read_rows, ["a  ,  ", '",', '"a",', ' ,"', " ", '"', '""', '", "', 'a "b", ', '"\n', 'a,"b\n']),
    "row": (lambda text: messy_csv.read_messy(['"' + text], ",", columns=3), ['",', '"a",', " ", '"']),
    "grid": (lambda text: _parse_grid(["a=" + text]), [",", "],", "a,b ", "[,", '",']),
    "set": (lambda text: _override_key({}, "model.arch=" + text), ["[", "a,", "'", "{a: ", "&a "]),
    "guess": (lambda text: core.nearest("resnet19", [text, text + "b"]), ["a", "resnet"]),
    "guesses": (lambda text: core.nearest(text, ["resnet18"] * 100), ["a", "resnet"]),
}


@pytest.mark.parametrize("name", TEXTS)
def test_time_grows_with_the_length_of_a_text(name):
    function, units = TEXTS[name]
    attempt(function, "warm up")
    for unit in units:
        for before in ("", '"', "["):
            for _ in range(4):  # a busy machine makes one of them slow, and not four times in a row
                short, long = (attempt(function, before + unit * (n // len(unit))) for n in (10_000, 40_000))
                if long < max(12 * short, 0.3):
                    break
            assert long < max(12 * short, 0.3), (name, unit, before, short, long)  # four times as long; sixteen times where it grew with the square


def test_many_long_names_are_compared_within_seconds():
    start = time.perf_counter()
    core.nearest("a" * 200, ["a" * 150 + "b" * 40 + str(number) for number in range(100_000)])
    core.nearest("resnet", [f"label {number}" for number in range(300_000)])
    assert time.perf_counter() - start < 15
    assert core.nearest("Convnext_Tiny" * 100, ["convnext_tiny" * 100]) == "convnext_tiny" * 100  # the same but for capitals, however long
    assert core.nearest("convnext_tny", ["x" * 5_000, "convnext_tiny"]) == "convnext_tiny"
    message = str(core.unknown_name("label", "q" * 1_000_000, ["z" * 1_000_000] * 30))
    assert "does not exist" in message and len(message) < 10_000


def test_rows_with_stray_quotes_are_read_as_before():
    rows, repaired, lost = messy_csv.read_messy(['1.jpg,a "big, brown" dog', '"2.jpg" , "says ""hi"""', '3.jpg,"a", or "b"', "4.jpg", " 5.jpg,x ,"], ",", columns=2, path=0)
    assert rows == [["1.jpg", 'a "big, brown" dog'], ["2.jpg", 'says "hi"'], ["3.jpg", 'a", or "b'], ["5.jpg", "x"]] and repaired == [2, 4, 6] and [number for number, _ in lost] == [5]
    wide = ",".join(["x   "] * 300)
    assert messy_csv.read_messy([wide, wide, wide + ",y"], ",", columns=300, free=False)[0] == [["x"] * 300] * 2


def test_a_csv_that_hung_is_read(tmp_path):
    names = ",".join(["path", "label", *(f"column {number}" for number in range(38))])
    rows = [f"{n}.jpg  ,  {'ab'[n % 2]}  ,  " + "  ,  ".join(["x"] * 38) for n in range(20)]
    (tmp_path / "t.csv").write_text("\n".join([names, *rows, rows[0] + "  ,  y", rows[1].replace("x", 'x "y', 1)]))
    start = time.perf_counter()
    table = load_table(tmp_path / "t.csv", check_files=False)
    assert len(table) >= 20 and set(table["label"]) == {"a", "b"} and time.perf_counter() - start < 10


def test_a_grid_has_an_end():
    axes = [f"{key}=1,2,3,4,5,6,7,8,9,10" for key in "abcdefghij"]
    with pytest.raises(UserError, match="asks for 10,000,000,000 combinations, and 10,000 are run at most"):
        _parse_grid(axes)
    assert _parse_grid(["a=[1,2],{b: 1, c: 2},3"]) == [["a=[1,2]"], ["a={b: 1, c: 2}"], ["a=3"]] and len(_parse_grid(axes[:3])) == 1000


def test_labels_that_look_alike_are_told_in_a_line():
    alike = ["".join(char.upper() if number >> place & 1 else char for place, char in enumerate("nätürlichés")) for number in range(2048)]
    text = labels.describe_alike(alike, "the table")
    assert text.startswith("2048 labels") and "2,043 more" in text and len(text) < 1_500


def test_a_table_of_facts_has_bounds(tmp_path, monkeypatch):
    (tmp_path / "facts.csv").write_text("label," + ",".join(f"c{number}" for number in range(50_000)) + "\na" + ",1" * 50_000)
    with pytest.raises(UserError, match="has 50,001 columns, and 1,000 are read at most"):
        read_facts(tmp_path / "facts.csv", ["a", "b"])
    monkeypatch.setattr("snakecls.experiment.facts._MOST_BYTES", 1000)
    with pytest.raises(UserError, match="has more than"):
        read_facts(tmp_path / "facts.csv", ["a", "b"])


def photo(path: Path, number: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(number).integers(0, 255, (24, 24, 3), dtype=np.uint8)).save(path)
    return path


@pytest.fixture
def linked(tmp_path):
    for number in range(6):
        photo(tmp_path / f"set/{'ab'[number % 2]}/{number}.jpg", number)
        photo(tmp_path / f"store/{'cd'[number % 2]}/{number}.jpg", 10 + number)
    photo(tmp_path / "one.jpg", 30)
    (tmp_path / "set/c").symlink_to("../store/c")
    (tmp_path / "set/a/z.jpg").symlink_to(tmp_path / "one.jpg")
    (tmp_path / "set/b/inside.jpg").symlink_to("../a/0.jpg")
    (tmp_path / "set/b/nothing.jpg").symlink_to("/nowhere.jpg")
    return tmp_path


def test_links_out_of_a_folder_are_told_once(linked):
    for read in (read_table, read_unlabelled):
        noted = read(linked / "set")
        said = [text for text in noted.notes if "outside 'set'" in text]
        assert len(noted.table) == 10 and len(said) == 1 and "'a/z.jpg' is one of 2 links that lead elsewhere" in said[0] and str(linked / "one.jpg") in said[0]
        assert [issue["path"] for issue in noted.issues if issue["issue"] == "a link out of the folder"] == [str(linked / "set/a/z.jpg")]
    notes = []
    assert len(_find_photos(f"{linked}/set/**/*.jpg", say=notes.append)) == 10
    assert sum("is one of 2 links that lead elsewhere" in note for note in notes) == 1
    (linked / "whole").symlink_to("set")  # a folder may lie behind a link itself
    (linked / "set/c").unlink(), (linked / "set/a/z.jpg").unlink()
    assert not any("lead" in text for text in read_unlabelled(linked / "whole").notes)


def test_check_tells_links_out_of_a_folder(linked):
    from typer.testing import CliRunner

    from snakecls.cli import app

    result = CliRunner().invoke(app, ["check", str(linked / "set"), "--output", str(linked / "checked")])
    assert result.exit_code == 0 and "links that lead elsewhere" in " ".join(result.output.split()), result.output
    issues = read_parquet(linked / "checked/issues.parquet")
    assert not (issues["issue"] == "a link out of the folder").any()  # it was read, so nothing is left out


def write_bombs(folder: Path) -> dict[str, Path]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    big, files = "x" * 50_000, {}

    def write(name: str, **options) -> None:
        files[name] = folder / f"{name}.parquet"
        columns = {"path": [f"{number}.jpg" for number in range(2000)], "label": ["a", "b"] * 1000}
        pq.write_table(pa.table(columns | options.pop("columns")), files[name], compression="zstd", **options)

    write("dictionary", columns={"text": pa.chunked_array([pa.array([big] * 100)] * 20)})
    write("list", columns={"text": pa.chunked_array([pa.array([[big] * 2] * 20)] * 100)})
    write("prefixes", columns={"text": pa.chunked_array([pa.array([big] * 100)] * 20)}, use_dictionary=["path", "label"], column_encoding={"text": "DELTA_BYTE_ARRAY"})
    write("zeros", columns={"text": pa.array([b"\0" * 150_000_000] + [b""] * 1999)}, use_dictionary=False)
    write("wide", columns={f"c{number}": pa.array(np.zeros(2000)) for number in range(11_000)})
    write("empty lists", columns={"text": pa.chunked_array([pa.array([[None] * 5_000] * 100, pa.list_(pa.int8()))] * 20)})
    return files


def test_small_parquet_files_that_unfold_are_refused_unread(tmp_path, monkeypatch):
    files = write_bombs(tmp_path)
    monkeypatch.setattr("snakecls.strict.ANY_BYTES", 2**25)
    monkeypatch.setattr(pd, "read_parquet", lambda *args, **options: pytest.fail("it was unfolded"))
    for name, file in files.items():
        assert file.stat().st_size < 20_000_000
        for read in (read_parquet, lambda path: load_table(path, check_files=False)):
            with pytest.raises(UserError, match="unfolds to more than|are read at most") as error:
                read(file)
            assert name and "\n" not in str(error.value)


def test_ordinary_parquet_files_are_read(tmp_path):
    n = 3000
    table = pd.DataFrame({
        "path": [f"{number}.jpg" for number in range(n)], "label": pd.Series(["a", None, "b"] * (n // 3)), "labels": [["a", "b"], []] * (n // 2), "note": ["y" * 2000] * n, "w": np.arange(n) / 7,
        "kind": pd.Categorical(["x", "y"] * (n // 2)), "day": pd.Timestamp("2024-05-01"), "none": None, "facts": [{"a": 1, "b": "x"}] * n, "data": [b"\0\1"] * n,
    })
    for options in ({}, {"compression": "zstd", "row_group_size": 100}, {"use_dictionary": False}, {"use_dictionary": False, "column_encoding": {"path": "DELTA_BYTE_ARRAY"}}):
        table.to_parquet(tmp_path / "t.parquet", **options)
        pd.testing.assert_frame_equal(read_parquet(tmp_path / "t.parquet"), pd.read_parquet(tmp_path / "t.parquet"))
    (tmp_path / "t.parquet").write_bytes((tmp_path / "t.parquet").read_bytes()[:-900])
    with pytest.raises(UserError, match="cannot be read as a table"):
        read_parquet(tmp_path / "t.parquet")


def test_a_gzip_that_unfolds_is_refused(tmp_path):
    import gzip

    with gzip.open(tmp_path / "t.csv.gz", "wb") as stream:
        stream.write(b"path,label\n")
        for _ in range(60):
            stream.write(b"\0" * 1_000_000)
    with pytest.raises(UserError, match="unfolds to more than"):
        load_table(tmp_path / "t.csv.gz", check_files=False)


JSONS = {
    "twice": ('{"f1": 1, "f1": 2}', "it has 'f1' twice"),
    "twice within": ('{"a": [{"f1": 1, "f1": 2}]}', "it has 'f1' twice"),
    "digits": ('{"a": ' + "1" * 5000 + "}", "a number of 5000 digits"),
    "deep": ('{"a": ' + "[" * 60 + "1" + "]" * 60 + "}", "is nested deeper than 40"),
    "deeper": ("[" * 200_000 + "]" * 200_000, "nested without end"),
    "zeros": ("\0" * 50, "holds zeros alone, as a crash leaves them; "),
    "empty": ("", "it is empty; "),
    "half a letter": ('{"a": "\\ud800"}', "holds what is no character"),
    "half a key": ('{"\\ud800": 1}', "holds what is no character"),
    "none": ("{'a': 1}", "is not valid JSON"),
}


@pytest.mark.parametrize("name", JSONS)
def test_json_is_read_in_one_way_everywhere(tmp_path, name):
    file, (text, why) = tmp_path / "x.json", JSONS[name]
    file.write_text(text)
    with pytest.raises(UserError, match=why) as error:
        read_json(file)
    assert str(file) in str(error.value) and "\n" not in str(error.value) and len(str(error.value)) < 500
    with pytest.raises(UserError, match=why):
        read_strictly(file)


def test_json_that_is_sound_is_read(tmp_path):
    file, value = tmp_path / "x.json", {"é": [1, 2.5, None, True, "ü"], "deep": {"a": {"b": [[]]}}, "nan": math.nan}
    for encoding in ("utf-8", "utf-8-sig", "utf-16", "utf-32"):
        file.write_bytes(json.dumps(value, ensure_ascii=False).encode(encoding))
        found = read_json(file)
        assert math.isnan(found.pop("nan")) and found == {key: part for key, part in value.items() if key != "nan"}  # our own records hold such numbers
        assert read_strictly(file, forgive=["nan"])["nan"] is None
        with pytest.raises(UserError, match="nan is nan, and has to be a number"):
            read_strictly(file)
    file.write_text("[" * 39 + "1" + "]" * 39)
    assert read_json(file)


def test_large_json_takes_no_time_that_grows_with_the_square(tmp_path):
    file = tmp_path / "x.json"
    file.write_text('{"' + "k" * 1_000_000 + '": {' + ",".join(f'"{number}": {{"a": [1]}}' for number in range(100_000)) + "}}")
    start = time.perf_counter()
    assert len(next(iter(read_strictly(file).values()))) == 100_000
    file.write_text("{" + ",".join(f'"{number}": 1' for number in range(200_000)) + ', "0": 2}')
    with pytest.raises(UserError, match="it has '0' twice"):
        read_strictly(file)
    file.write_text("{" + ",".join(f'"{number}": 1' for number in range(200_000)) + ', "199999": 2}')
    with pytest.raises(UserError, match="it has '199999' twice"):
        read_json(file)
    assert time.perf_counter() - start < 10
    assert os.path.getsize(file) > 2_000_000


FOOTERS = """
import io, random, struct, sys
import pandas as pd
from snakecls.disk import read_parquet
whole, file = io.BytesIO(), sys.argv[1]
pd.DataFrame({"path": [f"{i}.jpg" for i in range(16)], "label": ["a", "b"] * 8, "n": range(16)}).to_parquet(whole)
data, chance, told = whole.getvalue(), random.Random(7), 0
start = len(data) - 8 - struct.unpack("<I", data[-8:-4])[0]
for _ in range(4000):
    damaged = bytearray(data)
    for _ in range(chance.choice([1, 1, 2])):
        damaged[chance.randrange(start, len(data) - 8)] = chance.randrange(256)
    open(file, "wb").write(damaged)
    try:
        read_parquet(file)
    except ValueError:
        told += 1
print(told)
"""


def test_a_damaged_description_of_a_parquet_file_does_not_end_the_process(tmp_path):
    done = subprocess.run([sys.executable, "-c", FOOTERS, str(tmp_path / "x.parquet")], capture_output=True, text=True)
    assert done.returncode == 0 and int(done.stdout) > 1000, (done.returncode, done.stderr[-300:])
