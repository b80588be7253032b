"Every named data set loads as it lies on disk; every bad source gives one clear sentence."
import json
import os
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from snakecls.core import UserError
from snakecls.data.labels import label_names
from snakecls.data.taxonomy import snakeclef_facts
from snakecls.data.manifest import read_manifest, verify_manifest, write_manifest
from snakecls.data.splits import kfold_table, split_table
from snakecls.data.tables import filter_classes, load_table, load_unlabelled, read_table, summary
from test_tables import make, real

def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


# Snakes


@pytest.fixture
def snakeclef_2021(tmp_path) -> Path:
    "The layout of 2021: paths of another machine, a first column of row numbers, one row for each photo."
    rows = []
    species = [("Naja naja", "Elapidae", "India"), ("Boa constrictor", "Boidae", "Peru"), ("Naja haje", "Elapidae", "Egypt")]
    for i in range(30):
        binomial, family, country = species[i % 3]
        rows.append([i, binomial, country, "Asia", binomial.split()[0], family, f"uuid{i:02}", "inaturalist", "train", 100 + i % 3, f"/Datasets/SnakeCLEF-2021/inaturalist/uuid{i:02}.jpg"])
    columns = ["", "binomial", "country", "continent", "genus", "family", "UUID", "source", "subset", "class_id", "image_path"]
    pd.DataFrame(rows, columns=columns).to_csv(tmp_path / "train_metadata.csv", index=False)
    make(tmp_path, *(f"inaturalist/uuid{i:02}.jpg" for i in range(30)))
    return tmp_path / "train_metadata.csv"


@pytest.fixture
def snakeclef_2023(tmp_path) -> Path:
    "The layout of 2023: several photos of one observation, country codes, NA for Namibia, other class ids."
    names = ["Naja naja", "Boa constrictor", "Naja haje", "Natrix natrix"]
    rows = [[f"HM {i // 3}", names[i // 3 % 4], f"HMP/{names[i // 3 % 4].replace(' ', '_')}/{i}.jpg", "train-hm", ["IN", "NA"][i % 2], False, 7 - i // 3 % 4] for i in range(120)]
    pd.DataFrame(rows, columns=["observation_id", "binomial_name", "image_path", "subset", "code", "endemic", "class_id"]).to_csv(tmp_path / "hm.csv", index=False)
    make(tmp_path, *(row[2] for row in rows))
    write(tmp_path / "venomous_status.csv", "class_id,MIVS\n7,1\n6,0\n5,1\n")
    write(tmp_path / "species_to_country.csv", '"","india","peru","namibia"\nNaja naja,1,0,0\nBoa constrictor,0,1,0\nNaja haje,0,0,1\n')
    return tmp_path / "hm.csv"


@pytest.mark.parametrize("target, n", [("genus", 2), ("binomial", 3), ("species", 3), ("family", 2), ("country", 3), ("class_id", 3), (None, 3)])
def test_snakeclef_2021(snakeclef_2021, target, n):
    noted = read_table(snakeclef_2021, target=target)
    table = noted.table
    assert len(table) == 30 and set(table["split"]) == {"train"} and table["label"].nunique() == n
    assert table["path"].map(os.path.exists).all()
    assert "without the first folders" in noted.notes[0]


@pytest.mark.parametrize("target, n", [("genus", 3), ("binomial", 4), ("species", 4), ("code", 2), ("class_id", 4)])
def test_snakeclef_2023(snakeclef_2023, target, n):
    table = load_table(snakeclef_2023, target=target)
    assert len(table) == 120 and table["label"].nunique() == n and table["code"].eq("NA").sum() == 60


def test_photos_of_one_observation_stay_together(snakeclef_2023):
    table = split_table(load_table(snakeclef_2023), group="observation_id", test=0.1)
    assert table.groupby("observation_id")["split"].nunique().max() == 1
    assert set(table["split"]) == {"train", "valid", "test"}


def test_facts_are_joined_by_latin_name(snakeclef_2023, snakeclef_2021):
    folder = snakeclef_2023.parent
    facts = snakeclef_facts(snakeclef_2023, venom=folder / "venomous_status.csv", countries=folder / "species_to_country.csv").table.set_index("binomial")
    assert facts["medically_important"].dropna().to_dict() == {"Boa constrictor": False, "Naja haje": True, "Naja naja": True}
    assert facts["venomous"].dropna().to_dict() == {"Naja haje": True, "Naja naja": True}  # a 0 of the list stands beside pit vipers too
    assert facts.index[facts["medically_important"].isna()].tolist() == ["Natrix natrix"]
    assert facts.loc["Naja haje", "countries"] == "Namibia" and pd.isna(facts.loc["Natrix natrix", "countries"])
    labels = load_table(snakeclef_2021)["label"].unique()  # of the other year, with other class ids
    assert set(labels) <= set(facts.index)


def test_facts_are_what_an_experiment_reads(snakeclef_2023, tmp_path):
    from snakecls.experiment.facts import read_facts

    folder = snakeclef_2023.parent
    facts = snakeclef_facts(snakeclef_2023, venom=folder / "venomous_status.csv", countries=folder / "species_to_country.csv").table
    facts.to_csv(tmp_path / "facts.csv", index=False)
    known, _ = read_facts(tmp_path / "facts.csv", ["Naja haje", "Natrix natrix"], target="binomial")
    assert known == {"Naja haje": {"venomous": True, "medically_important": True, "countries": ["Namibia"]}, "Natrix natrix": {"venomous": None, "medically_important": None, "countries": None}}


@pytest.mark.parametrize("n", [10, 50, 772])
def test_top_classes(n):
    table = pd.DataFrame({"label": [f"species {i}" for i in range(772) for _ in range(1 + i % 7)]})
    table["path"] = [f"{i}.jpg" for i in range(len(table))]
    assert filter_classes(table, top_classes=n)["label"].nunique() == n


# Butterflies


@pytest.fixture
def kaggle(tmp_path) -> Path:
    make(tmp_path, *(f"{split}/Image_{i}.jpg" for split in ("train", "test") for i in range(1, 7)))
    write(tmp_path / "Training_set.csv", "filename,label\n" + "".join(f"Image_{i}.jpg,{['ADONIS', 'MONARCH'][i % 2]}\n" for i in range(1, 7)))
    write(tmp_path / "Testing_set.csv", "filename\n" + "".join(f"Image_{i}.jpg\n" for i in range(1, 7)))
    return tmp_path


def test_kaggle_butterflies(kaggle):
    noted = read_table(kaggle / "Training_set.csv")
    table = noted.table
    assert len(table) == 6 and {Path(path).parent.name for path in table["path"]} == {"train"}
    assert any("'Testing_set.csv' beside it lists 6 photos without labels" in warning for warning in noted.notes)
    waiting = load_unlabelled(kaggle / "Testing_set.csv")
    assert len(waiting) == 6 and {Path(path).parent.name for path in waiting["path"]} == {"test"}
    assert not set(waiting["path"]) & set(table["path"])


def test_butterflies_and_moths(tmp_path):
    make(tmp_path, "train/ADONIS/1.jpg", "train/MONARCH/1.jpg", "valid/ADONIS/1.jpg")
    lines = ["0,train/ADONIS/1.jpg,ADONIS,train", "1,train/MONARCH/1.jpg,MONARCH,train", "0,valid/ADONIS/1.jpg,ADONIS,valid"]
    lines += [f"{i},test/SPECIES {i}/1.jpg,SPECIES {i},test" for i in range(2, 40)]
    write(tmp_path / "butterflies and moths.csv", "class id,filepaths,labels,data set\n" + "\n".join(lines))
    noted = read_table(tmp_path / "butterflies and moths.csv")
    table = noted.table
    assert table["split"].tolist() == ["train", "train", "valid"]
    assert [issue["issue"] for issue in noted.issues] == ["missing"] * 38
    (warning,) = noted.notes
    assert "left out 38 of 41 photos" in warning and "35 more" in warning


# iNaturalist 12K


def inaturalist() -> list[str]:
    return [f"inaturalist_12K/{split}/{label}/{i}.jpg" for split, n in (("train", 10), ("val", 2)) for label in ("Aves", "Fungi") for i in range(n)]


@pytest.fixture
def inaturalist_zip(tmp_path) -> Path:
    with zipfile.ZipFile(tmp_path / "nature_12K.zip", "w") as archive:
        for name in ["inaturalist_12K/.DS_Store", "__MACOSX/inaturalist_12K/train/Aves/._0.jpg", *inaturalist()]:
            archive.writestr(name, b"")
    return tmp_path / "nature_12K.zip"


@pytest.mark.parametrize("packed", [False, True])
def test_inaturalist(tmp_path, inaturalist_zip, packed):
    source = inaturalist_zip if packed else make(tmp_path / "nature_12K", *inaturalist())
    noted = read_table(source, splits={"val": "test"})
    table = noted.table
    counts = pd.crosstab(table["label"], table["split"])
    assert counts.to_dict() == {"test": {"Aves": 2, "Fungi": 2}, "train": {"Aves": 10, "Fungi": 10}}
    divided = pd.crosstab(table["label"], split_table(table, valid=0.2)["split"])
    assert divided.to_dict() == {"test": {"Aves": 2, "Fungi": 2}, "train": {"Aves": 8, "Fungi": 8}, "valid": {"Aves": 2, "Fungi": 2}}
    assert any("nature_12K.unpacked" in warning for warning in noted.notes) == packed


def test_a_zip_is_unpacked_once(inaturalist_zip):
    first = load_table(inaturalist_zip)
    stamp = os.stat(first["path"][0]).st_ino
    noted = read_table(inaturalist_zip)
    again = noted.table
    assert os.stat(again["path"][0]).st_ino == stamp and "was unpacked before" in noted.notes[0]
    with zipfile.ZipFile(inaturalist_zip, "a") as archive:
        archive.writestr("inaturalist_12K/train/Aves/new.jpg", b"")
    assert len(load_table(inaturalist_zip)) == len(first) + 1


def test_a_zip_that_cannot_be_unpacked_beside_itself_goes_to_the_cache(inaturalist_zip, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert "/cache/snakecls/unpacked/nature_12K-" in load_table(inaturalist_zip)["path"][0]


def test_checkboxes(tmp_path):
    make(tmp_path, *(f"data/{split}/{label}/{i}.png" for split in ("train", "val") for label in ("checked", "unchecked", "other") for i in range(3)))
    for source in (tmp_path, tmp_path / "data"):
        table = load_table(source)
        assert sorted(table["label"].unique()) == ["checked", "other", "unchecked"]
        assert table["split"].value_counts().to_dict() == {"train": 9, "valid": 9}


# Several labels on a photo


CAPTIONS = '''ImageID,Labels,Caption
0.jpg,1,Woman in swim suit holding parasol on sunny day.
1.jpg,1 19,"A poster, with ""photographs"" of a sheep"
2.jpg,"3 1","A man in a "hot dog" costume, smiling."
3.jpg,2 10,A dog, a cat, and a 12" pizza
4.jpg,3,"A line that is never closed
5.jpg,3,The last, "quoted" one
'''


def test_captions_with_commas_and_quotes(tmp_path):
    make(tmp_path, *(f"data/{i}.jpg" for i in range(6)))
    noted = read_table(write(tmp_path / "train.csv", CAPTIONS), multi_label=True)
    table = noted.table
    assert table["labels"].tolist() == [["1"], ["1", "19"], ["1", "3"], ["2", "10"], ["3"], ["3"]]
    assert table["Caption"][2] == 'A man in a "hot dog" costume, smiling.' and table["Caption"][3] == 'A dog, a cat, and a 12" pizza'
    assert "4 lines of 'train.csv' had stray quotes or separators" in noted.notes[0]
    assert label_names(table) == ["1", "2", "3", "10", "19"]


@settings(max_examples=60, deadline=None)
@given(captions=st.lists(st.text(alphabet='ab ",\'', min_size=1, max_size=30), min_size=1, max_size=20))
def test_whatever_stands_in_a_caption_no_photo_is_lost(captions, tmp_path_factory):
    path = tmp_path_factory.mktemp("captions") / "train.csv"
    path.write_text("ImageID,Labels,Caption\n" + "".join(f"{i}.jpg,{i % 3} 7,{caption}\n" for i, caption in enumerate([*captions, "x"])) + "z.jpg,5,y\n")
    table = load_table(path, multi_label=True, check_files=False)
    assert [Path(name).name for name in table["path"]] == [*(f"{i}.jpg" for i in range(len(captions) + 1)), "z.jpg"]
    assert table["labels"].tolist() == [*([*([str(i % 3)]), "7"] for i in range(len(captions) + 1)), ["5"]]


TRUTH = [["desert"], ["desert", "mountains"], ["sea"], ["mountains", "sea", "sunset"]]
FORMS = {
    "comma": pd.DataFrame({"Filenames": range(4), "labels": [",".join(row) for row in TRUTH]}),
    "comma and space": pd.DataFrame({"Filenames": range(4), "labels": [", ".join(row) for row in TRUTH]}),
    "pipe": pd.DataFrame({"file": range(4), "tags": ["|".join(row) for row in TRUTH]}),
    "semicolon": pd.DataFrame({"file": range(4), "class": [";".join(reversed(row)) for row in TRUTH]}),
    "python": pd.DataFrame({"image": range(4), "labels": [repr(row) for row in TRUTH]}),
    "json": pd.DataFrame({"image": range(4), "labels": [json.dumps(row) for row in TRUTH]}),
    "flags": pd.DataFrame({"Filenames": range(4), **{name: [int(name in row) for row in TRUTH] for name in ("sunset", "sea", "mountains", "desert")}}),
    "booleans": pd.DataFrame({"Filenames": range(4), **{name: [name in row for row in TRUTH] for name in ("sunset", "sea", "mountains", "desert")}}),
    "one row for each label": pd.DataFrame([(i, label) for i, row in enumerate(TRUTH) for label in row], columns=["file", "label"]),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", ["csv", "parquet", "frame"])
def test_every_way_to_write_labels_gives_the_same_table(tmp_path, form, kind):
    make(tmp_path, *(f"{i}.jpg" for i in range(4)))
    frame, source = FORMS[form], tmp_path / f"photos.{kind}"
    if kind == "csv":
        frame.to_csv(source, index=False)
    elif kind == "parquet":
        frame.to_parquet(source)
    table = load_table(frame if kind == "frame" else source, root=tmp_path, multi_label=True)
    assert [Path(path).name for path in table["path"]] == [f"{i}.jpg" for i in range(4)]
    assert table["labels"].tolist() == TRUTH


def test_lists_in_parquet_and_a_tidy_table_again(tmp_path):
    make(tmp_path, *(f"{i}.jpg" for i in range(4)))
    pd.DataFrame({"file": [f"{i}.jpg" for i in range(4)], "labels": TRUTH}).to_parquet(tmp_path / "photos.parquet")
    table = load_table(tmp_path / "photos.parquet", multi_label=True)
    assert table["labels"].tolist() == TRUTH
    assert load_table(table, multi_label=True).equals(table)


def test_one_label_for_each_photo_unless_it_is_asked_for(tmp_path):
    make(tmp_path, *(f"{i}.jpg" for i in range(4)))
    table = load_table(FORMS["comma"], root=tmp_path)
    assert table["label"].tolist() == [",".join(row) for row in TRUTH] and "labels" not in table


def test_photos_without_labels_are_a_question(tmp_path):
    make(tmp_path, *(f"{i}.jpg" for i in range(4)))
    frame = pd.DataFrame({"file": range(4), "labels": ["a b", None, "b", ""]})
    options = {"root": tmp_path, "multi_label": True, "separator": " "}
    with pytest.raises(UserError, match="2 of 4 photos in the table have no label .*'negative' if they show none of the classes, 'drop' if nobody looked"):
        load_table(frame, **options)
    dropped, kept = read_table(frame, **options, unlabelled="drop"), read_table(frame, **options, unlabelled="negative")
    assert dropped.table["labels"].tolist() == [["a", "b"], ["b"]] and kept.table["labels"].tolist() == [["a", "b"], [], ["b"], []]
    assert [issue["issue"] for issue in dropped.issues] == ["no label"] * 2
    assert "2 of 4 photos" in dropped.notes[-1] and "2 of 4 photos" in kept.notes[-1]


# Splits of photos with several labels


def scenes(n: int, seed: int = 0) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    shares = {"sea": 0.4, "sun": 0.25, "boat": 0.05, "whale": 0.01}
    labels = [[label for label, share in shares.items() if rng.random() < share] for _ in range(n)]
    return pd.DataFrame({"path": [f"/data/{i}.jpg" for i in range(n)], "labels": labels, "animal": rng.integers(0, n // 4, n)})


def shares_of(table: pd.DataFrame) -> pd.DataFrame:
    rows = table.explode("labels").fillna({"labels": "(none)"})
    return pd.crosstab(rows["labels"], rows["split"], normalize="index")


def test_every_label_has_its_share():
    table = split_table(scenes(2000), valid=0.2, test=0.1)
    assert (shares_of(table)[["train", "valid", "test"]] - [0.7, 0.2, 0.1]).abs().max(axis=None) < 0.03
    assert table["split"].value_counts(normalize=True)["valid"] == pytest.approx(0.2, abs=0.005)


@settings(max_examples=25, deadline=None)
@given(n=st.integers(8, 120), data=st.integers(0, 100), seed=st.integers(0, 100), order=st.integers(0, 100), grouped=st.booleans())
def test_splits_of_several_labels_keep_every_row_and_every_group(n, data, seed, order, grouped):
    table = scenes(n, data).assign(labels=lambda rows: [[*labels, "all"] if i % 2 else labels for i, labels in enumerate(rows["labels"])])
    group = "animal" if grouped else None
    result = split_table(table, valid=0.2, test=0.1, seed=seed, group=group)
    assert result.drop(columns="split").equals(table) and set(result["split"]) <= {"train", "valid", "test"}
    moved = table.sample(frac=1, random_state=order).assign(path=lambda rows: rows["path"].str.replace("/data", "/elsewhere"))
    assert split_table(moved, valid=0.2, test=0.1, seed=seed, group=group).sort_index()["split"].tolist() == result["split"].tolist()
    if grouped:
        assert result.groupby("animal")["split"].nunique().max() == 1
    rows = result.explode("labels").dropna(subset="labels")
    if not grouped:
        for label, n_photos in rows["labels"].value_counts().items():
            assert n_photos < 3 or "train" in set(rows.loc[rows["labels"] == label, "split"]), label


def test_given_splits_of_several_labels_stay():
    table = split_table(scenes(300), test=0.2)
    again = split_table(table.replace({"split": {"valid": "train"}}))
    assert (again["split"] == "test").equals(table["split"] == "test") and (again["split"] == "valid").any()
    only_test = split_table(table.replace({"split": {"test": "train"}}), test=0.2)
    assert (only_test["split"] == "valid").equals(table["split"] == "valid") and (only_test["split"] == "test").any()


def test_folds_of_several_labels():
    table = kfold_table(scenes(600), folds=4, group="animal")
    assert table.groupby("animal")["fold"].nunique().max() == 1
    rows = table.explode("labels", ignore_index=True)
    counts = pd.crosstab(rows["labels"], rows["fold"])
    assert (counts.loc["sea"].max() - counts.loc["sea"].min()) <= 6
    with pytest.raises(UserError, match="take fewer folds"):
        kfold_table(scenes(30), folds=10)


def test_top_labels_summary_and_manifest(tmp_path):
    table = split_table(filter_classes(scenes(300), top_classes=2, unlabelled="drop"))
    assert label_names(table) == ["sea", "sun"]
    counts = summary(table)
    assert counts.index.tolist() == ["sea", "sun"] and counts["total"].sum() == table["labels"].map(len).sum()
    write_manifest(table, tmp_path / "manifest.parquet")
    assert [list(row) for row in read_manifest(tmp_path / "manifest.parquet")["labels"]] == table["labels"].tolist()
    states = verify_manifest(tmp_path / "manifest.parquet", table=table.assign(labels=[["sea"]] * len(table)))["state"]
    assert "relabelled" in set(states) and "new" not in set(states)


# Loaders


def test_several_labels_and_several_targets_in_loaders(tmp_path):
    import torch
    from PIL import Image

    from snakecls.data.datablocks import photo_dls

    rows = []
    for i in range(12):
        Image.new("RGB", (20, 20), (20 * i, 100, 100)).save(tmp_path / f"{i}.png")
        rows.append((str(tmp_path / f"{i}.png"), [["b"], ["a", "b"], []][i % 3], ["Naja", "Boa"][i % 2], ["IN", "NA", "PE"][i % 3], "valid" if i < 4 else "train"))
    table = pd.DataFrame(rows, columns=["path", "labels", "genus", "country", "split"])
    dls = photo_dls(table, 16, target="labels", labels=["b", "a"], bs=4, num_workers=0)
    assert dls.labels == ["b", "a"] == list(dls.vocab) and dls.problem.word == "multi_label"
    for loaders in (dls, dls.rebuild(size=24)):
        assert loaders.valid.one_batch()[1].tolist() == [[1, 0], [1, 1], [0, 0], [1, 0]]
        assert loaders.valid.one_batch()[1].dtype == torch.float32
    dls = photo_dls(table, 16, target=["genus", "country"], bs=4, num_workers=0).rebuild(size=24)
    x, genus, country = dls.valid.one_batch()
    assert x.shape[-1] == 24 and dls.problem.columns == ["genus", "country"]
    assert [dls.labels["genus"][i] for i in genus] == ["Naja", "Boa", "Naja", "Boa"] and [dls.labels["country"][i] for i in country] == ["IN", "NA", "PE", "IN"]


# Bad sources: one sentence each, with what was given and a remedy behind a semicolon


BAD = {
    "no label anywhere": ({"file": ["a", "b"], "weight": [3, 4]}, {}, "neither a column that looks like labels nor 0/1 columns"),
    "a wrong name": ({"file": ["a", "b"], "tags": ["x", "y"]}, {"label_column": "tag_"}, "did you mean 'tags'"),
    "a wrong name among several": ({"file": ["a", "b"], "x": [0, 1], "y": [1, 1]}, {"label_column": ["x", "z"]}, "label_column 'z' does not exist"),
    "one label or several": ({"file": ["a", "b"], "labels": ["hot dog", "cat"]}, {}, "may be one label or several"),
    "nothing between labels": ({"file": ["a", "b"], "labels": ["x", "y"]}, {"separator": ""}, "separator is empty"),
    "not 0 or 1": ({"file": ["a", "b"], "x": [0, 2], "y": [1, 1]}, {"label_column": ["x", "y"]}, "where 0 and 1 are expected"),
    "neither 0 nor 1": ({"file": ["a", "b"], "x": [0, None], "y": [1, 1]}, {"label_column": ["x", "y"]}, "is empty in 1 row"),
    "a list without commas": ({"file": ["a", "b"], "labels": ["['x' 'y']", "['x']"]}, {}, "as NumPy prints it"),
    "a list that is none": ({"file": ["a", "b"], "labels": ["[x, y]", "[y]"]}, {}, "no list of Python or JSON"),
    "a list of lists": ({"file": ["a", "b"], "labels": [[["x"]], ["y"]]}, {}, "a list within a list"),
    "code": ({"file": ["a", "b"], "labels": ["[open('x')]", "['y']"]}, {}, "no list of Python or JSON"),
    "no labels": ({"file": ["a", "b"], "labels": ["x", None]}, {}, "1 of 2 photos in the table have no label"),
    "no labels at all": ({"file": ["a", "b"], "labels": [None, None]}, {"unlabelled": "drop"}, "none of the 2 photos in the table has a label"),
    "the same everywhere": ({"file": ["a", "b"], "labels": ["x,y", "y,x"]}, {}, "there is nothing to tell apart"),
    "an unknown answer": ({"file": ["a", "b"], "labels": ["x", "y"]}, {"unlabelled": "negativ"}, "did you mean 'negative'"),
    "two splits": ({"file": ["a", "a"], "labels": ["x", "y"], "split": ["train", "test"]}, {}, "more than one split to 1 photo"),
    "one label as well": ({"file": ["a", "b"], "labels": ["x", "y"], "genus": ["N", "B"]}, {"target": "genus"}, "multi_label is set"),
    "one label only": ({"file": ["a", "b"], "labels": ["x,z", "y"]}, {"multi_label": False, "separator": ","}, "set multi_label"),
    "many columns for one label": ({"file": ["a", "b"], "labels": ["x", "y"]}, {"multi_label": False, "label_column": ["x", "y"]}, "a photo has one label"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_tables_of_several_labels(tmp_path, case):
    make(tmp_path, "a.jpg", "b.jpg")
    frame, options, said = BAD[case]
    with pytest.raises(UserError) as error:
        load_table(pd.DataFrame(frame), **{"root": tmp_path, "multi_label": True, **options})
    text = str(error.value)
    assert said in text and "\n" not in text and ";" in text, text


def bad_zip(path: Path, name: str) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(name, b"x")
    return path


def test_bad_archives_and_others(tmp_path, snakeclef_2023):
    cut = bad_zip(tmp_path / "cut.zip", "a/1.jpg")
    cut.write_bytes(cut.read_bytes()[:50])
    bad_zip(tmp_path / "flat.zip", "1.jpg")
    write(tmp_path / "short.csv", 'ImageID,Labels,Caption\n0.jpg,1,"A "big" dog\n1.jpg\n')
    for source, options, said in [
        (bad_zip(tmp_path / "up.zip", "../../1.jpg"), {}, "leads out of the folder"),
        (cut, {}, "cannot be unpacked"),
        (tmp_path / "none.zip", {}, "does not exist"),
        (tmp_path / "flat.zip", {}, "holds photos but no class folders"),
        (bad_zip(tmp_path / "folder.zip", "a/1.jpg"), {"multi_label": True}, "multi_label belongs to a table"),
        (tmp_path / "short.csv", {"multi_label": True}, "line 3 has fewer than the 3 columns"),
        (snakeclef_2023, {"target": "family"}, "target 'family' does not exist"),
    ]:
        with pytest.raises(UserError) as error:
            load_table(source, **options)
        assert said in str(error.value) and "\n" not in str(error.value), str(error.value)
    assert not (tmp_path.parent / "1.jpg").exists() and not (tmp_path.parent.parent / "1.jpg").exists()
    with pytest.raises(UserError, match="no column that looks like paths"):
        load_unlabelled(pd.DataFrame({"weight": [1]}))
    with pytest.raises(UserError, match="none of the 4 species is in the venom list"):
        snakeclef_facts(snakeclef_2023, venom=pd.DataFrame({"class_id": [999], "MIVS": [1]}))


# Real photographs and tables


@pytest.mark.real
def test_real_scenes_in_both_encodings():
    folder = real("scenes_multilabel")
    flags, words = (load_table(folder / f"miml_labels_{i}.csv", multi_label=True) for i in (1, 2))
    assert len(flags) == 2000 and flags["labels"].tolist() == words["labels"].tolist()
    assert label_names(flags) == ["desert", "mountains", "sea", "sunset", "trees"]
    assert (shares_of(split_table(flags, valid=0.2, test=0.1))[["train", "valid", "test"]] - [0.7, 0.2, 0.1]).abs().max(axis=None) < 0.01


@pytest.mark.real
def test_real_facts():
    folder = real("metadata")
    countries = folder / "snakeclef2021_species_to_country.csv"
    facts = snakeclef_facts(folder / "snakeclef2023_train_hm.csv", venom=folder / "snakeclef2023_venomous_status.csv", countries=countries).table.set_index("binomial")
    assert len(facts) == 889 and facts["medically_important"].notna().all() and not facts["venomous"].eq(False).any() and facts["countries"].notna().sum() == 875
    assert facts.loc["Naja naja" if "Naja naja" in facts.index else "Naja atra", "venomous"]
    assert facts.loc["Naja philippinensis", "countries"] == "Philippines"
    with pytest.raises(UserError, match="probably those of another year"):
        snakeclef_facts(folder / "snakeclef2021_train_sample.csv", venom=folder / "snakeclef2023_venomous_status.csv")


@pytest.mark.real
@pytest.mark.parametrize("target, n", [("genus", None), ("binomial", 504), ("species", None), ("family", None), ("country", None), ("class_id", 504)])
def test_real_snakeclef_2021(target, n):
    table = load_table(real("metadata") / "snakeclef2021_train_sample.csv", target=target, check_files=False)
    assert len(table) == 5000 and (n is None or table["label"].nunique() == n)
    assert filter_classes(table, top_classes=5)["label"].nunique() == 5


@pytest.mark.real
def test_real_snakeclef_2023_observations_stay_together():
    table = load_table(real("metadata") / "snakeclef2023_train_hm.csv", check_files=False)
    divided = split_table(filter_classes(table, top_classes=50), group="observation_id")
    assert divided.groupby("observation_id")["split"].nunique().max() == 1 and divided["label"].nunique() == 50


@pytest.mark.real
def test_real_folders():
    for name, classes in (("snakes_ph", 14), ("butterflies", 10), ("checkboxes", 3), ("butterflies_noisy", 6)):
        assert load_table(real(name))["label"].nunique() == classes
    assert len(load_unlabelled(real("checkboxes"))) == 411
