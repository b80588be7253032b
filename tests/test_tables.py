"""Every source becomes the same tidy table, and every bad source gives one clear sentence."""
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from snakecls.core import UserError
from snakecls.data.taxonomy import add_taxonomy
from snakecls.data.splits import divide_table, sample_table, split_table, take_sample
from snakecls.data.tables import (
    check_table, filter_classes, keep_classes, load_table, load_unlabelled, read_table, read_unlabelled, set_target, summary,
)

REAL = Path(os.environ.get("SNAKECLS_REAL_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))


def make(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


def real(name: str) -> Path:
    if not (REAL / name).exists():
        pytest.skip(f"the real photographs are not there ({REAL / name}); set SNAKECLS_REAL_DATA")
    return REAL / name


def test_who_wants_a_table_gets_it_and_is_told_the_notes(tmp_path):
    "load_table and its like give what their twin with notes gives, and warn of every note; nothing rides on the DataFrame."
    make(tmp_path, *(f"{i}.jpg" for i in range(12)))
    frame = pd.DataFrame({"file": [*(f"{i}.jpg" for i in range(12)), "gone.jpg"], "label": [*"aaaaabbbbbcd", "a"]})
    read = read_table(frame, root=tmp_path)
    divided = read.then(divide_table, test=0.2)
    pairs = [
        (load_table, read_table, frame, {"root": tmp_path}), (load_unlabelled, read_unlabelled, frame, {"root": tmp_path}),
        (filter_classes, keep_classes, read.table, {"top_classes": 2}), (split_table, divide_table, read.table, {"test": 0.2}),
    ]
    for plain, noted, source, options in pairs:
        wanted = noted(source, **options)
        with pytest.warns(UserWarning) as told:
            table = plain(source, **options)
        pd.testing.assert_frame_equal(table, wanted.table)
        assert [str(one.message) for one in told] == wanted.notes and wanted.notes and table.attrs == {}
        assert all(one.filename == __file__ for one in told)  # whoever called is named
    with pytest.warns(UserWarning, match="a sample for a quick try"):
        assert sample_table(divided.table, 6).equals(take_sample(divided.table, 6).table)
    assert len(divided.notes) > len(read.notes) > 0 and divided.issues == read.issues  # a step keeps what was told before it
    assert [issue["issue"] for issue in read.issues] == ["missing"]


def one_sentence(error: pytest.ExceptionInfo) -> str:
    "A user's mistake is told on one line, with what was given and a remedy behind a semicolon."
    text = str(error.value)
    assert "\n" not in text and ";" in text, text
    return text


# Folders


def test_class_folders(tmp_path):
    make(tmp_path, "b/2.PNG", "a/1.jpg", "a/deeper/3.webp")
    noted = read_table(tmp_path)
    table = noted.table
    assert table.columns.tolist() == ["path", "label"]
    assert table["label"].tolist() == ["a", "a", "b"]
    assert all(os.path.isabs(path) and os.path.exists(path) for path in table["path"])
    assert table.attrs == {} and noted.issues == [] and noted.notes == []


@pytest.mark.parametrize(
    "train, valid, test",
    [("train", "valid", "test"), ("Training", "Validation", "Testing"), ("train", "val", "test"), ("TRAIN", "dev", "holdout"), ("train_set", "val_set", "test_set")],
)
def test_split_folders(tmp_path, train, valid, test):
    make(tmp_path, *(f"{split}/{label}/{i}.jpg" for split in (train, valid, test) for label in "ab" for i in range(2)))
    table = load_table(tmp_path)
    assert table["split"].value_counts().to_dict() == {"train": 4, "valid": 4, "test": 4}
    assert sorted(table["label"].unique()) == ["a", "b"]


def test_own_names_of_splits(tmp_path):
    make(tmp_path, "train/a/1.jpg", "train/b/1.jpg", "val/a/2.jpg", "odd ones/b/2.jpg")
    assert load_table(tmp_path, splits={"val": "test"})["split"].tolist() == ["train", "train", "test"]
    assert load_table(tmp_path, splits={"Odd Ones": "test"})["split"].tolist().count("test") == 1
    issues = read_table(tmp_path).issues
    assert [Path(issue["path"]).parts[-3] for issue in issues] == ["odd ones"]
    with pytest.raises(UserError, match="choose one of: train, valid, test"):
        load_table(tmp_path, splits={"val": "tset"})


def test_archive_that_unpacks_into_a_folder(tmp_path):
    make(tmp_path, "inaturalist_12K/train/Aves/1.jpg", "inaturalist_12K/train/Fungi/1.jpg", "inaturalist_12K/val/Aves/2.jpg", "inaturalist_12K/._x.jpg", "__MACOSX/train/Aves/._1.jpg")
    table = load_table(tmp_path)
    assert table[["label", "split"]].values.tolist() == [["Aves", "train"], ["Fungi", "train"], ["Aves", "valid"]]


def test_a_class_may_be_called_train(tmp_path):
    make(tmp_path, "train/1.jpg", "bus/1.jpg")
    table = load_table(tmp_path)
    assert "split" not in table and sorted(table["label"]) == ["bus", "train"]


def test_nothing_in_a_folder_is_dropped_silently(tmp_path):
    make(tmp_path, "a/1.jpg", "b/1.jpg", "a/Thumbs.db", "b/.DS_Store", ".git/x.jpg", "loose.jpg", "b/list.csv")
    (tmp_path / "a" / "link.jpg").symlink_to(tmp_path / "nowhere.jpg")
    (tmp_path / "b" / "circle").symlink_to(tmp_path, target_is_directory=True)
    noted = read_table(tmp_path)
    table = noted.table
    issues = {Path(issue["path"]).name: issue["reason"] for issue in noted.issues}
    assert len(table) == 2
    assert set(issues) == {"Thumbs.db", ".DS_Store", ".git", "loose.jpg", "list.csv", "link.jpg", "circle"}
    assert issues["link.jpg"] == "a link to nothing"
    assert "left out 4 files" in noted.notes[0] and "left out 1 link" in noted.notes[1]


def test_linked_class_folders_are_read(tmp_path):
    make(tmp_path, "store/a/1.jpg", "store/b/1.jpg", "store/b/2.jpg")
    (tmp_path / "set").mkdir()
    for label in "ab":
        (tmp_path / "set" / label).symlink_to(tmp_path / "store" / label, target_is_directory=True)
    assert load_table(tmp_path / "set")["label"].tolist() == ["a", "b", "b"]


@pytest.mark.parametrize(
    "names, said",
    [
        ([], "holds no photos"),
        (["notes.txt"], "holds no photos"),
        (["1.jpg", "2.jpg"], "no class folders"),
        (["train/1.jpg", "val/1.jpg"], "no class folders"),
        (["a/1.jpg"], "one class folder only ('a')"),
        (["images/1.jpg", "labels.csv"], "the table 'labels.csv' that lies in it"),
    ],
)
def test_bad_folders(tmp_path, names, said):
    make(tmp_path, *names)
    with pytest.raises(UserError) as error:
        load_table(tmp_path)
    assert said in one_sentence(error)


# Tables


@pytest.mark.parametrize("path", ["path", "File Path", "filepaths", "FILE", "filename", "Filenames", "image", "image_path", "Image ID"])
@pytest.mark.parametrize("label", ["label", "Labels", "class", "Category", "species", "binomial"])
def test_columns_are_recognised(tmp_path, path, label):
    make(tmp_path, "a.jpg", "b.jpg")
    frame = pd.DataFrame({label: ["x", "y"], path: ["a.jpg", "b.jpg"], "country": ["NA", "PE"]})
    table = load_table(frame, root=tmp_path)
    assert table["label"].tolist() == ["x", "y"] and table["country"].tolist() == ["NA", "PE"]
    assert [Path(path).name for path in table["path"]] == ["a.jpg", "b.jpg"]


@pytest.mark.parametrize("split", ["split", "Subset", "data set", "dataset", "fold"])
def test_split_columns_are_recognised(tmp_path, split):
    make(tmp_path, "a.jpg", "b.jpg", "c.jpg")
    frame = pd.DataFrame({"file": ["a", "b", "c"], "label": ["x", "y", "y"], split: ["train-hm", "VAL", "testing"]})
    assert load_table(frame, root=tmp_path)["split"].tolist() == ["train", "valid", "test"]
    number = load_table(frame.assign(**{split: [0, 1, 2]}), root=tmp_path)
    assert "train" not in number.get("split", pd.Series(dtype=str)).tolist() and len(number) == 3
    with pytest.raises(UserError, match="which is no name of a split; say what it is with splits"):
        load_table(frame.assign(**{split: [0, 1, 2]}), root=tmp_path, split_column=split)


def test_file_formats_agree(tmp_path):
    make(tmp_path, "a/0042.jpg", "b/0043.jpg")
    frame = pd.DataFrame({"image_id": ["a/0042", "b\\0043"], "class": ["Vipère", "Boa"], "country": ["NA", ""]})
    frame.to_csv(tmp_path / "comma.csv", index=False)
    frame.to_csv(tmp_path / "semicolon.csv", sep=";")
    frame.to_csv(tmp_path / "tab.tsv", sep="\t", index=False)
    frame.to_csv(tmp_path / "excel.csv", sep=";", index=False, encoding="utf-8-sig")
    frame.to_csv(tmp_path / "windows.csv", sep=";", index=False, encoding="cp1252")
    frame.to_csv(tmp_path / "packed.csv.gz", index=False)
    frame.to_parquet(tmp_path / "table.parquet")
    first = load_table(tmp_path / "comma.csv")
    assert first["label"].tolist() == ["Vipère", "Boa"] and first["country"].iloc[0] == "NA"
    for name in ("semicolon.csv", "tab.tsv", "excel.csv", "windows.csv", "packed.csv.gz", "table.parquet"):
        assert load_table(tmp_path / name)[["path", "label"]].equals(first[["path", "label"]]), name


def test_labels_that_are_numbers_become_text(tmp_path):
    make(tmp_path, "1.jpg", "2.jpg")
    table = load_table(pd.DataFrame({"id": [1.0, 2.0], "class_id": [7, 12]}), root=tmp_path)
    assert table["label"].tolist() == ["7", "12"] and table["class_id"].tolist() == [7, 12]


def test_a_tidy_table_loads_as_itself(tmp_path):
    make(tmp_path, "train/a/1.jpg", "train/b/1.jpg", "val/b/2.jpg", "val/b/notes.txt")
    table_noted = read_table(tmp_path)
    table = table_noted.table
    again_noted = read_table(table)
    again = again_noted.table
    assert again.equals(table) and len(table_noted.issues) == 1 and again_noted.issues == []  # told once, by whoever left it out


def test_the_given_dataframe_is_not_changed(tmp_path):
    make(tmp_path, "a.jpg", "b.jpg")
    frame = pd.DataFrame({"file": ["a.jpg", "b.jpg"], "label": ["x", "y"]}, index=[7, 7])
    before = frame.copy()
    load_table(frame, root=tmp_path)
    assert frame.equals(before) and frame.attrs == {}


def test_photos_in_a_folder_beside_the_table(tmp_path):
    make(tmp_path, "train/Image_1.jpg", "train/Image_2.jpg", "test/Image_1.jpg")
    pd.DataFrame({"filename": ["Image_1.jpg", "Image_2.jpg"], "label": ["x", "y"]}).to_csv(tmp_path / "Training_set.csv")
    noted = read_table(tmp_path / "Training_set.csv")
    table = noted.table
    assert all("/train/" in path for path in table["path"])
    assert "'train' beside the table" in noted.notes[0]


def test_paths_of_another_machine(tmp_path):
    make(tmp_path, "inaturalist/1.jpg", "inaturalist/2.jpg")
    frame = pd.DataFrame({"image_path": ["/Datasets/SnakeCLEF-2021/inaturalist/1.jpg", "/Datasets/SnakeCLEF-2021/inaturalist/2.jpg"], "binomial": ["x", "y"]})
    assert len(load_table(frame, root=tmp_path)) == 2
    assert len(load_table(frame.replace("/Datasets", r"C:\\Users", regex=True), root=tmp_path)) == 2


def test_what_is_left_out_is_said(tmp_path):
    make(tmp_path, "a.jpg", "b.jpg", "c.jpg", "d.txt")
    files = ["a.jpg", "b.jpg", "a.jpg", "c.jpg", "d.txt", "e.jpg", None]
    noted = read_table(pd.DataFrame({"file": files, "label": ["x", "y", "x", None, "x", "x", "x"]}), root=tmp_path)
    table = noted.table
    assert len(table) == 2
    assert sorted(issue["issue"] for issue in noted.issues) == ["missing", "no label", "no path", "not a photo", "repeated"]
    assert all(set(issue) == {"path", "issue", "reason"} for issue in noted.issues)
    assert len(table) + len(noted.issues) == len(files)
    assert len(noted.notes) == 5


def test_missing_photos_are_counted_and_three_are_shown(tmp_path):
    make(tmp_path, "0.jpg", "1.jpg")
    frame = pd.DataFrame({"file": [f"{i}.jpg" for i in range(9)], "label": ["x", "y", "z"] * 3})
    (warning,) = read_table(frame, root=tmp_path).notes
    assert "7 of 9 photos" in warning and warning.count(".jpg") == 3 and "4 more" in warning
    with pytest.raises(UserError) as error:
        load_table(frame.tail(5), root=tmp_path)
    assert "none of the 5 photos" in one_sentence(error)
    assert len(load_table(frame.tail(5), root=tmp_path, check_files=False)) == 5


BAD_TABLES = [
    (b"", "cannot be read as a table"),
    (b"file,label\n", "one row for each photo"),
    (b'file,label\na.jpg,"x\n', "cannot be read as a table"),
    (b"file,label\na.jpg,x\na,b,c,d\n", "cannot be read as a table"),
    (b"\x89PNG\0\0\0\n", "binary file"),
    (b"text,label\nhello,x\n", "no column that looks like paths"),
    (b"file,weight\na.jpg,12\n", "no column that looks like labels"),
    (b"file,label\na.jpg,x\nb.jpg,x\n", "one class only ('x', 2 photos)"),
    (b"file,label\na.jpg,\nb.jpg,\n", "no row with both a path and a label"),
    (b"file,label\na.jpg,x\na.jpg,y\nb.jpg,x\n", "more than one label to 1 photo"),
    (b"file,label,split\na.jpg,x,train\na.jpg,x,test\n", "more than one split to 1 photo"),
    (b"file,label,split\na.jpg,x,train\nb.jpg,y,extra\n", "'extra', which is no name of a split"),
    (b"file,label,split\na.jpg,x,train\nb.jpg,y,\n", "is empty in 1 row"),
    (b"file,label\nnone.jpg,x\nnil.jpg,y\n", "none of the 2 photos"),
]


@pytest.mark.parametrize("content, said", BAD_TABLES, ids=[said for _, said in BAD_TABLES])
def test_bad_tables(tmp_path, content, said):
    make(tmp_path, "a.jpg", "b.jpg")
    (tmp_path / "photos.csv").write_bytes(content)
    with pytest.raises(UserError) as error:
        load_table(tmp_path / "photos.csv")
    assert said in one_sentence(error)


def test_bad_arguments(tmp_path):
    make(tmp_path, "a.jpg", "b.jpg")
    frame = pd.DataFrame({"file": ["a.jpg", "b.jpg"], "label": ["x", "y"]})
    for options, said in [
        ({"path_column": "fil"}, "path_column 'fil' does not exist; did you mean 'file'?"),
        ({"label_column": "zebra"}, "choose one of: file, label"),
        ({"target": "lable"}, "did you mean 'label'?"),
        ({"target": "genus"}, "cannot be found in names such as 'x', 'y'"),
    ]:
        with pytest.raises(UserError) as error:
            load_table(frame, root=tmp_path, **options)
        assert said in one_sentence(error)
    with pytest.raises(UserError, match="is not a folder; give"):
        load_table(frame, root=tmp_path / "none")
    with pytest.raises(UserError, match="does not exist; give"):
        load_table(tmp_path / "none.csv")
    with pytest.raises(UserError, match="empty; it needs"):
        load_table(frame.head(0), root=tmp_path)


# Targets and classes


def test_latin_names_in_folder_names(tmp_path):
    make(tmp_path, "train/Samar Cobra (Naja samarensis)/1.jpg", "train/Equatorial Cobra (Naja sumatrana)/1.jpg", "val/Reed Snake (Calamaria lumbricoidea)/1.jpg")
    plain = load_table(tmp_path)
    assert "genus" not in plain and plain["label"].str.contains("Naja").sum() == 2
    table = load_table(tmp_path, target="genus")
    assert sorted(table["label"]) == ["Calamaria", "Naja", "Naja"]
    row = table[table["species"] == "samarensis"].iloc[0]
    assert (row["common_name"], row["binomial"], row["original_label"]) == ("Samar Cobra", "Naja samarensis", "Samar Cobra (Naja samarensis)")
    assert add_taxonomy(plain)["binomial"].tolist() == table["binomial"].tolist()
    assert set_target(plain, "binomial").table["label"].tolist() == table["binomial"].tolist()


def test_top_classes_do_not_depend_on_the_order_of_rows():
    table = pd.DataFrame({"path": [f"{i}.jpg" for i in range(60)], "label": np.repeat(list("fedcba"), 10)})
    for seed in range(5):
        noted = keep_classes(table.sample(frac=1, random_state=seed), top_classes=3)
        kept = noted.table
        assert set(kept["label"]) == {"a", "b", "c"}
    assert "3 of 6 classes with 30 of 60 photos" in noted.notes[-1]


def test_summary_and_check():
    table = pd.DataFrame({"path": list("abcd"), "label": list("xxyz"), "split": ["train", "test", "train", "valid"]})
    counts = summary(table)
    assert counts.columns.tolist() == ["train", "valid", "test", "total"]
    assert counts.index.tolist() == ["x", "y", "z"] and counts["total"].sum() == 4
    assert check_table(table) is table


# Real photographs


@pytest.mark.real
def test_real_snakes():
    noted = read_table(real("snakes_ph"), target="binomial", splits={"val": "test"})
    table = noted.table
    assert table["split"].value_counts().to_dict() == {"train": 980, "test": 208}
    assert table["label"].nunique() == 14 and table["genus"].nunique() == 11
    assert table[["common_name", "binomial", "genus", "species"]].notna().all(axis=None)
    assert noted.issues == []


@pytest.mark.real
def test_real_butterflies_by_folder_and_by_table():
    folder = real("butterflies")
    by_folder = load_table(folder)
    noted = read_table(folder / "butterflies and moths.csv")
    by_table = noted.table
    key = ["path", "label", "split"]
    assert by_folder[key].sort_values("path", ignore_index=True).equals(by_table[key].sort_values("path", ignore_index=True))
    assert len(by_table) == 1306 and [issue["issue"] for issue in noted.issues] == ["missing"] * 50
    assert by_table["class id"].nunique() == 10


@pytest.mark.real
@pytest.mark.parametrize("name, n, classes", [("butterflies_noisy", 505, 6), ("checkboxes", 411, 3), ("scenes_multilabel/miml_labels_2.csv", 2000, None)])
def test_real_others(name, n, classes):
    table = load_table(real(name))
    assert len(table) == n and classes in (None, table["label"].nunique())


@pytest.mark.real
def test_real_metadata():
    table = load_table(real("metadata") / "snakeclef2023_train_hm.csv", target="genus", check_files=False)
    assert len(table) == 13843 and set(table["split"]) == {"train"} and (table["code"] == "NA").sum() == 59
    table = load_table(real("metadata") / "snakeclef2021_train_sample.csv", target="country", check_files=False)
    assert len(table) == 5000 and table["binomial"].notna().all()
