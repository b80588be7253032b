"""A split never loses a photo, never tears a group apart, and does not depend on the order of rows."""
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from snakecls.core import UserError
from snakecls.data.manifest import read_manifest, verify_manifest, write_manifest
from snakecls.data.splits import divide_table, kfold_table, split_table, use_fold
from snakecls.data.tables import load_table

REAL = Path(os.environ.get("SNAKECLS_REAL_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))


@st.composite
def tables(draw: st.DrawFn) -> pd.DataFrame:
    "Tables of two classes or more, with groups across classes and rows without a group."
    labels = draw(st.lists(st.sampled_from("abcde"), min_size=2, max_size=60).filter(lambda labels: len(set(labels)) > 1))
    groups = draw(st.lists(st.sampled_from([None, *range(12)]), min_size=len(labels), max_size=len(labels)))
    return pd.DataFrame({"path": [f"/data/{label}/{i}.jpg" for i, label in enumerate(labels)], "label": labels, "animal": pd.array(groups, dtype="Int64")})


shares = st.tuples(st.floats(0.01, 0.6), st.one_of(st.just(0.0), st.floats(0.01, 0.39)))


@settings(max_examples=60, deadline=None)
@given(table=tables(), share=shares, seed=st.integers(0, 2**32 - 1), group=st.sampled_from([None, "animal"]))
def test_no_row_is_lost_and_no_group_is_torn(table, share, seed, group):
    valid, test = share
    result = split_table(table, valid=valid, test=test, seed=seed, group=group)
    assert result.drop(columns="split").equals(table)
    assert set(result["split"]) <= ({"train", "valid", "test"} if test else {"train", "valid"})
    assert "train" in set(result["split"])
    if group:
        assert result.dropna(subset=group).groupby(group)["split"].nunique().le(1).all()


@settings(max_examples=40, deadline=None)
@given(table=tables(), seed=st.integers(0, 1000), order=st.integers(0, 1000), group=st.sampled_from([None, "animal"]))
def test_the_order_of_rows_and_the_place_do_not_matter(table, seed, order, group):
    options = {"test": 0.2, "seed": seed, "group": group}
    first = split_table(table, **options)
    moved = table.assign(path=table["path"].str.replace("/data", "/mnt/other disk"))
    again = split_table(moved.sample(frac=1, random_state=order), **options).sort_index()
    assert again["split"].tolist() == first["split"].tolist()


@settings(max_examples=60, deadline=None)
@given(sizes=st.lists(st.integers(1, 80), min_size=2, max_size=6), share=st.tuples(st.floats(0.05, 0.5), st.floats(0.05, 0.4)), seed=st.integers(0, 1000))
def test_every_class_gets_its_share(sizes, share, seed):
    valid, test = share
    table = pd.DataFrame([(f"{c}/{i}.jpg", str(c)) for c, n in enumerate(sizes) for i in range(n)], columns=["path", "label"])
    counts = pd.crosstab(*split_table(table, valid=valid, test=test, seed=seed)[["label", "split"]].to_numpy().T)
    counts = counts.reindex(columns=["train", "valid", "test"], fill_value=0)
    for c, n in enumerate(sizes):
        train, n_valid, n_test = counts.loc[str(c)]
        assert train >= 1 and (n < 2 or n_valid >= 1) and (n < 3 or n_test >= 1)
        if n >= 20:
            assert abs(n_test - n * test) <= 1 and abs(n_valid - n * valid) <= 2


def test_shares_add_up_over_many_small_classes():
    table = pd.DataFrame([(f"{c}/{i}.jpg", str(c)) for c in range(500) for i in range(12)], columns=["path", "label"])
    share = (split_table(table, valid=0.2)["split"] == "valid").mean()
    assert abs(share - 0.2) < 0.01  # 2.4 of 12: rounding every class down would give 0.167


def test_a_new_photo_hardly_moves_the_others():
    table = pd.DataFrame([(f"{c}/{i}.jpg", c) for c in "abc" for i in range(100)], columns=["path", "label"])
    more = pd.concat([table, pd.DataFrame({"path": ["a/new.jpg"], "label": ["a"]})], ignore_index=True)
    assert (split_table(more)["split"][:300] != split_table(table)["split"]).sum() <= 2


def test_seeds_differ_and_the_test_split_ignores_the_validation_share():
    table = pd.DataFrame([(f"{c}/{i}.jpg", c) for c in "abc" for i in range(100)], columns=["path", "label"])
    first = split_table(table, test=0.2)["split"]
    assert (split_table(table, test=0.2, seed=1)["split"] != first).mean() > 0.2
    assert ((split_table(table, test=0.2, valid=0.3)["split"] == "test") == (first == "test")).all()


@pytest.mark.parametrize(
    "names, expected",
    [
        (["train", "valid", "test"], {"train": 60, "valid": 60, "test": 60}),
        (["train", "valid"], {"train": 90, "valid": 90}),
        (["train", "test"], {"train": 72, "valid": 18, "test": 90}),
        (["train"], {"train": 144, "valid": 36}),
    ],
)
def test_given_splits_are_kept(names, expected):
    table = pd.DataFrame({"path": [f"{i}.jpg" for i in range(180)], "label": np.repeat(list("abc"), 60), "split": np.resize(names, 180)})
    result = split_table(table, valid=0.2)
    assert result["split"].value_counts().to_dict() == expected
    stay = table["split"] != "train"
    assert (result["split"][stay] == table["split"][stay]).all()


def test_single_photos_go_to_training_with_a_warning():
    table = pd.DataFrame({"path": list("abcdefg"), "label": list("xxxxxyz")})
    result_noted = divide_table(table)
    result = result_noted.table
    assert result["split"][5:].tolist() == ["train", "train"]
    assert "no photo of 2 classes" in result_noted.notes[0] and "'y', 'z'" in result_noted.notes[0]
    assert table.attrs == {}


def test_grouped_shares_come_near():
    rng = np.random.default_rng(0)
    animal = rng.integers(0, 600, 3000)
    table = pd.DataFrame({"path": [f"{i}.jpg" for i in range(3000)], "label": (animal % 10).astype(str), "animal": animal})
    result = split_table(table, valid=0.2, test=0.1, group="animal")
    assert result.groupby("animal")["split"].nunique().max() == 1
    by_class = pd.crosstab(result["label"], result["split"], normalize="index")
    assert (by_class["valid"] - 0.2).abs().max() < 0.03 and (by_class["test"] - 0.1).abs().max() < 0.03


def test_groups_torn_by_given_splits_are_named():
    table = pd.DataFrame({"path": list("abcd"), "label": list("xyxy"), "split": ["train", "train", "valid", "valid"], "animal": [1, 2, 1, 3]})
    assert "tear apart 1 value of animal ('1')" in divide_table(table, group="animal").notes[0]


@pytest.mark.parametrize(
    "options, said",
    [
        ({"valid": 0}, "between 0 and 1"),
        ({"valid": 1.0}, "between 0 and 1"),
        ({"test": 1.0}, "from 0 to below 1"),
        ({"valid": 0.7, "test": 0.3}, "sum less than 1"),
        ({"group": "anmal"}, "did you mean 'animal'?"),
        ({"stratify": "lable"}, "did you mean 'label'?"),
    ],
)
def test_bad_arguments(options, said):
    table = pd.DataFrame({"path": list("abcd"), "label": list("xyxy"), "animal": [1, 2, 1, 3]})
    with pytest.raises(UserError, match=said):
        split_table(table, **options)


@settings(max_examples=40, deadline=None)
@given(folds=st.integers(2, 6), seed=st.integers(0, 1000), order=st.integers(0, 1000), extra=st.lists(st.sampled_from("abc"), max_size=40))
def test_folds_are_even_and_whole(folds, seed, order, extra):
    labels = list("abc") * folds + extra
    table = pd.DataFrame({"path": [f"{i}.jpg" for i in range(len(labels))], "label": labels})
    result = kfold_table(table, folds=folds, seed=seed)
    assert result.drop(columns="fold").equals(table)
    counts = pd.crosstab(result["label"], result["fold"])
    assert counts.shape == (3, folds) and (counts.max(axis=1) - counts.min(axis=1)).max() <= 1
    again = kfold_table(table.sample(frac=1, random_state=order), folds=folds, seed=seed).sort_index()
    assert again["fold"].tolist() == result["fold"].tolist()
    assert sum((use_fold(result, k)["split"] == "valid").sum() for k in range(folds)) == len(table)


def test_too_many_folds():
    table = pd.DataFrame({"path": list("abcdefg"), "label": list("xxxxyyy"), "animal": [1, 1, 2, 2, 3, 4, 5]})
    with pytest.raises(UserError, match="folds=4 is more than the 3 photos of 'y'; take fewer folds"):
        kfold_table(table, folds=4)
    with pytest.raises(UserError, match="the 2 values of animal of 'x'"):
        kfold_table(table, folds=3, group="animal")
    with pytest.raises(UserError, match="give 2 or more"):
        kfold_table(table, folds=1)


def test_manifest(tmp_path):
    for name in "abcd":
        (tmp_path / f"{name}.jpg").write_bytes(name.encode())
    table = split_table(pd.DataFrame({"path": [str(tmp_path / f"{name}.jpg") for name in "abcd"], "label": list("xxyy"), "country": "PE"}))
    file = tmp_path / "run" / "manifest.parquet"
    write_manifest(table, file)
    manifest = read_manifest(file)
    assert manifest.columns.tolist() == ["path", "label", "split", "size_bytes", "mtime_ns", "hash"]
    assert manifest["path"].tolist() == table["path"].tolist() and manifest["hash"].isna().all()
    assert verify_manifest(file).empty

    write_manifest(table, file, hashes={table["path"][0]: "0" * 32})
    assert read_manifest(file)["hash"].notna().tolist() == [True, False, False, False]
    assert verify_manifest(file, hashes=True)["reason"].tolist() == ["another content"]

    write_manifest(table, file, hashes=True)
    (tmp_path / "a.jpg").write_bytes(b"A")
    os.utime(tmp_path / "a.jpg", ns=(1, 1))
    os.utime(tmp_path / "b.jpg", ns=(1, 1))
    (tmp_path / "c.jpg").unlink()
    (tmp_path / "e.jpg").touch()
    changes = verify_manifest(file)
    assert [(Path(row.path).name, row.state) for row in changes.itertuples()] == [("a.jpg", "changed"), ("c.jpg", "missing"), ("e.jpg", "new")]
    moved = table.assign(split=["test", *table["split"][1:]])
    assert "moved" in verify_manifest(file, table=moved)["state"].tolist()

    (tmp_path / "broken.parquet").write_bytes(b"PAR1")
    with pytest.raises(UserError, match="is not a manifest that can be read"):
        read_manifest(tmp_path / "broken.parquet")


@pytest.mark.real
@pytest.mark.parametrize("name", ["snakes_ph", "butterflies"])
def test_real_photos(name, tmp_path):
    if not (REAL / name).exists():
        pytest.skip(f"the real photographs are not there ({REAL / name}); set SNAKECLS_REAL_DATA")
    table = load_table(REAL / name, splits={"val": "test", "valid": "test"})
    result = split_table(table, valid=0.15)
    counts = result["split"].value_counts()
    assert counts["test"] == (table["split"] == "test").sum()
    assert abs(counts["valid"] / (table["split"] == "train").sum() - 0.15) < 0.01
    assert result[result["split"] == "valid"]["label"].nunique() == table["label"].nunique()
    manifest = write_manifest(result, tmp_path / "manifest.parquet")
    assert manifest["size_bytes"].gt(0).all() and verify_manifest(tmp_path / "manifest.parquet").empty
    folded = kfold_table(result)
    assert (folded["fold"] == -1).sum() == counts["test"]
