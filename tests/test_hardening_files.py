"""Files that are damaged, or made to do harm: archives, tables, decisions and experiment files end in a sentence or in a right answer."""
import csv
import errno
import io
import os
import re
import struct
import zipfile
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mutate import mutated_files
from PIL import Image

from snakecls.core import UserError
from snakecls.data.archives import unpack_zip
from snakecls.data.cells import guard_cell, unguard_cell, write_csv
from snakecls.data.corrections import add_correction, read_corrections
from snakecls.data.folders import one_line
from snakecls.data.tables import load_table, load_unlabelled, read_table, read_unlabelled
from snakecls.deploy.review import answer
from snakecls.clean.cases import Review, make_cases
from snakecls.experiment.file import load_experiment, make_experiment
from snakecls.settings import _inner_type as inner_type, _is_part as is_part
from snakecls.experiment.schema import Experiment
from snakecls.workflow.run_folder import RunFolder, find_run


def photo(number: int, *, size: tuple[int, int] = (24, 16)) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.random.default_rng(number).integers(0, 255, (*size, 3), dtype=np.uint8)).save(stream, "JPEG")
    return stream.getvalue()


PHOTOS = {f"set/{label}/{label} {number}.jpg": photo(number) for label in ("boa", "rat") for number in range(4)}


def zipped(path: Path, files: dict[str, bytes], *, method: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path


def refused(function, *args, contains: str = "", **options) -> str:
    with pytest.raises(UserError) as error:
        function(*args, **options)
    text = str(error.value)
    assert contains in text and "\n" not in text, text
    return text


def left_behind(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


# Archives


def test_photos_and_tables_alone_are_unpacked_and_the_rest_is_told(tmp_path):
    inner = zipped(tmp_path / "inner.zip", {"a/1.jpg": photo(0)}).read_bytes()
    (tmp_path / "inner.zip").unlink()
    files = {**PHOTOS, "set/photos.csv": b"path,label\n", "set/run.exe": b"MZ", "set/.bashrc": b"x", "set/more.zip": inner, ".unpacked.json": b"{}", "set/plots/status.json": b"{}", "set/plots/run.log": b"", "set/plots/roc.png": photo(9)}
    noted = read_table(zipped(tmp_path / "p.zip", files))
    table = noted.table
    assert len(table) == 8 and set(table["label"]) == {"boa", "rat"}
    unpacked = {file.relative_to(tmp_path / "p.unpacked").as_posix() for file in (tmp_path / "p.unpacked").rglob("*") if file.is_file()}
    assert unpacked == {*PHOTOS, "set/photos.csv", ".unpacked.json"}
    (note,) = [note for note in noted.notes if note.startswith("unpacked")]
    assert "unpacked 9 files" in note and "Left 7 files in it" in note and "unpack 'set/more.zip' by hand" in note, note


@pytest.mark.parametrize("cell", [b"\0" * 2**21, b"path,label\n" * 2**18])
@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_an_archive_unfolds_to_20_times_its_size_at_most(tmp_path, cell, method, monkeypatch):
    import snakecls.data.archives as archives

    monkeypatch.setattr(archives, "SMALL_BYTES", 2**20)
    path = zipped(tmp_path / "bomb.zip", {**PHOTOS, "set/boa/5.jpg": cell}, method=method)
    assert "more than the 20 times" in refused(load_table, path)
    assert left_behind(tmp_path) == ["bomb.zip"]
    stored = {f"set/rat/{number}.jpg": np.random.default_rng(number).bytes(70_000) for number in range(4)}
    assert len(load_table(zipped(tmp_path / "good.zip", {**PHOTOS, **stored, "set/photos.csv": cell}, method=method))) == 12  # 10 times


def test_an_honest_archive_that_shrinks_well_is_unpacked(tmp_path):
    pages = {}
    for number in range(4):  # scanned pages, of white with some lines
        page = Image.new("RGB", (1240, 1754), "white")
        for line in range(60, 1700, 60):
            page.paste((0, 0, 0), (100, line, 900 + 17 * number, line + 3))
        stream = io.BytesIO()
        page.save(stream, "BMP" if number % 2 else "TIFF")
        pages[f"set/{'ab'[number // 2]}/{number}.{'bmp' if number % 2 else 'tif'}"] = stream.getvalue()
    path = zipped(tmp_path / "scans.zip", pages, method=zipfile.ZIP_DEFLATED)
    assert sum(map(len, pages.values())) > 20 * path.stat().st_size and sum(map(len, pages.values())) > 20 << 20
    assert len(load_table(path)) == 4
    bomb = zipped(tmp_path / "bomb.zip", {**PHOTOS, "set/boa/5.jpg": b"\0" * (65 << 20)}, method=zipfile.ZIP_DEFLATED)
    said = refused(load_table, bomb, contains="more than the 20 times (or 64.0 MiB) that are taken for safe; unpack it by hand if you trust it")
    assert "that photos and tables do at most" not in said


def test_what_an_archive_says_of_its_size_is_not_believed(tmp_path):
    path = zipped(tmp_path / "lies.zip", {**PHOTOS, "set/boa/5.jpg": b"\0" * 2**22}, method=zipfile.ZIP_DEFLATED)
    path.write_bytes(path.read_bytes().replace(struct.pack("<I", 2**22), struct.pack("<I", 100)))
    noted = read_table(path)
    table = noted.table
    assert len(table) == 8 and "'set/boa/5.jpg': it is damaged" in " ".join(noted.notes)
    assert sum(file.stat().st_size for file in (tmp_path / "lies.unpacked").rglob("*") if file.is_file()) < 2**16


def test_files_that_share_their_bytes_are_refused(tmp_path):
    path = zipped(tmp_path / "shared.zip", PHOTOS)
    data = bytearray(path.read_bytes())
    records = [at for at in range(len(data)) if data[at : at + 4] == b"PK\1\2"]
    for record in records:
        data[record + 42 : record + 46] = data[records[0] + 42 : records[0] + 46]  # all are the first file
    path.write_bytes(data)
    refused(load_table, path, contains="lies on the bytes of another file")
    assert left_behind(tmp_path) == ["shared.zip"]


def test_an_archive_of_too_many_files_is_refused_before_they_are_listed(tmp_path, monkeypatch):
    import snakecls.data.archives as archives

    monkeypatch.setattr(archives, "MOST_FILES", 7)
    refused(load_table, zipped(tmp_path / "many.zip", PHOTOS), contains="lists 8 files, and 7 are read")


def test_one_damaged_photo_costs_that_photo_alone_each_time(tmp_path):
    path = zipped(tmp_path / "p.zip", PHOTOS)
    data = bytearray(path.read_bytes())
    data[data.index(PHOTOS["set/boa/boa 2.jpg"]) + 200] ^= 255
    path.write_bytes(data)
    for _ in range(2):  # unpacked, then found
        for noted in (read_table(path), read_unlabelled(path)):
            assert sorted(Path(one).name for one in noted.table["path"]) == sorted(Path(one).name for one in PHOTOS if "boa 2" not in one)
            (issue,) = [issue for issue in noted.issues if issue["issue"] == "damaged"]
            assert issue["path"].endswith("p.unpacked/set/boa/boa 2.jpg") and "Left out 1 file of it that cannot be unpacked ('set/boa/boa 2.jpg'" in " ".join(noted.notes)
    for name in list(PHOTOS)[3:7]:
        data[data.index(PHOTOS[name]) + 300] ^= 255
    path.write_bytes(data)
    refused(load_table, path, contains="nor can 5 of the 8 files in it")
    assert left_behind(tmp_path) == ["p.unpacked", "p.zip"]


def member(name: str, kind: int = 0o100644, system: int = 3) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.external_attr, info.create_system = kind << 16, system
    return info


@pytest.mark.parametrize("name, kind, said", [
    ("set/boa/9.jpg", 0o120777, "holds the link"), ("set/boa/9.jpg", 0o010644, "a pipe, a socket or a device"), ("set/boa/9.jpg", 0o020644, "a pipe, a socket or a device"),
    ("set/boa/9.jpg", 0o060644, "a pipe, a socket or a device"), ("/etc/9.jpg", 0o100644, "leads out of the folder"), ("set/../../9.jpg", 0o100644, "leads out of the folder"),
    ("..\\9.jpg", 0o100644, "leads out of the folder"), ("c:\\9.jpg", 0o100644, "leads out of the folder"), ("../etc/", 0o40755, "leads out of the folder"),
])  # fmt: skip
def test_archives_that_reach_out_are_refused(tmp_path, name, kind, said):
    path = zipped(tmp_path / "bad.zip", PHOTOS)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(member(name, kind), b"x")
    refused(load_table, path, contains=said)
    assert left_behind(tmp_path) == ["bad.zip"]


@pytest.mark.parametrize("name, said", [
    ("set/boa/" + "a" * 300 + ".jpg", "too long for this disk"), ("set/" + "a/" * 150 + "b" * 255 + "/" + "a/" * 40 + "1.jpg", "unpacked 9"), ("a/" * 1000 + "1.jpg", "folders deep"),
    ("set/boa/a\nb.jpg", "holds a line break"), ("set/boa/a\u2028b.jpg", "line break, or another"), ("set/boa/boa 1.jpg/2.jpg", "or that of its folder"),
])  # fmt: skip
def test_names_that_no_disk_can_hold_cost_one_file(tmp_path, name, said):
    path = zipped(tmp_path / "odd.zip", {**PHOTOS, name: photo(7)})
    noted = read_table(path)
    table = noted.table
    assert {Path(one).name for one in PHOTOS} <= {Path(one).name for one in table["path"]}
    assert said in " ".join(noted.notes), noted.notes
    assert len(table) == 8 or said.startswith("unpacked")


def test_a_full_disk_leaves_nothing_behind(tmp_path, monkeypatch):
    path = zipped(tmp_path / "p.zip", PHOTOS)
    made = []

    def full(place, mode="r", *args, **options):
        if "x" in mode:
            made.append(place)
            if len(made) == 4:
                raise OSError(errno.ENOSPC, "No space left on device", str(place))
        return open(place, mode, *args, **options)

    monkeypatch.setattr("snakecls.data.archives.open", full, raising=False)
    refused(load_table, path, contains="the disk of")
    assert left_behind(tmp_path) == ["p.zip"] and len(made) == 4
    monkeypatch.undo()
    assert len(load_table(path)) == 8


def test_a_note_that_cannot_be_read_means_unpacking_again(tmp_path):
    path = zipped(tmp_path / "p.zip", PHOTOS)
    folder, _ = unpack_zip(path)
    for text in ("", "{", "[]", '{"damaged": 3}', '{"damaged": {"a": 1}}', "null", "[" * 5000, "\ufeff{}"):
        (folder / ".unpacked.json").write_text(text)
        next(folder.rglob("*.jpg")).unlink()
        assert len(load_table(path)) == 8


@pytest.mark.parametrize("name", ["p.tar", "p.tar.gz", "p.tgz", "p.7z", "p.rar", "P.RAR"])
def test_other_archives_are_named_with_what_to_do(tmp_path, name):
    (tmp_path / name).write_bytes(b"Rar!\x1a\x07\x00")
    refused(load_table, tmp_path / name, contains="and give the folder")
    refused(load_unlabelled, tmp_path / name, contains="of archives zips alone are unpacked")


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_300_damaged_archives(tmp_path, method):
    data = zipped(tmp_path / "p.zip", {**PHOTOS, "set/photos.csv": b"path,label\n" * 20}, method=method).read_bytes()
    (tmp_path / "p.zip").unlink()
    n_read = 0
    for number, damaged in enumerate(mutated_files(data, seed=method, n=150)):
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / "p.zip").write_bytes(damaged)
        try:
            noted = read_table(folder / "p.zip")
            table = noted.table
        except UserError as e:
            assert "\n" not in str(e) and len(str(e)) < 1000, e
            assert not (folder / "p.unpacked").exists() or "p.unpacked" in left_behind(folder)
            continue
        n_read += 1
        base = folder / "p.unpacked"
        good = {Path(one).relative_to(base).as_posix(): Path(one).read_bytes() for one in table["path"]}
        told = " ".join(noted.notes) + str(noted.issues)
        for name, content in good.items():  # nothing is read otherwise than it was packed, and a changed name has its own content
            assert content == PHOTOS.get(name, content) and content in PHOTOS.values(), name
        assert len(good) == 8 or "Left" in told or "more than once" in told or "left out" in told, (number, told)
        assert left_behind(folder) == ["p.unpacked", "p.zip"]
    assert n_read > 10


# Experiment files

GOOD = """\
name: first
question: which size is best
seed: 7
data: {source: photos, target: label, valid: 0.25, splits: {val: valid}}
augment: {backend: albumentations, mixup: 0.2, max_rotate: 10, transforms: [{Blur: {p: 0.5}}]}
model:
  arch: resnet18
  weights: none
  kwargs: {drop_rate: 0.1}
train: {bs: 16, wd: 0.01, clip: 1.0, target_weights: {label: 1.0}}
schedule:
  - {size: 64, epochs: 1, lr: 1e-3}
  - {size: 128, epochs: 2, lr: [1e-5, 1e-4], mixup: 0.1}
top_k: [3, 5]
"""


def unfold(letters: str, form: str) -> str:
    first = "a: &a {x: 1, y: 2}\n" if "<<" in form else "a: &a [x, y]\n"
    return first + "".join(f"{after}: &{after} {form.format(', '.join([f'*{before}'] * 9))}\n" for before, after in pairwise(letters))


@pytest.mark.parametrize("text, said", [
    (unfold("abcdefghijklm", "[{}]"), "unfolds to more than"), (unfold("abcdefghijklm", "{{<<: [{}]}}"), "unfolds to more than"), ("data: &a [*a]", "a part that holds itself"), ("data: &a {source: *a}", "a part that holds itself"),
    (f"a: &a {'x' * 10_000}\ndata: [{', '.join(['*a'] * 200)}]", "up to line 2 it unfolds to more than"),
    ("data: " + "[" * 50_000, "more than 40 parts deep"), ("data: " + "{a: " * 900, "more than 40 parts deep"), ("".join(" " * depth + "a:\n" for depth in range(60)), "line 40 lies more than 40 parts deep"),
    ("data: x\nseed: " + "9" * 100_000, "line 2 holds a number of 100,000 digits"), ("data: x\nseed: " + "1:" * 50_000 + "1", "line 2 holds a number"), ("data: x\nname: 2024-13-45", "line 2 holds '2024-13-45', which cannot be a date"),
    ("data: x\nname: 2001-12-14t21:59:43.10-99:00", "cannot be a date"), ("data: x\ntrain: {wd: !!float abc}", "cannot be a number"), ("data: x\nseed: !!int ''", "cannot be a number"), ("data: x\nseed: !!bool abc", "line 2 holds 'abc'"),
    ("data: !!python/object/apply:os.system [ls]", "line 1, column 7"), ("data: !foo x", "line 1, column 7"), ("data: a\0b", "not valid YAML"), ('data: "a\\0b"', "a character that no text or path has"), ('data: "\\ud800"', "a character that no text"),
    ("data:\n\tsource: x", "line 2, column 1"), ("data: x\nseed: 1\nseed: 1", "given twice (again in line 3)"), ("? [a]\n: b", "a list or a part in the place of a key"), ("data: *x", "a * that has to stand in quotes"), ("a: 1\n---\nb: 2", "a second document, after ---"), ("[1]", "holds list"),
    ("data: {source: x, splits: {val: no}}", "data.splits.val is False"), ("data: {source: no}", "as a truth value"), ("data: {source: x, label_column: [on, off]}", "as a truth value"), ('data: x\n"\\e[31mfoo\\nbar": 1', r"\x1b[31mfoo\nbar"),
    ("data: x\nseed: " + "a" * 5000, "a…: input should be"), ("# " + "x" * 2**20, "are read at most"), ("data: {<<: 3}", "merges what is no part"), ("data: x\nmodel: {kwargs: {drop_rate: .nan}}", "model.kwargs.drop_rate is nan: give a finite number"),
    ("data: x\naugment: {transforms: [{Blur: {p: -.inf}}]}", "augment.transforms.0.Blur.p is -inf: give a finite number"),
])  # fmt: skip
def test_experiment_files_that_do_harm_end_in_a_sentence(tmp_path, text, said):
    (tmp_path / "first.yaml").write_text(text)
    shown = refused(load_experiment, tmp_path / "first.yaml", contains=said)
    assert len(shown) < 1000 and one_line(shown) == shown and "first.yaml" in shown


def number_fields(schema, prefix: str = ""):
    "Every key of the schema that takes a number."
    for name, field in schema.model_fields.items():
        inner = inner_type(field.annotation)
        if is_part(inner):
            yield from number_fields(inner, f"{prefix}{name}.{'0.' if name == 'schedule' else ''}")
        elif "int" in str(field.annotation) or "float" in str(field.annotation):
            yield prefix + name


ENDLESS = {"augment.max_zoom", "augment.mixup", "augment.cutmix", "train.wd", "train.focal_gamma", "train.clip", "train.min_delta", "schedule.0.lr", "schedule.0.mixup", "schedule.0.cutmix", "schedule.0.wd"}


@pytest.mark.parametrize("value", [".inf", "-.inf", ".nan", "1e400", "9" * 99, "-" + "9" * 99])
def test_no_number_of_an_experiment_is_infinite_or_endless(value):
    keys = list(number_fields(Experiment))
    assert len(keys) > 40
    for key in keys:
        try:
            experiment = make_experiment({"data": "photos"}, overrides=[f"{key}={value}"])
        except UserError as e:
            assert "\n" not in str(e) and len(str(e)) < 1000
        else:  # a share or a rate as large as is written
            assert "9" in value and np.isfinite(float(experiment.schedule[0].lr or 0)) and key in ENDLESS, key


def test_keys_are_texts_as_they_are_written(tmp_path):
    (tmp_path / "first.yaml").write_text("data: {source: x, splits: {no: test, 1.10: train, on: valid}}\n")
    assert load_experiment(tmp_path / "first.yaml").data.splits == {"no": "test", "1.10": "train", "on": "valid"}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_experiment_files_of_other_editors_are_read(tmp_path, encoding):
    (tmp_path / "first.yaml").write_bytes("name: Vipère\ndata: x\n".replace("\n", "\r\n").encode(encoding))
    assert load_experiment(tmp_path / "first.yaml").name == "Vipère"
    (tmp_path / "old.yaml").write_bytes("data: x\nname: Vipère\n".encode("cp1252"))
    refused(load_experiment, tmp_path / "old.yaml", contains="line 2 holds a byte that is no UTF-8); save it as UTF-8")


def test_places_in_lists_are_taken_as_messages_and_comparisons_write_them():
    for key in ("schedule.0.lr", "schedule[0].lr"):
        experiment = make_experiment({"data": "x"}, overrides=[f"{key}=1e-4"])
        assert experiment.schedule[0].lr == 1e-4
    for key in ("schedule[7].lr", "schedule.\u00b2.lr", f"schedule.{'9' * 5000}.lr", "schedule[-1].lr", "schedule.x.lr"):
        text = refused(make_experiment, {"data": "x"}, overrides=[f"{key}=1"])
        assert "the list has one entry, 0" in text or "'schedule[-1]' does not exist" in text


def test_300_damaged_experiment_files(tmp_path):
    path = tmp_path / "first.yaml"
    path.write_text(GOOD)
    right, n_read = load_experiment(path), 0
    for number, damaged in enumerate(mutated_files(GOOD.encode(), seed=3)):
        path.write_bytes(damaged)
        try:
            experiment = load_experiment(path)
        except UserError as e:
            assert "\n" not in str(e) and len(str(e)) < 1500 and one_line(str(e)) == str(e), (number, e)
            continue
        n_read += 1
        assert make_experiment(experiment.model_dump(mode="json")) == experiment, number
        assert experiment.data.source != right.data.source or experiment.model_dump()["train"]["bs"] >= 2
    assert n_read > 10


@pytest.mark.parametrize("line, said", [("question:", "question is left empty; write its value behind it, or leave the key out"), ("question: [a]", "question is ['a'], and has to be a text"), ("parent: {a: 1}", "has to be a text"), ("seed:", "seed is left empty"),
                                        ("name: 010", "line 2 holds 010, which YAML reads as 8; put it in quotes if it is a text"), ("name: 12:30", "which YAML reads as 750"), ("seed: 007", "without a zero before it"), ("name: 1:30.5", "which YAML reads as 90.5")])
def test_what_yaml_reads_otherwise_is_told_in_our_words(tmp_path, line, said):
    (tmp_path / "a.yaml").write_text(f"data: {{source: photos}}\n{line}\n")
    text = refused(load_experiment, tmp_path / "a.yaml", contains=said)
    assert "input should be" not in text
    for good in ("name: '010'", "seed: 0", "seed: 10", "name: 2024-01-01", "name: 0a"):
        (tmp_path / "a.yaml").write_text(f"data: {{source: photos}}\n{good}\n")
        assert load_experiment(tmp_path / "a.yaml")


# CSV that a spreadsheet opens

FORMULA = re.compile(r"\s*[=+\-@\t\r\n＝＋－＠]")
texts = st.text(st.sampled_from("=+-@'\t\r\n ,;\"aé1＝|"), max_size=8) | st.sampled_from(["=1+1", "'=1", "''-a", "-0.5", "@SUM(A1)", "\t=x", " =x", "'", "=cmd|' /C calc'!A0", "+49", "-x.jpg"])


@settings(deadline=None)
@given(texts)
def test_no_cell_is_a_formula_and_each_is_read_as_it_was(text):
    written = guard_cell(text)
    assert not FORMULA.match(written) and unguard_cell(written) == text
    assert written == text or FORMULA.match(text.lstrip("'"))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=25, deadline=None)
@given(st.lists(st.tuples(texts, st.floats(allow_nan=False, allow_infinity=False), st.integers(-9, 9)), min_size=1, max_size=5), texts.filter(lambda name: name not in ("p", "n")))
def test_tables_for_people_are_read_as_they_were_and_numbers_stay_numbers(tmp_path, rows, name):
    table = pd.DataFrame(rows, columns=[name, "p", "n"])
    write_csv(table, tmp_path / "said.csv")
    written = list(csv.reader(io.StringIO((tmp_path / "said.csv").read_bytes().decode(), newline="")))
    assert not any(FORMULA.match(cell) for row in written for cell in row if not re.fullmatch(r"-?[\d.e+-]+", cell))
    assert [unguard_cell(cell) for cell, *_ in written[1:]] == [cell for cell, *_ in rows] and unguard_cell(written[0][0]) == name
    assert [float(cell) for _, cell, _ in written[1:]] == [cell for _, cell, _ in rows]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.text(st.sampled_from("=+-@'ab.;, \""), min_size=1, max_size=8).filter(lambda name: name.strip() == name), st.text(st.sampled_from("=+-@'ab ＝"), min_size=1, max_size=6)), min_size=1, max_size=4))
def test_decisions_are_no_formulas_and_are_read_as_they_were(tmp_path, decisions):
    from snakecls.data.columns import clean_label

    file = tmp_path / "corrections.csv"
    file.unlink(missing_ok=True)
    decisions = [(name, label) for name, label in decisions if clean_label(label) == label and name not in (".", "..")]
    for name, label in decisions:
        add_correction(file, tmp_path / name, action="relabel", label=label, note=label)
    if decisions:
        cells = [cell for row in csv.reader(io.StringIO(file.read_text(), newline="")) for cell in row]
        assert not any(FORMULA.match(cell) for cell in cells)
        read = read_corrections(file, history=True).decisions
        assert [(Path(path).name, label, note) for path, label, note in zip(read["path"], read["label"], read["note"])] == [(name, label, " ".join(label.split())) for name, label in decisions]


def test_decisions_of_earlier_versions_and_cells_of_others_stay(tmp_path):
    file = tmp_path / "corrections.csv"
    file.write_text("path,action,label,note,date,hash,loss\n=1.jpg,relabel,-cobra,,,,-0.5\n")
    assert read_corrections(file).decisions["label"].tolist() == ["-cobra"]
    add_correction(file, tmp_path / "2.jpg", action="keep")
    assert file.read_text().splitlines()[1] == "'=1.jpg,relabel,'-cobra,,,,-0.5"
    assert [Path(path).name for path in read_corrections(file).decisions["path"]] == ["=1.jpg", "2.jpg"] and read_corrections(file).decisions["label"][0] == "-cobra"


def test_the_history_of_a_run_keeps_its_numbers(tmp_path):
    run = RunFolder.create(tmp_path, "first")
    for loss in (-0.5, 1e-7):
        run.add_epoch({"epoch": 1, "loss": loss, "=x_f1": 0.5})
    run.write_history(run.history())
    run.add_epoch({"epoch": 2, "loss": -1.5, "=x_f1": 0.25, "+more": 1})
    history = run.history()
    assert history["loss"].tolist() == [-0.5, 1e-7, -1.5] and history["=x_f1"].tolist() == [0.5, 0.5, 0.25] and "+more" in history
    run.finish()
    assert "\n=" not in (text := (run.path / "history.csv").read_text()) and ",=" not in text and ",+" not in text


def test_a_table_that_was_written_for_people_names_its_photos(tmp_path):
    for number, name in enumerate(["=1.jpg", "-a/2.jpg", "@b.jpg", "c.jpg", "'=d.jpg"]):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(photo(number))
    write_csv(pd.DataFrame({"path": ["=1.jpg", "-a/2.jpg", "@b.jpg", "c.jpg", "'=d.jpg"]}), tmp_path / "said.csv")
    assert {os.path.relpath(path, tmp_path) for path in load_unlabelled(tmp_path / "said.csv")["path"]} == {"=1.jpg", "-a/2.jpg", "@b.jpg", "c.jpg", "'=d.jpg"}


def test_what_the_library_guarded_is_read_as_it_was_by_training_and_facts(tmp_path):
    from snakecls.experiment.facts import read_facts

    labels = ["-neg", "@home", "'Ndrangheta", "=eq", "'s-Gravenhage", "\uff1dwide", "plain"]
    names = []
    for number in range(14):
        (tmp_path / f"{number}.jpg").write_bytes(photo(number))
        names.append(f"{number}.jpg")
    table = pd.DataFrame({"path": names, "label": labels * 2, "split": ["train"] * 14, "photographer": ["@ann"] * 14, "-x": ["=1"] * 14})
    noted = read_table(write_csv(table, tmp_path / "said.csv"))
    read = noted.table
    assert read["label"].tolist() == labels * 2 and set(read["photographer"]) == {"@ann"} and set(read["-x"]) == {"=1"}
    (told,) = [note for note in noted.notes if "apostrophe" in note]
    assert told.startswith("7 texts of ") and "spreadsheet" in told and "Ndrangheta" not in told
    assert load_table(write_csv(table.rename(columns={"label": "-label"}), tmp_path / "named.csv"), label_column="-label")["label"].tolist() == labels * 2
    several = load_table(write_csv(table.assign(label=[f"{label}|plain" for label in table["label"]]), tmp_path / "several.csv"), multi_label=True, separator="|")
    assert {one for row in several["labels"] for one in row} == set(labels)
    table.to_parquet(tmp_path / "own.parquet")
    assert load_table(tmp_path / "own.parquet")["label"].tolist() == labels * 2
    facts, notes = read_facts(write_csv(pd.DataFrame({"label": labels, "venomous": ["yes", "no"] * 3 + ["no"], "common_name": ["=A"] * 7}), tmp_path / "facts.csv"), labels)
    assert {label: known["venomous"] for label, known in facts.items()} == {label: place in (0, 2, 4) for place, label in enumerate(labels)} and {known["common_name"] for known in facts.values()} == {"=A"} and not notes


# Decisions on two pages at once


def cases(folder: Path) -> tuple[pd.DataFrame, list[str]]:
    for number in range(3):
        (folder / f"{number}.jpg").write_bytes(photo(number))
    paths = [str(folder / f"{number}.jpg") for number in range(3)]
    return pd.DataFrame({"path": paths, "issue": "label", "verdict": "look", "score": 0.9, "reason": "looks like boa", "label": "rat", "suggested": "boa"}), paths


def test_a_decision_on_what_was_decided_elsewhere_meanwhile_is_told_and_not_written(tmp_path):
    issues, (a, b, c) = cases(tmp_path)
    file = tmp_path / "corrections.csv"
    review = Review(make_cases(issues), file)
    seen = {path: review.mark(review.numbers[path]) for path in (a, b, c)}
    assert answer(review, "keep", a, seen=seen[a], maker="one") == 1
    text = file.read_text()
    assert "0.jpg has changed in corrections.csv since it was shown here (it was decided at 20" in refused(answer, review, "drop", a, seen=seen[a], maker="two", contains="keep), so nothing was written")
    assert file.read_text() == text
    assert answer(review, "drop", b, seen=seen[b], maker="two") == 2  # what changed was another photo
    other = Review(make_cases(issues), file)  # another program
    other.decide(2, "relabel", "boa")
    refused(answer, review, "keep", c, seen=seen[c], maker="one", contains="relabel boa")
    assert review.decisions[2] == {"action": "relabel", "label": "boa"} and not review.is_own(2, "one")
    file.write_text("".join(line for line in file.read_text().splitlines(True) if "2.jpg" not in line))  # by hand
    refused(answer, review, "drop", c, seen=other.mark(2) or "1 relabel boa", maker="one", contains="the decision was removed")
    assert answer(review, "drop", c, seen=review.mark(2), maker="one") == 3


def test_undo_takes_back_what_was_decided_on_the_same_page(tmp_path):
    issues, (_, b, c) = cases(tmp_path)
    file = tmp_path / "corrections.csv"
    Review(make_cases(issues), file).decide(0, "drop")  # yesterday
    review = Review(make_cases(issues), file)
    answer(review, "keep", b, seen="", maker="one")
    assert answer(review, "undo", c, seen="", maker="two") == 0  # the last that is not another page's
    assert set(review.decisions) == {1}
    assert answer(review, "undo", c, seen="", maker="two") == 2 and set(review.decisions) == {1}
    refused(answer, review, "undo", b, seen=review.mark(1), maker="two", contains="1.jpg was decided on another page")
    Review(make_cases(issues), file).decide(2, "keep")
    refused(answer, review, "undo", c, seen="1 keep ", maker="one", contains="decided on another page")
    refused(answer, review, "drop", b, seen="", maker="two", contains="has changed")
    assert answer(review, "undo", b, seen=review.mark(1), maker="one") == 1 and set(review.decisions) == {2}


def test_two_pages_in_a_browser(tmp_path, start_app, browser):
    from test_review import decisions, open_page, wait_for, write_folder

    folder = write_folder(tmp_path, [(f"{number}.png", "label", "relabel", 0.9 - number / 10, "looks like Naja naja (96%)", "Vipera berus", "Naja naja") for number in range(3)], ["Naja naja", "Vipera berus"])
    app = start_app(folder / "review.py", folder).wait()
    one, two = (open_page(browser, app, "1 of 3") for _ in range(2))
    one.click("#keep")
    wait_for(one, "2 of 3")
    two.click("#drop")
    two.wait_for_selector("text=since it was shown here")
    two.wait_for_selector("text=Decided on another page: keep")
    two.wait_for_function("document.querySelector('#undo').disabled")
    assert decisions(folder) == [("0.png", "keep", "")]
    two.click("#drop")  # now that it was seen
    wait_for(two, "2 of 3")
    two.reload()
    wait_for(two, "2 of 3")
    two.click("#undo")  # the page is the same one still
    wait_for(two, "1 of 3")
    assert decisions(folder) == []


# Tables


def pairs(table: pd.DataFrame) -> set[tuple[str, str]]:
    return {(Path(path).name, label) for path, label in zip(table["path"], table["label"])}


ROWS = [(f"{number}.jpg", ("boa", "rat")[number % 2], number) for number in range(24)]


def save(path: Path) -> Path:
    frame = pd.DataFrame(ROWS, columns=["path", "label", "number"])
    frame.to_parquet(path, index=False) if path.suffix == ".parquet" else frame.to_csv(path, index=False, sep="\t" if path.suffix == ".tsv" else ",")
    return path


@pytest.mark.parametrize("kind", ["csv", "tsv", "parquet"])
def test_300_damaged_tables(tmp_path, kind):
    for name, *_ in ROWS:
        (tmp_path / name).touch()
    path, n_read = save(tmp_path / f"t.{kind}"), 0
    right, data = {(name, label) for name, label, _ in ROWS}, path.read_bytes()
    for number, damaged in enumerate(mutated_files(data, seed=11, n=100)):
        path.write_bytes(damaged)
        try:
            noted = read_table(path)
            table = noted.table
        except UserError as e:
            assert one_line(str(e)) == str(e) and len(str(e)) < 1500, (number, e)
            continue
        n_read += 1
        known = {label for _, label in right}
        changed = pairs(table) - right
        assert all(label not in known or name not in {one for one, _ in right} or kind != "parquet" for name, label in changed), (number, changed)
        whole = set(data.splitlines()[1:]) & set(damaged.splitlines())  # what was cut off cannot be known; what is there is read or told
        missing = {re.split(rb"[,\t]", line)[0].decode() for line in whole} - {name for name, _ in pairs(table)} if kind != "parquet" else right - pairs(table)
        assert not missing or noted.notes or noted.issues, (number, missing)
    assert n_read > 5 or kind == "parquet"


def test_tables_that_unfold_without_end_are_refused(tmp_path):
    import gzip

    import pyarrow as pa
    import pyarrow.parquet as pq

    (tmp_path / "t.csv.gz").write_bytes(gzip.compress(b"path,label\n" + b"a.jpg,cat\n" * 2_000_000))
    refused(load_table, tmp_path / "t.csv.gz", contains="unfolds to more than 16 MiB")
    (tmp_path / "wide.csv").write_text(",".join(["path", "label", *map(str, range(100_000))]) + "\na.jpg,cat\n")
    refused(load_table, tmp_path / "wide.csv", contains="it has 100,002 columns, and 10,000 are read at most")
    (tmp_path / "line.csv").write_bytes(b"path,label\na.jpg," + b"x" * 2**25)
    refused(load_table, tmp_path / "line.csv", contains="a line of more than 16,777,216 characters")
    n = 400_000
    pq.write_table(pa.table({"path": [f"{i}.jpg" for i in range(n)], "label": ["a", "b"] * (n // 2), "x": ["y"] * n}), tmp_path / "ok.parquet")
    assert len(load_table(tmp_path / "ok.parquet", check_files=False)) == n
    rows = pa.table({"path": pa.array(["a.jpg"]).take(pa.array(np.zeros(n, dtype=np.int64)))})
    with pq.ParquetWriter(tmp_path / "rows.parquet", rows.schema) as writer:
        for _ in range(51):
            writer.write_table(rows)
    refused(load_table, tmp_path / "rows.parquet", contains="it has 20,400,000 rows")


def test_a_dictionary_that_unfolds_is_refused(tmp_path, monkeypatch):
    import pyarrow as pa
    import pyarrow.parquet as pq

    monkeypatch.setattr("snakecls.strict.MOST_TABLE_BYTES", 2**26)
    n = 60_000
    pq.write_table(pa.table({"path": [f"{i}.jpg" for i in range(n)], "label": ["a", "b"] * (n // 2), "x": ["y" * 2_000] * n}), tmp_path / "bomb.parquet")
    assert (tmp_path / "bomb.parquet").stat().st_size < 2**21
    refused(load_table, tmp_path / "bomb.parquet", contains="it unfolds to more than", check_files=False)


@pytest.mark.parametrize("name", ["t.xlsx", "t.jsonl", "t.json", "t.ods"])
def test_other_tables_are_named_with_what_to_do(tmp_path, name):
    (tmp_path / name).write_bytes(b"PK\x03\x04")
    refused(load_table, tmp_path / name, contains="is not a kind of table that can be read; save it as one of: .csv")


def test_300_damaged_decisions(tmp_path):
    from snakecls.data.corrections import apply_corrections

    file, table = tmp_path / "corrections.csv", pd.DataFrame({"path": [str(tmp_path / f"{number}.jpg") for number in range(12)], "label": ["boa", "rat"] * 6})
    for number in range(12):
        (tmp_path / f"{number}.jpg").write_bytes(photo(number))
        action = ("keep", "drop", "relabel")[number % 3]
        add_correction(file, tmp_path / f"{number}.jpg", action=action, label="boa" if action == "relabel" else "", note="label, outlier")
    data, n_read = file.read_bytes(), 0
    right = {Path(row.path).name: (row.action, row.label) for row in read_corrections(file).decisions.itertuples()}
    for number, damaged in enumerate(mutated_files(data, seed=3)):
        file.write_bytes(damaged)
        try:
            read = read_corrections(file)
        except UserError as e:
            assert one_line(str(e)) == str(e) and len(str(e)) < 1500, (number, e)
            continue
        n_read += 1
        noted, done = apply_corrections(table, read)
        said = " ".join(noted.notes)
        for row in done.itertuples():
            name = Path(row.path).name
            if row.outcome in ("kept", "dropped") or row.outcome.startswith("relabelled"):  # what is done was decided so
                assert right.get(name) == (row.action, row.label) or name.encode() + b"," + row.action.encode() in damaged, (number, row)
            else:
                assert "corrections.csv" in said, (number, row)
        there = {line.split(b",")[0].decode(errors="replace") for line in data.splitlines()[1:] if line in damaged.splitlines()}
        assert there - {Path(path).name for path in read.decisions["path"]} == set() or said, number
    assert n_read > 20


def test_a_row_whose_leftover_was_read_as_notes_stands_among_the_issues(tmp_path):
    for number in (1, 2, 11):
        (tmp_path / f"{number}.jpg").touch()
    (tmp_path / "t.csv").write_text("path,label,notes\n1.jpg,cat,x\n2.jpg,dog,y\n11.jpg,cat, wild,bad\n")
    noted = read_table(tmp_path / "t.csv")
    table = noted.table
    (issue,) = noted.issues
    assert len(table) == 3 and issue["path"].endswith("t.csv:4") and issue["issue"] == "unsure line" and "read as 'notes'" in issue["reason"]


def test_a_run_that_is_not_there_is_told_in_plain_words(tmp_path):
    RunFolder.create(tmp_path, "first")
    refused(find_run, tmp_path, "frst", contains=f"run 'frst' is not in {tmp_path}; did you mean 'first'?")
