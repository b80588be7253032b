"""Features that are kept: the fast way to a head and its answers beside the slow one."""
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

import snakecls.models.feature_cache as feature_cache
from snakecls.data.datablocks import photo_dls
from snakecls.data.photos import PhotoSpec
from snakecls.models.feature_cache import FeatureCache, kept_features, _photo_keys
from snakecls.train.callbacks import FlipAverage
from snakecls.train.learner import photo_learner
from snakecls.train.learner_probe import fit_heads, head_answers, valid_answers

KINDS = {"one": "label", "several labels": "labels", "several targets": ["label", "side"]}


@pytest.fixture
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SNAKECLS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def draw(folder, n: int = 24) -> pd.DataFrame:
    "Photos of three colours, some of them with a bright left side."
    rng, rows = np.random.default_rng(0), []
    for i in range(n):
        pixels = rng.integers(0, 90, (48, 56, 3))
        pixels[..., i % 3] += 110
        pixels[:, :20] += 40 * (i // 3 % 2)
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / f"{i}.png")
        label, side = ["red", "green", "blue"][i % 3], "left" if i // 3 % 2 else "right"
        rows.append({"path": str(folder / f"{i}.png"), "label": label, "side": side, "labels": [label] + ["bright"] * (side == "left"),
                     "split": "valid" if i % 4 == 0 else "train"})
    return pd.DataFrame(rows)


def make(table: pd.DataFrame, kind: str, folder, **kwargs):
    table = table if kind == "several labels" else table.drop(columns="labels")
    return photo_learner(table, "test_resnet", size=48, bs=4, weights="none", target=KINDS[kind], num_workers=0, path=folder, **kwargs)


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_a_probe_answers_from_features_as_get_preds_does(own_cache, tmp_path, kind, flip):
    learn = make(draw(tmp_path), kind, tmp_path, flip=flip)
    with learn.no_bar(), learn.no_logging():
        fit_heads(learn, ["train"], seed=0)
        fast, slow = head_answers(learn), valid_answers(learn, learn.dls.valid)
    for one, other in zip((*fast[0], *fast[1], fast[2]), (*slow[0], *slow[1], slow[2]), strict=True):
        assert one.shape == other.shape and np.abs(one.astype(float) - other).max() < 1e-5


def test_another_head_decodes_and_computes_nothing(own_cache, tmp_path, monkeypatch):
    table = draw(tmp_path)
    with (learn := make(table, "one", tmp_path)).no_bar():
        fit_heads(learn, ["train"], seed=0)
        first = head_answers(learn)

    def nothing(*args, **kwargs):
        raise AssertionError("nothing was to be computed")

    monkeypatch.setattr(feature_cache, "_compute", nothing)
    with learn.no_bar():
        fit_heads(learn, ["train"], seed=1)
        again = head_answers(learn)
    assert np.abs(again[0][0] - first[0][0]).max() < 0.2 and (again[1][0] == first[1][0]).all()


def test_another_fold_computes_the_views_alone_that_are_new(own_cache, tmp_path, monkeypatch):
    table, computed, usual = draw(tmp_path), [], feature_cache._compute
    monkeypatch.setattr(feature_cache, "_compute", lambda model, photos, spec, views, **how: computed.append((len(photos), list(views))) or usual(model, photos, spec, views, **how))
    learn = photo_learner(table.drop(columns="labels"), size=48, bs=4, num_workers=0, path=tmp_path)  # with weights: their normalisation is no fold's
    with learn.no_bar():
        fit_heads(learn, ["train"], seed=0)
        head_answers(learn)
    assert computed == [(18, [0, 1]), (6, [0])]
    computed.clear()
    moved = table.assign(split=np.where(np.arange(len(table)) % 4 == 3, "valid", "train")).sample(frac=1, random_state=0)
    other = photo_learner(moved.drop(columns="labels"), size=48, bs=4, num_workers=0, path=tmp_path)
    other.model.load_state_dict(learn.model.state_dict())
    with other.no_bar():
        fit_heads(other, ["train"], seed=0)
        head_answers(other)
    assert computed == [(6, [1])]


def test_a_refit_in_another_order_gives_the_same_rows(own_cache, tmp_path):
    paths = draw(tmp_path)["path"].tolist()
    torch.manual_seed(0)
    from snakecls.models.backbones import create_backbone

    model, spec = create_backbone("test_resnet", 3, weights="none").eval(), PhotoSpec(48)
    rows, _ = kept_features(model, paths, spec, flip=True)
    again, _ = kept_features(model, paths[::-1], spec, flip=True)
    assert np.array_equal(again, rows[:, ::-1])
    other, _ = kept_features(model, paths, PhotoSpec(48, mean=(0.5,) * 3), flip=True)
    assert np.abs(other - rows).max() > 1e-4


@pytest.mark.parametrize("split", ["train", "valid"])
def test_a_photo_that_is_gone_is_told_and_left_out(own_cache, tmp_path, split):
    table = draw(tmp_path)
    learn = make(table, "one", tmp_path)
    gone = table.loc[table["split"] == split, "path"].iloc[1]
    learn.dls.lost.say = (told := []).append
    with learn.no_bar(), learn.no_logging():
        (tmp_path / gone).unlink()
        fit_heads(learn, ["train"], seed=0)
        fast, slow = head_answers(learn), valid_answers(learn, learn.dls.valid)
    assert list(learn.dls.lost.found) == [gone] and sum(gone in text for text in told) == 1
    assert len(fast[2]) == len(slow[2]) == (5 if split == "valid" else 6) and np.abs(fast[0][0] - slow[0][0]).max() < 1e-5


def test_loaders_of_ones_own_are_read_through(own_cache, tmp_path):
    from fastai.vision.all import ImageDataLoaders, Resize, vision_learner
    from snakecls.models.backbones import create_backbone

    table = draw(tmp_path)
    dls = ImageDataLoaders.from_df(table, path="/", fn_col="path", label_col="label", valid_pct=0.25, bs=4, seed=0, item_tfms=Resize(48), num_workers=0)
    learn = vision_learner(dls, "resnet18", pretrained=False)
    learn.model = create_backbone("test_resnet", 3, weights="none").to(dls.device)
    with learn.no_bar(), learn.no_logging():
        fast, slow = head_answers(learn), valid_answers(learn, dls.valid)
    assert np.abs(fast[0][0] - slow[0][0]).max() < 1e-6 and not own_cache.exists()


def test_a_photo_from_memory_is_not_kept(tmp_path):
    assert _photo_keys([np.zeros((9, 9, 3), np.uint8), Image.new("RGB", (9, 9)), tmp_path]) == [None] * 3
    cache = FeatureCache(tmp_path)
    cache.write("space", [None], np.ones((1, 3)))
    assert cache.read("space", [None])[1] is None


@pytest.mark.parametrize("damage", [lambda file: file.write_bytes(b""), lambda file: file.write_bytes(b"x" * 5000), lambda file: file.write_bytes(file.read_bytes()[:4096]),
                                    lambda file: file.write_bytes(file.read_bytes().replace(b"rows", b"rozs"))])
def test_a_damaged_file_is_as_if_it_were_not_there(tmp_path, damage):
    keys, rows = [bytes([i]) * 16 for i in range(50)], np.random.default_rng(0).normal(size=(50, 300)).astype(np.float32)
    cache = FeatureCache(tmp_path)
    cache.write("space", keys, rows)
    damage(cache.path)
    there, found = cache.read("space", keys)
    assert found is None or np.array_equal(found, rows[there])
    cache.write("space", keys, rows)
    again = FeatureCache(tmp_path).read("space", keys)
    assert again[0].all() and np.array_equal(again[1], rows)


def test_dls_are_needed_for_nothing_else(own_cache, tmp_path):
    dls = photo_dls(draw(tmp_path).drop(columns="labels"), 48, bs=4, num_workers=0)
    assert FlipAverage(dls.problem).average(torch.zeros(2, 3), torch.ones(2, 3)).shape == (2, 3)
