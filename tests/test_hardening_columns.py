"A user's own column may be called what the tidy table calls its own."
import json
import time

import pandas as pd
import pytest

from conftest import draw_snake
from snakecls.core import UserError
from snakecls.data.columns import rename_own
from snakecls.data.tables import load_table, read_table
from snakecls.data.labels import natural_order
from snakecls.workflow.results import predictions_name
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
    noted = read_table(table, target="binomial")
    loaded = noted.table
    assert set(loaded["label"]) == {"Naja naja", "Boa constrictor"}
    assert "labels" not in loaded and set(loaded["original_labels"]) == {"b;a", "c"}
    assert not any("look alike" in said for said in noted.notes)
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
    assert rename_own(own, ["width", "height"]).to_dict("list") == {"original_original_original_width": [1], "original_width": [2], "original_original_width": [3]}
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


def test_each_target_has_a_file_of_its_own(tmp_path):
    targets = ["род", "бок", "низ", "a b", "a_b", "a-b", "trained", "probe", "valid", "Side", "side", "x" * 300]
    names = [predictions_name(split, target).lower() for split in ("valid", "trained", "probe", None) for target in (None, *targets)]
    assert len(set(names)) == len(names) and max(map(len, names)) < 150 and all(name.isascii() for name in names)
    (tmp_path / "predictions-test-a_b.parquet").touch()  # as they were written before: it may be of either
    assert predictions_name("test", "a b", run=tmp_path, others=["a b", "side"]) == "predictions-test-a_b.parquet"
    assert predictions_name("test", "a b", run=tmp_path, others=["a b", "a_b"]) == predictions_name("test", "a b")


def test_the_targets_of_a_run_are_told_apart(cyrillic, tmp_path):
    own = pd.read_csv(cyrillic)
    own.assign(низ=["да", "нет"] * 6, trained=["x", "y", "y"] * 4).to_csv(cyrillic, index=False)
    sets = ["data.target=[род,бок,низ,trained]", "data.test=0.3", "model.arch=test_resnet", "model.weights=none", "schedule=[{size: 32, epochs: 1, bs: 4}]", "train.num_workers=0"]
    code, _, err = command("train", "--data", str(cyrillic), *[part for one in sets for part in ("--set", one)], cwd=tmp_path)
    assert code == 0, err
    run = next(tmp_path.glob("runs/*/metrics.json")).parent
    for target, labels in {"бок": {"левый", "правый"}, "низ": {"да", "нет"}, "trained": {"x", "y"}}.items():
        table = pd.read_parquet(run / predictions_name("valid", target))
        assert set(table["predicted"]) <= labels and set(table["label"]) <= labels
    assert set(pd.read_parquet(run / "predictions-valid-trained.parquet")["label"]) <= {"Naja", "Boa"}
    code, _, err = command("evaluate", "--model", str(run), "--json", cwd=tmp_path)
    assert code == 0, err


@pytest.mark.parametrize("own", ["labels", "split"])
def test_an_own_column_of_our_name_can_be_one_of_several_targets(table, tmp_path, own):
    pd.read_csv(table).drop(columns="labels").assign(**{own: ["left", "right", "right"] * 4}).to_csv(table, index=False)
    sets = ["model.arch=test_resnet", "model.weights=none", "schedule=[{size: 32, epochs: 1, bs: 4}]", "train.num_workers=0"]
    for targets in (f"[binomial,{own}]", f"[{own},binomial]"):
        code, _, err = command("train", "--data", str(table), "--set", f"data.target={targets}", *[part for one in sets for part in ("--set", one)], cwd=tmp_path)
        assert code == 2 and f"called 'original_{own}'" in err
        code, _, err = command("train", "--data", str(table), "--set", f"data.target={targets.replace(own, f'original_{own}')}", *[part for one in sets for part in ("--set", one)], cwd=tmp_path)
        assert code == 0, err
        bundle = json.loads(max(tmp_path.glob("runs/*/best/bundle.json"), key=lambda file: file.stat().st_mtime_ns).read_text())
        assert set(bundle["targets"][f"original_{own}"]) == {"left", "right"} and set(bundle["targets"]["binomial"]) == {"Naja naja", "Boa constrictor"}


def test_labels_with_digits_of_any_kind_have_an_order():
    assert natural_order(["m²", "m10", "m2", "①", "01", "1", "٣", "9" * 5000, "1" + "0" * 5000]) == ["01", "1", "9" * 5000, "1" + "0" * 5000, "m2", "m10", "m²", "٣", "①"]
    loaded = load_table(pd.DataFrame({"path": ["a.jpg", "b.jpg", "c.jpg"], "labels": ["m²;①", "①", "7" * 5000]}), multi_label=True, check_files=False)
    assert loaded["labels"].map(len).tolist() == [2, 1, 1]


def test_many_columns_with_stray_quotes_are_refused_soon(tmp_path):
    (tmp_path / "wide.csv").write_text(",".join(["path", "label"] + [f"c{i}" for i in range(200)]) + "\n" + ('"a" ,' * 202 + "\n") * 20)
    start = time.perf_counter()
    with pytest.raises(UserError):
        load_table(tmp_path / "wide.csv")
    assert time.perf_counter() - start < 3


def test_a_linked_class_is_not_listed_as_left_out(tmp_path):
    for i in range(8):
        (tmp_path / "other" / "ab"[i % 2]).mkdir(parents=True, exist_ok=True)
        draw_snake(i).resize((96, 96)).save(tmp_path / "other" / "ab"[i % 2] / f"{i}.png")
    (tmp_path / "photos").mkdir()
    for name in "ab":
        (tmp_path / "photos" / name).symlink_to(tmp_path / "other" / name)
    code, _, err = command("check", "photos", "--output", "found", "--json", cwd=tmp_path)
    assert code == 0 and "lead" in err, err
    issues = pd.read_parquet(tmp_path / "found" / "issues.parquet")
    assert not issues["path"].isin([str(tmp_path / "photos" / name) for name in "ab"]).any() and len(pd.read_parquet(tmp_path / "found" / "photos.parquet")) == 8
