"A user's own column may be called what the tidy table calls its own."
import json

import pandas as pd
import pytest

from conftest import draw_snake
from snakecls.core import UserError
from snakecls.data.columns import set_aside
from snakecls.data.tables import load_table
from test_faults_folders import command


@pytest.fixture
def table(tmp_path):
    rows = []
    for i in range(12):
        draw_snake(i).resize((64, 64)).save(tmp_path / f"{i}.png")
        rows.append({"path": f"{i}.png", "binomial": ["Naja naja", "Boa constrictor"][i % 2], "labels": "b;a" if i % 3 else "c", "original_label": i})
    pd.DataFrame(rows).to_csv(tmp_path / "photos.csv", index=False)
    return tmp_path / "photos.csv"


def test_a_column_named_labels_does_not_make_a_photo_have_several(table):
    loaded = load_table(table, target="binomial")
    assert set(loaded["label"]) == {"Naja naja", "Boa constrictor"}
    assert "labels" not in loaded and set(loaded["original_labels"]) == {"b;a", "c"}
    assert not any("look alike" in said for said in loaded.attrs["warnings"])
    assert set(load_table(table, target="labels")["label"]) == {"b;a", "c"}
    assert load_table(table, label_column="labels", multi_label=True)["labels"].map(tuple).isin([("a", "b"), ("c",)]).all()


@pytest.mark.parametrize("options", [[], ["--folds", "2"]], ids=["one", "folds"])
def test_it_trains_too(table, tmp_path, options):
    sets = ["data.target=binomial", "model.arch=test_resnet", "model.weights=none", "schedule=[{size: 32, epochs: 1, bs: 4}]", "train.num_workers=0"]
    code, _, err = command("train", "--data", str(table), *options, *[part for one in sets for part in ("--set", one)], cwd=tmp_path)
    assert code == 0, err


def test_columns_named_like_those_of_a_check_are_kept_beside_them(table, tmp_path):
    own = pd.read_csv(table).assign(width="wide", height="high", bytes="none", unreadable="no", format="paper", original_width="w", path_=0)
    own.to_csv(table, index=False)
    code, _, err = command("check", str(table), "--output", "found", cwd=tmp_path)
    assert code == 0, err
    photos = pd.read_parquet(tmp_path / "found" / "photos.parquet")
    assert (photos["width"] == 64).all() and (photos["height"] == 64).all()


def test_what_is_set_aside_never_takes_a_name_that_is_there():
    own = pd.DataFrame({"width": [1], "original_width": [2], "original_original_width": [3]})
    assert set_aside(own, ["width", "height"]).to_dict("list") == {"original_original_original_width": [1], "original_width": [2], "original_original_width": [3]}
    assert list(own) == ["width", "original_width", "original_original_width"]


@pytest.fixture
def cyrillic(tmp_path):
    "Twelve photos with a genus and a side, in columns of another script than Latin."
    rows = []
    for i in range(12):
        draw_snake(i).resize((64, 64)).save(tmp_path / f"{i}.png")
        rows.append({"path": f"{i}.png", "род": ["Naja", "Boa"][i % 2], "бок": ["левый", "правый"][i // 2 % 2]})
    pd.DataFrame(rows).to_csv(tmp_path / "photos.csv", index=False)
    return tmp_path / "photos.csv"


def named(*columns):
    return pd.DataFrame({"path": [f"{i}.jpg" for i in range(8)], **{column: [f"{column}-{i % 2}" for i in range(8)] for column in columns}})


@pytest.mark.parametrize("columns", [("属", "毒"), ("род", "бок"), ("Genus2", "genus2"), ("जाति", "जात"), ("☠", "☺"), ("é", "e"), ("ملك", "سام"), ("-", "_"), ("label", "Label"), ("a b", "a_b"), ("path ", "kind")], ids=str)
@pytest.mark.parametrize("way", ["target", "label_column"])
def test_the_column_that_is_named_is_the_one_that_is_read(columns, way):
    for order in (columns, columns[::-1]):
        for column in columns:
            assert set(load_table(named(*order), check_files=False, path_column="path", **{way: column})["label"]) == {f"{column}-0", f"{column}-1"}


@pytest.mark.parametrize("target", ["不", "с", "?", "", " "])
def test_a_target_that_is_no_column_is_said(target):
    for columns in (("属", "毒"), ("род", "бок"), ("label", "毒"), ("毒",)):
        for way in ("target", "label_column"):
            if way == "target" or target.strip():
                with pytest.raises(UserError, match="does not exist|is empty"):
                    load_table(named(*columns), check_files=False, **{way: target})
    with pytest.raises(UserError, match="does not exist"):
        load_table(named("label", "分"), check_files=False, split_column="不")


def test_two_columns_that_a_name_could_mean_are_asked_about():
    for way in ("target", "label_column", "path_column", "split_column"):
        with pytest.raises(UserError, match="could mean the columns 'Genus2', 'genus2'"):
            load_table(named("label", "Genus2", "genus2"), check_files=False, **{way: "GENUS2"})
    assert set(load_table(named("label", "Род"), check_files=False, target="род")["label"]) == {"Род-0", "Род-1"}
    with pytest.raises(UserError, match="read as one name"):
        load_table(named("label").assign(split="val"), check_files=False, splits={"Val": "test", "val": "train"})


def test_a_bundle_holds_the_labels_of_the_column_that_was_named(cyrillic, tmp_path):
    sets = ["data.target=бок", "model.arch=test_resnet", "model.weights=none", "schedule=[{size: 32, epochs: 1, bs: 4}]", "train.num_workers=0"]
    code, _, err = command("train", "--data", str(cyrillic), *[part for one in sets for part in ("--set", one)], cwd=tmp_path)
    assert code == 0, err
    bundle = next(tmp_path.glob("runs/**/bundle.json"))
    assert set(json.loads(bundle.read_text())["labels"]) == {"левый", "правый"}
    code, _, err = command("train", "--data", str(cyrillic), "--set", "data.target=низ", *[part for one in sets[1:] for part in ("--set", one)], cwd=tmp_path)
    assert code == 2 and "target 'низ' does not exist" in err
