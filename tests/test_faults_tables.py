"""Tables that outsiders brought: what they say is what is read, what was guessed is told, and what cannot be read has its line number."""
import gzip
import unicodedata
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from snakecls.core import UserError
from snakecls.data.notes import Noted
from snakecls.data.splits import divide_table, split_table
from snakecls.data.tables import load_table, read_table, read_unlabelled


def make(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


def write(path: Path, content: str, encoding: str = "utf-8") -> Path:
    path.write_bytes(content.encode(encoding))
    return path


def notes(noted: Noted) -> str:
    return " ".join(noted.notes)


def names(table: pd.DataFrame) -> list[str]:
    return [Path(path).name for path in table["path"]]


# Cells are text

ODD = ["1.10", "1.1", "1e3", "1000", "01", "1", "null", "nan", "NA", "None", "true", "True", "1,234", "+5", "-0", "1.0"]


def rows_of(labels: list[str], *, quote: bool = False) -> str:
    return "file,label,group\n" + "".join(f'{i}.jpg,{f"{chr(34)}{label}{chr(34)}" if quote or "," in label else label},{label!r}\n'.replace("'", '"') for i, label in enumerate(labels))


@pytest.mark.parametrize("form", ["csv", "quoted", "semicolon with BOM", "utf-16", "utf-16 without BOM", "cp1252", "CR", "gz", "parquet", "frame"])
def test_labels_are_read_as_they_are_written(tmp_path, form):
    make(tmp_path, *(f"{i}.jpg" for i in range(len(ODD))))
    text, frame = rows_of(ODD, quote=form == "quoted"), pd.DataFrame({"file": [f"{i}.jpg" for i in range(len(ODD))], "label": ODD})
    path = tmp_path / ("t.csv.gz" if form == "gz" else "t.parquet" if form == "parquet" else "t.csv")
    if form == "semicolon with BOM":
        write(path, frame.to_csv(sep=";", index=False), "utf-8-sig")
    elif form == "gz":
        path.write_bytes(gzip.compress(text.encode()))
    elif form == "parquet":
        frame.to_parquet(path)
    elif form == "CR":
        write(path, text.replace("\n", "\r"))
    elif form != "frame":
        write(path, text, {"utf-16": "utf-16", "utf-16 without BOM": "utf-16-le"}.get(form, "utf-8"))
    table = load_table(frame, root=tmp_path) if form == "frame" else load_table(path)
    assert table["label"].tolist() == ODD and len(table) == len(ODD)


def test_what_comes_late_and_what_is_empty_does_not_change_the_others(tmp_path):
    n = 1500
    ids = [str(1234567890123456000 + i) for i in range(n)]
    ids[7] = ""
    labels = ["1" if i % 2 else "2" for i in range(n)]
    labels[1200] = "01"
    write(tmp_path / "t.csv", "file,label,observation_id,count\n" + "".join(f"{i},{label},{one},{i}\n" for i, (label, one) in enumerate(zip(labels, ids))))
    table = load_table(tmp_path / "t.csv", check_files=False)
    assert table["label"].tolist() == labels
    assert table["observation_id"].dropna().astype(str).tolist() == [one for one in ids if one] and table["observation_id"].isna().sum() == 1
    assert table["count"].sum() == n * (n - 1) // 2  # numbers are still numbers
    divided = split_table(table, group="observation_id")
    assert 0.15 < (divided["split"] == "valid").mean() < 0.25  # nobody's id is another's


def test_lost_digits_are_refused(tmp_path):
    frame = pd.DataFrame({"id": [1234567890123456789, 1234567890123456788, None], "label": ["x", "y", "x"]})
    with pytest.raises(UserError, match="column 'id' holds whole numbers as floats.*last digits are lost; save it anew"):
        load_table(frame, root=tmp_path, check_files=False)
    good = load_table(frame.assign(id=[12.0, 13.0, None], label=[1.5, 2.0, 3.0]), root=tmp_path, check_files=False)
    assert names(good) == ["12", "13"] and good["label"].tolist() == ["1.5", "2.0"]
    assert load_table(frame.assign(id=["a", "b", "c"], label=[True, False, True]), root=tmp_path, check_files=False)["label"].tolist() == ["True", "False", "True"]


def test_ids_that_look_like_numbers_are_found_as_files(tmp_path):
    make(tmp_path, "12e3.jpg", "1.50.jpg", "007.jpg", "1.5.jpg", "=5.jpg")
    write(tmp_path / "t.csv", 'id,label\n12e3,a\n1.50,b\n007,a\n="1.5",b\n')
    noted = read_table(tmp_path / "t.csv")
    table = noted.table
    assert names(table) == ["12e3.jpg", "1.50.jpg", "007.jpg", "1.5.jpg"] and noted.notes == []


def test_a_guessed_encoding_is_told(tmp_path):
    make(tmp_path, "a.jpg", "b.jpg")
    noted = read_table(write(tmp_path / "t.csv", "file,label\na.jpg,Vipère\nb.jpg,Boa\n", "cp1252"))
    table = noted.table
    assert table["label"].tolist() == ["Vipère", "Boa"] and "'Vipère'" in notes(noted) and "save it as UTF-8" in notes(noted)


# Guesses are told


def taxa(n: int = 40) -> pd.DataFrame:
    i = np.arange(n)
    return pd.DataFrame({
        "image_path": [f"{k}.jpg" for k in i], "kingdom": "Animalia", "phylum": "Chordata", "class": np.where(i % 2, "Reptilia", "Aves"), "order": np.where(i % 2, "Squamata", "Passeriformes"),
        "family": [f"Family{k % 4}" for k in i], "genus": [f"Genus{k % 8}" for k in i], "species": [f"Genus{k % 8} species{k % 16}" for k in i],
    })  # fmt: skip


def test_the_finest_rank_is_the_label_and_the_others_are_named(tmp_path):
    noted = read_table(taxa(), root=tmp_path, check_files=False)
    table = noted.table
    assert table["label"].nunique() == 16
    assert "the column 'species'" in notes(noted) and "'class'" in notes(noted) and "data.label_column" in notes(noted) and "data.target" in notes(noted)
    assert load_table(taxa().drop(columns="species"), root=tmp_path, check_files=False)["label"].nunique() == 8
    assert load_table(taxa(), root=tmp_path, check_files=False, label_column="class")["label"].nunique() == 2
    assert load_table(taxa(), root=tmp_path, check_files=False, target="family")["label"].nunique() == 4


@pytest.mark.parametrize("coarse, fine", [("species", "breed"), ("category", "species"), ("class", "species"), ("class_id", "class_name")])
def test_the_column_whose_values_look_like_labels(tmp_path, coarse, fine):
    frame = pd.DataFrame({"file": [f"{i}.jpg" for i in range(40)], coarse: ["1", "2"] * 20, fine: [f"kind {i % 8}" for i in range(40)]})
    for columns in (frame.columns, frame.columns[[0, 2, 1]]):
        noted = read_table(frame[columns], root=tmp_path, check_files=False)
        table = noted.table
        assert table["label"].nunique() == 8 and f"'{fine}'" in notes(noted) and f"'{coarse}'" in notes(noted)
    unique = load_table(frame.assign(**{fine: [f"name {i}" for i in range(40)]}), root=tmp_path, check_files=False)
    assert unique["label"].nunique() == 2  # one value for each row is no label
    noted = read_table(frame.assign(**{coarse: [i % 8 for i in range(40)]}), root=tmp_path, check_files=False)
    same = noted.table
    assert same["label"].iloc[0] == "kind 0" and noted.notes == []  # numbers and their names: no choice to tell


def test_epithets_of_several_genera_are_told_and_the_remedy_works(tmp_path):
    frame = taxa().assign(species=[f"species{i % 2}" for i in range(40)], genus=[f"Genus{'abcd'[i % 4]}" for i in range(40)])
    frame["species"] = np.where(np.arange(40) % 8 < 4, "major", "minor")
    noted = read_table(frame, root=tmp_path, check_files=False)
    assert "stand in several genera" in notes(noted) and "data.target: binomial" in notes(noted)
    assert load_table(frame, root=tmp_path, check_files=False, target="binomial")["label"].nunique() == 8


@pytest.mark.parametrize(
    "columns, expected",
    [
        ({"is_test": [0, 0, 0, 1]}, ["train", "train", "train", "test"]),
        ({"Usage": ["Training", "Training", "PublicTest", "PrivateTest"]}, ["train", "train", "test", "test"]),
        ({"valid": [False, False, True, False]}, ["train", "train", "valid", "train"]),
        ({"is_train": [1, 1, 0, 0], "is_test": [0, 0, 0, 1]}, ["train", "train", "valid", "test"]),
        ({"purpose": ["train", "train", "val", "test"]}, ["train", "train", "valid", "test"]),
    ],
)
def test_columns_that_look_like_a_split_are_used(tmp_path, columns, expected):
    frame = pd.DataFrame({"file": list("abcdefgh"), "label": list("xyxyxyxy")}).assign(**{name: values * 2 for name, values in columns.items()})
    frame.to_csv(tmp_path / "t.csv", index=False)
    for table in (load_table(frame, root=tmp_path, check_files=False), load_table(tmp_path / "t.csv", check_files=False)):
        assert table["split"].tolist() == expected * 2


@pytest.mark.parametrize("name, values", [("Usage", ["Public", "Private"]), ("valid", ["True", "True"]), ("fold", ["0", "1"])])
def test_columns_that_may_be_a_split_are_named(tmp_path, name, values):
    frame = pd.DataFrame({"file": list("abcd"), "label": list("xyxy"), name: values * 2})
    noted = read_table(frame, root=tmp_path, check_files=False)
    table = noted.table
    assert "split" not in table and f"'{name}'" in notes(noted) and "not read as a split" in notes(noted)
    said = {values[0]: "train", values[1]: "test"}
    if len(said) == 2:
        assert load_table(frame, root=tmp_path, check_files=False, splits=said)["split"].tolist() == ["train", "test"] * 2


# Text forms


def test_labels_in_two_forms_of_unicode_are_one_class(tmp_path):
    forms = [unicodedata.normalize(form, "Vipère") for form in ("NFC", "NFD")] + ["Vip\u200bère", " Vipère\u00a0", "\ufeffVipère"]
    make(tmp_path, *(f"{i}.jpg" for i in range(6)), *(f"folders/{form}/{i}.jpg" for i, form in enumerate(forms)), "folders/Boa/9.jpg")
    frame = pd.DataFrame({"file": [f"{i}.jpg" for i in range(6)], "label": [*forms, "Boa"]})
    for table in (load_table(frame, root=tmp_path), load_table(tmp_path / "folders")):
        assert set(table["label"]) == {"Vipère", "Boa"}
    several = load_table(frame.assign(label=[f"{label};x" for label in frame["label"]]).rename(columns={"label": "labels"}), root=tmp_path, multi_label=True, separator=";")
    assert {label for row in several["labels"] for label in row} == {"Vipère", "Boa", "x"}


@pytest.mark.parametrize("table_form", ["NFC", "NFD"])
def test_paths_are_found_in_both_forms(tmp_path, table_form):
    other = {"NFC": "NFD", "NFD": "NFC"}[table_form]
    make(tmp_path, *(unicodedata.normalize(other, name) for name in ("Vipère/é1.jpg", "Boa/ü.jpg", "Boa/plain.jpg")))
    frame = pd.DataFrame({"file": [unicodedata.normalize(table_form, name) for name in ("Vipère/é1.jpg", "Boa/ü.jpg", "Boa/plain.jpg")], "label": ["a", "b", "b"]})
    table = load_table(frame, root=tmp_path)
    assert len(table) == 3 and all(Path(path).exists() for path in table["path"])


def test_labels_that_look_alike_are_told_with_both_spellings(tmp_path):
    frame = pd.DataFrame({"file": list("abcdefgh"), "label": ["Boa", "boa", "a b", "a_b", "Naja", "N\u0430ja", "AB", "\uff21B"]})
    said = notes(read_table(frame, root=tmp_path, check_files=False))
    assert "8 labels" in said and "'Boa' and 'boa'" in said and "'a b' and 'a_b'" in said and "CYRILLIC" in said


# Photos in folders


def test_photos_spread_over_folders(tmp_path):
    make(tmp_path, *(f"part_1/{i}.jpg" for i in range(22)), *(f"part_2/deep/{i}.jpg" for i in range(22, 40)))
    frame = pd.DataFrame({"id": [*map(str, range(40)), "99"], "label": ["x", "y"] * 20 + ["x"]})
    frame.to_csv(tmp_path / "t.csv", index=False)
    noted = read_table(tmp_path / "t.csv")
    table = noted.table
    assert len(table) == 40 and "'part_1', 'part_2/deep'" in notes(noted)
    assert [(Path(issue["path"]).name, issue["reason"]) for issue in noted.issues] == [("99", "no such file")]


def test_bare_names_and_class_folders(tmp_path):
    make(tmp_path, "images/cat/1.jpg", "images/cat/2.jpg", "images/dog/1.jpg", "images/dog/3.jpg")
    frame = pd.DataFrame({"file": ["1.jpg", "2.jpg", "1.JPG", "3.jpg"], "label": ["cat", "cat", "dog", "dog"]})
    noted = read_table(frame, root=tmp_path)
    table = noted.table
    assert [Path(path).parts[-2] for path in table["path"]] == ["cat", "cat", "dog", "dog"]
    frame["label"] = ["x", "x", "y", "y"]  # now nothing says which 1.jpg is meant
    noted = read_table(frame, root=tmp_path)
    table = noted.table
    assert names(table) == ["2.jpg", "3.jpg"]
    assert {issue["issue"] for issue in noted.issues} == {"ambiguous"} and "2 files of that name" in noted.issues[0]["reason"]
    with pytest.raises(UserError, match="could be in .*cat' or .*dog'; say which with root"):
        load_table(frame[frame["file"].str.lower() == "1.jpg"].assign(file="1.jpg", label=["x", "y"]), root=tmp_path)


def test_a_photo_is_never_another_splits(tmp_path):
    make(tmp_path, "train/a/1.jpg", "train/b/1.jpg", "valid/a/2.jpg", "valid/b/2.jpg")
    frame = pd.DataFrame({"file": ["train/a/1.jpg", "train/b/1.jpg", "test/a/2.jpg"], "label": ["a", "b", "a"]})
    assert names(load_table(frame, root=tmp_path)) == ["1.jpg", "1.jpg"]
    both = make(tmp_path / "bare", "train/1.jpg", "train/2.jpg", "test/1.jpg", "test/2.jpg")
    table = load_table(pd.DataFrame({"file": ["1.jpg", "2.jpg", "1.jpg"], "label": ["x", "y", "x"], "split": ["train", "train", "test"]}), root=both)
    assert [Path(path).parts[-2] for path in table["path"]] == ["train", "train", "test"]


# Quotes


def test_stray_quotes_and_legal_cells_of_several_lines(tmp_path):
    "The layout of COMP5329: both in one file."
    make(tmp_path, *(f"data/{i}.jpg" for i in range(6)))
    path = write(tmp_path / "train.csv", 'ImageID,Labels,Caption\n0.jpg,1,"a\nb"\n1.jpg,3,plain\n2.jpg,1 2,"he said /"hi/""\n3.jpg\n4.jpg,3,"Stop, /"now/", he said"\n5.jpg,1,last\n')
    noted = read_table(path, multi_label=True, separator=" ")
    table = noted.table
    assert names(table) == ["0.jpg", "1.jpg", "2.jpg", "4.jpg", "5.jpg"]
    assert table["labels"].tolist() == [["1"], ["3"], ["1", "2"], ["3"], ["1"]] and table["Caption"].iloc[0] == "a\nb"
    assert [issue["path"] for issue in noted.issues if issue["issue"] == "unreadable line"] == [f"{path}:6"] and "line 6" in notes(noted)


def test_tables_for_prediction_are_read_by_the_same_door(tmp_path):
    make(tmp_path, *(f"{i}.jpg" for i in range(4)))
    path = write(tmp_path / "test.csv", 'ImageID,Caption\n0.jpg,"two\nlines"\n1.jpg,A "big" dog, asleep\n2.jpg,"never closed\n3.jpg,last\n')
    noted = read_unlabelled(path)
    table = noted.table
    assert names(table) == ["0.jpg", "1.jpg", "2.jpg", "3.jpg"] and "line '4', '5'" in notes(noted)


def test_what_pandas_reads_is_read(tmp_path):
    rng, n = np.random.default_rng(0), 30_000
    kinds = rng.choice(["plain", "legal", "lines", "slash", "comma", "short"], n, p=[0.9, 0.05, 0.03, 0.01, 0.0099, 0.0001])
    cells = {"plain": "a dog", "legal": '"a ""big"" dog, asleep"', "lines": '"first\nsecond, third"', "slash": '"he said /"hi/""', "comma": 'a dog, a "cat"'}
    rows = [f"{i}.jpg" if kind == "short" else f"{i}.jpg,{i % 7} {i % 5 + 7},{cells[kind]}" for i, kind in enumerate(kinds)]
    path = write(tmp_path / "train.csv", "\n".join(["ImageID,Labels,Caption", *rows]) + "\n")
    noted = read_table(path, check_files=False, label_column="Labels")
    table = noted.table
    by_pandas = pd.read_csv(path, dtype=str, engine="python", on_bad_lines="skip").dropna()
    known = dict(zip(names(table), zip(table["label"], table["Caption"])))
    assert len(table) == n - (kinds == "short").sum() >= len(by_pandas)
    sure = by_pandas[by_pandas["ImageID"].str[:-4].astype(int).map(lambda i: kinds[i]).isin(["plain", "legal", "lines"])]
    assert len(sure) > 29_000 and all(known[one] == (label, caption) for one, label, caption in sure.itertuples(index=False))
    starts = np.cumsum([1 + (kind == "lines") for kind in ["header", *kinds]]) + 1
    lost = [int(issue["path"].rpartition(":")[2]) for issue in noted.issues if issue["issue"] != "unsure line"]
    unsure = [int(issue["path"].rpartition(":")[2]) for issue in noted.issues if issue["issue"] == "unsure line"]
    assert lost == [int(starts[i]) for i in np.flatnonzero(kinds == "short")]
    assert unsure and set(unsure) <= {int(starts[i]) for i in np.flatnonzero(np.isin(kinds, ["slash", "comma"]))}  # used, and listed


# Splits that are left out


def test_splits_can_be_ignored(tmp_path):
    layouts = (["test/unknown/1.jpg", "test/unknown/2.jpg"], ["test/1.jpg"])
    for i, test in enumerate(layouts):
        folder = make(tmp_path / str(i), "train/a/1.jpg", "train/b/1.jpg", "train/b/2.jpg", *test)
        noted = read_table(folder, splits={"test": "ignore"})
        table = noted.table
        assert set(table["label"]) == {"a", "b"} and set(table["split"]) == {"train"} and "as asked" in notes(noted)
    frame = pd.DataFrame({"file": list("abcd"), "label": ["x", "y", "?", "x"], "split": ["train", "train", "test", "val"]})
    assert load_table(frame, root=tmp_path, check_files=False, splits={"test": "ignore"})["split"].tolist() == ["train", "train", "valid"]
    with pytest.raises(UserError, match="choose one of: train, valid, test, ignore"):
        load_table(frame, root=tmp_path, splits={"test": "leave"})


# Ten more nasty tables

NASTY = {
    "thousands separators": ('file,label,views\na.jpg,"1,234","1,000"\nb.jpg,x,"2,000"\n', ["1,234", "x"]),
    "quoted ids": ('"id","label"\n"a","x"\n"b","y"\n', ["x", "y"]),
    "Windows paths": ("path,label\nC:\\photos\\a.jpg,x\nC:\\photos\\b.jpg,y\n", ["x", "y"]),
    "header with blanks": ("\ufeff path , label \na.jpg, x\nb.jpg, y\n", ["x", "y"]),
    "blanks and quotes": ('path, label\na.jpg, "x, z"\nb.jpg, y\n', ["x, z", "y"]),
    "trailing delimiter": ("file,label\na.jpg,x,\nb.jpg,y,\n", ["x", "y"]),
    "trailing delimiter once": ("file,label\na.jpg,x,\nb.jpg,y\nc.jpg,y\n", ["x", "y", "y"]),
    "comments and blank lines": ("# exported by hand\n\nfile,label\na.jpg,x\n\nb.jpg,y\n", ["x", "y"]),
    "Excel's first line": ("sep=;\nfile;label\na.jpg;x\nb.jpg;y\n", ["x", "y"]),
    "an index": ("Unnamed: 0,file,label\n0,a.jpg,x\n1,b.jpg,y\n", ["x", "y"]),
    "row names of R": ('"file","label"\n"1","a.jpg","x"\n"2","b.jpg","y"\n', ["x", "y"]),
    "mixed suffixes": ("file,label\nA.JPG,x\nb.JPEG,y\nb.Jpg,y\n", ["x", "y"]),
    "formulas of Excel": ('id,label\n"=""a""",x\n"=""b""",y\n', ["x", "y"]),
    "blanks around": ("file,label\n a.jpg ,x \nb.jpg,  y\n", ["x", "y"]),
    "a column too much once": ("file,label\na.jpg,x\nb.jpg,y\nc.jpg,x,z\n", ["x", "y"]),
}


@pytest.mark.parametrize("case", NASTY)
def test_nasty_tables(tmp_path, case):
    text, labels = NASTY[case]
    make(tmp_path, "a.jpg", "b.jpg", "c.jpg")
    table = load_table(write(tmp_path / "t.csv", text))
    assert table["label"].tolist() == labels and names(table) == ["a.jpg", "b.jpg", "c.jpg"][: len(labels)]
    assert not any(column.startswith("Unnamed") for column in table)


def test_nasty_tables_that_are_told_or_refused(tmp_path):
    make(tmp_path, "a.jpg", "b.jpg")
    noted = read_table(write(tmp_path / "t.csv", "file,label,label\na.jpg,x,1\nb.jpg,y,2\n"))
    table = noted.table
    assert table["label"].tolist() == ["x", "y"] and "several columns called 'label'" in notes(noted) and "'label.1'" in notes(noted)
    with pytest.raises(UserError, match="addresses on the web .*; download the photos"):
        load_table(write(tmp_path / "t.csv", "url,label,image\n1,x,https://example.org/1.jpg\n2,y,https://example.org/2.jpg\n"))
    with pytest.raises(UserError, match="cannot be read as a table .*it has no row"):
        load_table(write(tmp_path / "t.csv", "\n\n"))


# In an experiment


def experiment(source: Path, **data):
    from snakecls.experiment.file import make_experiment

    return make_experiment({"data": {"source": str(source), **data}})


@pytest.mark.parametrize("word", ["test", "Testing_set"])
def test_the_remedy_for_labels_of_the_test_alone_works(tmp_path, word):
    from snakecls.experiment.table import build_table

    def labels(made):
        return made.data.problem.learn(build_table(made)).labels

    folder = make(tmp_path, *(f"train/{label}/{i}.jpg" for label in "ab" for i in range(5)), f"{word}/unknown/1.jpg")
    with pytest.raises(UserError, match=r"'unknown'.* only in the split test .*data.splits: \{test: ignore\}"):
        labels(experiment(folder))
    assert labels(experiment(folder, splits={"test": "ignore"})) == ["a", "b"]
    make(tmp_path, f"{word}/a/9.jpg")  # only some of its labels are unknown
    with pytest.raises(UserError, match=r"add training photos, remove these, or leave the split out with data.splits: \{test: ignore\}"):
        labels(experiment(folder))


def test_yes_in_yaml_is_yes(tmp_path):
    from snakecls.experiment.file import load_experiment
    from snakecls.experiment.table import build_table

    make(tmp_path, *(f"photos/{split}/{label}/{i}.jpg" for split in ("train", "yes") for label in "ab" for i in range(5)))
    write(tmp_path / "one.yaml", "data:\n  source: photos\n  splits: {yes: test}\n")
    assert (build_table(load_experiment(tmp_path / "one.yaml"))["split"] == "test").sum() == 10
    pd.DataFrame({"file": [f"photos/yes/{label}/{i}.jpg" for label in "ab" for i in range(5)], "label": list("aaaaabbbbb"), "set": [True, False] * 5}).to_csv(tmp_path / "t.csv", index=False)
    write(tmp_path / "two.yaml", "data:\n  source: t.csv\n  split_column: set\n  splits: {yes: test, no: train}\n")
    assert (build_table(load_experiment(tmp_path / "two.yaml"))["split"] == "test").sum() == 5


@pytest.mark.parametrize("several", [False, True])
def test_a_sample_is_stratified_and_keeps_groups_together(tmp_path, several):
    from snakecls.experiment.table import build_table, divide_photos

    n = 2000
    label = np.where(np.arange(n) < 1600, "often", np.where(np.arange(n) < 1990, "seldom", "rare"))
    frame = pd.DataFrame({"file": [f"{i}.jpg" for i in range(n)], "labels" if several else "label": label, "observation_id": np.arange(n) // 2, "split": np.where(np.arange(n) % 10 < 2, "test", "train")})
    make(tmp_path, *frame["file"]), frame.to_csv(tmp_path / "t.csv", index=False)
    options = {"group": "observation_id", **({"multi_label": True, "separator": ","} if several else {})}
    whole, noted = build_table(experiment(tmp_path / "t.csv", **options)), divide_photos(experiment(tmp_path / "t.csv", sample=200, **options))[0]
    some = noted.table
    assert (some["split"] == "test").sum() == (whole["split"] == "test").sum() == 400
    left = some[some["split"] != "test"]
    assert 180 <= len(left) <= 220 and 0.15 < (left["split"] == "valid").mean() < 0.25
    assert set(experiment(tmp_path, **options).data.problem.learn(some).labels) == {"often", "seldom", "rare"}
    labels = left["labels"].str[0] if several else left["label"]
    assert 0.75 < (labels == "often").mean() < 0.85
    assert left.groupby("observation_id").size().eq(2).all() and left.groupby("observation_id")["split"].nunique().max() == 1
    assert build_table(experiment(tmp_path / "t.csv", sample=200, **options))["path"].equals(some["path"])
    assert "a sample for a quick try" in notes(noted)
    assert "all used" in notes(divide_photos(experiment(tmp_path / "t.csv", sample=5000, **options))[0])


def test_words_for_nothing_in_a_group_column_are_told(tmp_path):
    frame = pd.DataFrame({"file": [f"{i}.jpg" for i in range(40)], "label": ["x", "y"] * 20, "observation_id": ["NULL"] * 10 + [str(i) for i in range(30)]})
    noted = divide_table(load_table(frame, root=tmp_path, check_files=False), group="observation_id")
    assert "the 10 photos whose observation_id is 'NULL' stay together" in notes(noted)


def test_corrections_saved_by_excel(tmp_path):
    from snakecls.data.corrections import add_correction, read_corrections

    for encoding, separator in (("utf-16", "\t"), ("cp1252", ";")):
        file = write(tmp_path / f"{encoding}.csv", f"path{separator}action{separator}label\r\na.jpg{separator}relabel{separator}Vipère\r\n", encoding)
        assert read_corrections(file).decisions["label"].tolist() == ["Vipère"]
        add_correction(file, tmp_path / "b.jpg", action="relabel", label="Vipe\u0300re ")
        assert read_corrections(file).decisions["label"].tolist() == ["Vipère", "Vipère"]


def test_messages_name_the_key_of_the_experiment_file(tmp_path):
    from snakecls.data.datablocks import photo_dls

    frame = pd.DataFrame({"file": ["a.jpg", "b.jpg"], "label": ["x,z", "y"]})
    for name in frame["file"]:
        Image.new("RGB", (8, 8)).save(tmp_path / name)
    for options, key in [({"separator": ","}, "data.multi_label"), ({"label_column": ["x", "y"]}, "data.multi_label"), ({"splits": {"a": "b"}}, "data.splits")]:
        with pytest.raises(UserError, match=key):
            load_table(frame, root=tmp_path, **options)
    with pytest.raises(UserError, match=r"photo_dls takes a table .*load_table"):
        photo_dls(Path("photos"))


# Photos that are lost, and others of their name


def lie(table: pd.DataFrame, folder: Path) -> list[str]:
    return [Path(path).relative_to(folder).as_posix() for path in table["path"]]


def test_a_lost_photo_moves_no_other(tmp_path):
    folder = make(tmp_path / "a", *(f"cat/{i}.jpg" for i in range(1, 5)), *(f"dog/{i}.jpg" for i in range(1, 11)))
    frame = pd.DataFrame({"file": [f"{i}.jpg" for i in range(1, 11)], "label": ["cat"] * 5 + ["dog"] * 5})
    noted = read_table(frame, root=folder)
    table = noted.table
    assert lie(table, folder) == [f"{'cat' if i < 5 else 'dog'}/{i}.jpg" for i in (1, 2, 3, 4, 6, 7, 8, 9, 10)]
    (issue,) = noted.issues
    assert issue["issue"] == "missing" and "'dog/5.jpg', which lies in the folder of another label" in issue["reason"]
    both = load_table(pd.concat([frame.assign(label=label) for label in ("cat", "dog")]), root=folder)
    assert lie(both, folder) == [*(f"cat/{i}.jpg" for i in range(1, 5)), *(f"dog/{i}.jpg" for i in range(1, 11))]

    folder = make(tmp_path / "b", *(f"train/{i}.jpg" for i in range(1, 20)), *(f"test/{i}.jpg" for i in range(1, 31)))
    pd.DataFrame({"id": range(1, 21), "label": ["x", "y"] * 10}).to_csv(folder / "train.csv", index=False)
    assert lie(load_table(folder / "train.csv"), folder) == [f"train/{i}.jpg" for i in range(1, 20)]
    frame = pd.DataFrame({"file": ["1.jpg", "2.jpg", "25.jpg", "26.jpg"], "label": list("xyxy"), "split": ["train", "train", "train", "test"]})
    noted = read_table(frame, root=folder)
    table = noted.table
    assert lie(table, folder) == ["train/1.jpg", "train/2.jpg", "test/26.jpg"] and "folder of another split" in noted.issues[0]["reason"]
    own = load_table(frame.assign(split=["train", "train", "train", "hidden"]), root=folder, splits={"hidden": "test"})
    assert lie(own, folder) == ["train/1.jpg", "train/2.jpg", "test/26.jpg"]


def test_two_folders_that_hold_nearly_all_are_a_question(tmp_path):
    folder = make(tmp_path, *(f"images/{i}.jpg" for i in range(6) if i != 3), *(f"masks/{i}.png" for i in range(6)))
    with pytest.raises(UserError, match="could be in .*images' or .*masks'; say which with root"):
        load_table(pd.DataFrame({"id": range(6), "label": list("xyxyxy")}), root=folder)
    assert len(load_table(pd.DataFrame({"id": range(6), "label": list("xyxyxy")}), root=folder / "images")) == 5
    shards = make(tmp_path / "animals", *(f"animals/{i}.jpg" for i in range(6)))
    with pytest.raises(UserError, match="4 photos of 6 in the table lie in the folder of another label alone, .*; say where they are with root"):
        load_table(pd.DataFrame({"id": range(6), "label": ["animals", "cat", "dog"] * 2}), root=shards)


@pytest.mark.parametrize("written", ["{label}/{i}.jpg", "{i}.jpg", "/home/me/{label}/{i}.jpg"])
def test_a_stray_photo_decides_nothing(tmp_path, written):
    labels = ["cat"] * 7 + ["dog"] * 6
    folder = make(tmp_path, "3.jpg", *(f"images/{label}/{i}.jpg" for i, label in enumerate(labels)))
    table = load_table(pd.DataFrame({"file": [written.format(i=i, label=label) for i, label in enumerate(labels)], "label": labels}), root=folder)
    assert lie(table, folder) == [f"images/{label}/{i}.jpg" for i, label in enumerate(labels)]


def test_a_folder_that_may_not_be_read_costs_its_own_photos_only(tmp_path, monkeypatch):
    "The tests may run as root, who reads everything, so the system's answer is played."
    import os

    make(tmp_path, "open/1.jpg", "open/2.jpg", "open/3.jpg", "shut/4.jpg")
    real = {name: getattr(os, name) for name in ("scandir", "listdir")}

    def play(name):
        def refuse(path="."):
            if str(path).rstrip("/").endswith("shut"):
                raise PermissionError(13, "Permission denied")
            return real[name](path)

        return refuse

    for name in real:
        monkeypatch.setattr(os, name, play(name))
    labels = list("xyxy")
    noted = read_table(pd.DataFrame({"file": ["open/1.jpg", "open/2.jpg", "open/3.jpg", "shut/4.jpg"], "label": labels}), root=tmp_path)
    table = noted.table
    assert len(table) == 3 and noted.issues[0]["issue"] == "not permitted" and "shut' may not be read" in noted.issues[0]["reason"]
    noted = read_table(pd.DataFrame({"file": [f"{i}.jpg" for i in range(1, 5)], "label": labels}), root=tmp_path)
    table = noted.table
    assert len(table) == 3 and "'shut' may not be looked into" in noted.issues[0]["reason"] and "could not look into 1 folder" in notes(noted)
    with pytest.raises(UserError, match="shut' may not be read; change its permissions"):
        load_table(pd.DataFrame({"file": ["shut/4.jpg", "shut/5.jpg"], "label": ["x", "y"]}), root=tmp_path)


# The column of the paths


@pytest.mark.parametrize("column", ["photo_name", "picture", "Image Index", "image_filename", "local_path"])
def test_names_of_image_files_come_before_an_id(tmp_path, column):
    from snakecls.data.given import _table_photos

    make(tmp_path, *(f"{i}.jpg" for i in range(24)))
    frame = pd.DataFrame({"id": range(24), column: [f"{23 - i}.jpg" for i in range(24)], "label": ["x", "y"] * 12})
    frame.to_csv(tmp_path / "t.csv", index=False)
    for noted in (read_table(frame, root=tmp_path), read_table(tmp_path / "t.csv"), read_unlabelled(tmp_path / "t.csv")):
        assert names(noted.table)[0] == "23.jpg" and f"'{column}'" in notes(noted) and "'id' could be meant as well" in notes(noted)
    said = []
    assert next(_table_photos(tmp_path / "t.csv", say=said.append))[1].endswith("/23.jpg") and f"'{column}'" in said[0]
    assert names(load_table(frame, root=tmp_path, path_column="id"))[0] == "0.jpg"
    lost_noted = read_table(frame.assign(**{column: "before/" + frame[column].str.replace(".jpg", "x.jpg")}), root=tmp_path)
    lost = lost_noted.table
    assert names(lost)[0] == "0.jpg" and f"'{column}' could be meant as well" in notes(lost_noted)  # those files are not there


def test_of_two_columns_of_photos_the_one_that_was_taken_is_told(tmp_path):
    make(tmp_path, *(f"{i}.jpg" for i in range(4)))
    frame = pd.DataFrame({"image": [f"{i}.jpg" for i in range(4)], "filename": [f"{3 - i}.jpg" for i in range(4)], "label": list("xyxy")})
    assert "'image' could be meant as well" in notes(read_table(frame, root=tmp_path)) or "'filename' could be meant as well" in notes(read_table(frame, root=tmp_path))
    assert read_table(frame.assign(filename=frame["image"]), root=tmp_path).notes == []
    with pytest.raises(UserError, match="several columns of photos .'a', 'b'.; say which one is meant with path_column"):
        load_table(frame.rename(columns={"image": "a", "filename": "b"}), root=tmp_path)


@pytest.mark.parametrize("name", ["path", None])
def test_paths_in_the_index(tmp_path, name):
    make(tmp_path, *(f"{i}.jpg" for i in range(4)))
    frame = pd.DataFrame({"id": range(4), "label": list("xyxy")}, index=pd.Index([f"{3 - i}.jpg" for i in range(4)], name=name))
    frame.to_parquet(tmp_path / "t.parquet")
    for table in (load_table(frame, root=tmp_path), load_table(tmp_path / "t.parquet")):
        assert names(table) == ["3.jpg", "2.jpg", "1.jpg", "0.jpg"]


def test_a_cut_download_is_refused_in_a_sentence(tmp_path):
    text = "file,label\n" + "".join(f"{i}.jpg,{i % 7}\n" for i in range(5000))
    (tmp_path / "t.csv.gz").write_bytes(gzip.compress(text.encode())[:-200])
    with pytest.raises(UserError, match="cannot be read as a table .the file was cut off or is damaged"):
        load_table(tmp_path / "t.csv.gz")


# Columns that contradict each other, short lines, keys that match nothing


def numbered(n: int = 24, **columns) -> pd.DataFrame:
    return pd.DataFrame({"file": [f"{i}.jpg" for i in range(n)], **columns})


@pytest.mark.parametrize(
    "columns, label, told",
    [
        ({"genus": ["Natrix", "Vipera"] * 12, "species": ["major", "major", "minor", "minor"] * 6}, "species", "stand in several genera"),
        ({"class": ["Reptilia", "Aves"] * 12, "genus": [f"G{i % 6}" for i in range(24)]}, "genus", "'class' could be meant as well"),
        ({"class": ["Reptilia", "Aves"] * 12, "family": [f"F{i % 6}" for i in range(24)]}, "family", "'class' could be meant as well"),
        ({"class": ["Reptilia", "Aves"] * 12, "order": [i // 4 for i in range(24)]}, "class", ""),
        ({"species": ["a b", "c d"] * 12, "subspecies": [f"S{i % 6}" for i in range(24)]}, "species", "'subspecies' could be meant as well"),
        ({"class_id": [0, 1] * 12, "name": ["cat", "dog"] * 12}, "name", ""),
        ({"label_id": [0, 1] * 12, "label_name": ["cat", "dog"] * 12}, "label_name", ""),
        ({"label": ["x", "y"] * 12, "Label": [f"L{i % 6}" for i in range(24)]}, "label", "'Label' could be meant as well"),
    ],
)
def test_no_choice_of_the_label_is_silent(tmp_path, columns, label, told):
    noted = read_table(numbered(**columns), root=tmp_path, check_files=False)
    table = noted.table
    assert table["label"].tolist() == columns[label] and (told in notes(noted) if told else noted.notes == [])


def test_the_column_that_the_model_knows_is_the_label(tmp_path):
    from snakecls.workflow.evaluation import _load_known

    make(tmp_path, *(f"{i}.jpg" for i in range(24)))
    numbered(species=["a b", "c d"] * 12, breed=[f"B{i % 6}" for i in range(24)]).to_csv(tmp_path / "t.csv", index=False)
    assert set(_load_known(tmp_path / "t.csv", ["a b", "c d", "e f"]).table["label"]) == {"a b", "c d"}
    noted = _load_known(tmp_path / "t.csv", ["B1", "B2"])
    table = noted.table
    assert table["label"].nunique() == 6 and "that the model knows" in notes(noted) and "label_column" not in notes(noted)


def test_short_lines_are_told(tmp_path):
    rows = "".join(f"{i}.jpg,{'xy'[i % 2]},Spain\n" for i in range(20))
    for cell in ("Spain", '"Spain"'):
        noted = read_table(write(tmp_path / "t.csv", f"file,label,country\n{rows}20.jpg,{cell}\n"), check_files=False)
        table = noted.table
        assert set(table["label"]) == {"x", "y"} and len(table) == 20 and "line 22 has fewer than the 3 columns" in notes(noted)
        assert [issue["issue"] for issue in noted.issues] == ["unreadable line"]
    noted = read_table(write(tmp_path / "t.csv", "file,label,country\n" + rows.replace(",Spain", "")), check_files=False)
    table = noted.table
    assert len(table) == 20 and "all 20 rows of 't.csv' have fewer than the 3 columns" in notes(noted)


def test_columns_of_splits_that_contradict_each_other(tmp_path):
    frame = numbered(label=["x", "y"] * 12, split=["train"] * 20 + ["val"] * 4, is_test=[0] * 16 + [1] * 4 + [0] * 4)
    with pytest.raises(UserError, match="'split' and 'is_test' .* contradict each other in 4 rows about the split test; correct them"):
        load_table(frame, root=tmp_path, check_files=False)
    assert (load_table(frame, root=tmp_path, check_files=False, split_column="split")["split"] == "train").sum() == 20
    assert read_table(frame.assign(split=["train"] * 16 + ["test"] * 4 + ["val"] * 4), root=tmp_path, check_files=False).notes == []
    noted = read_table(frame[["file", "label"]].assign(is_valid=[True] * 22 + [False] * 2), root=tmp_path, check_files=False)
    assert "is true of 22 of 24 rows, which leaves 2 for training" in notes(noted)


@pytest.mark.parametrize("splits, told", [({"validation": "ignore"}, True), ({"tst": "ignore"}, True), ({"foo": "test"}, True), ({"test": "ignore"}, False), ({"val": "test"}, False)])
def test_names_of_splits_that_match_nothing(tmp_path, splits, told):
    noted = read_table(numbered(label=["x", "y"] * 12, split=["train"] * 18 + ["val"] * 3 + ["Testing"] * 3), root=tmp_path, check_files=False, splits=splits)
    assert (f"'{next(iter(splits))}' in data.splits matches nothing; there are train, val, Testing." in notes(noted)) == told


def test_numbers_in_lists_are_text(tmp_path):
    cells = ["[1.10]", "[1.1]", "[1e3]", "[1000]", "[01, 'a 1.5']", '[-1, null, "2"]']
    table = load_table(pd.DataFrame({"file": list("abcdef"), "labels": cells}), root=tmp_path, check_files=False, multi_label=True)
    assert [set(labels) for labels in table["labels"]] == [{"1.10"}, {"1.1"}, {"1e3"}, {"1000"}, {"01", "a 1.5"}, {"-1", "2"}]


def test_bytes_that_are_not_utf8_stay_apart(tmp_path):
    pd.DataFrame({"file": list("abcd"), "label": [b"Vip\xe8re", b"Vip\xe9re", b"Boa", b"Boa"]}).to_parquet(tmp_path / "t.parquet")
    noted = read_table(tmp_path / "t.parquet", check_files=False)
    table = noted.table
    assert table["label"].nunique() == 3 and "bytes that are not UTF-8" in notes(noted) and "'Vipère'" in notes(noted)


def test_groups_are_compared_as_labels_are(tmp_path):
    forms = [unicodedata.normalize(form, f"Café {i}") + end for i in range(15) for form, end in (("NFC", ""), ("NFD", ""), ("NFC", "\u200b"), ("NFD", " "))]
    frame = numbered(60, label=["x", "y"] * 30, site=forms, number=[value for i in range(15) for value in (i, float(i), str(i), i)])
    frame["number"] = frame["number"].astype(object)
    for group in ("site", "number"):
        divided = split_table(frame.rename(columns={"file": "path"}), group=group, valid=0.3)
        assert divided["split"].nunique() == 2 and divided.groupby(np.arange(60) // 4)["split"].nunique().max() == 1, group
    given = frame.rename(columns={"file": "path"}).assign(split=["train", "valid"] * 30)
    assert "tear apart 15 values of site" in notes(divide_table(given, group="site"))
