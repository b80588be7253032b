"A user's own column may be called what the tidy table calls its own."
import pandas as pd
import pytest

from conftest import draw_snake
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
