"""The cache of training photos: the same pixels as without it, whoever writes at the same time, dies, or damages a file."""
import json
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import REPO, draw_snake

from snakecls.data import image_cache as module
from snakecls.data.augmentation import Augment
from snakecls.data.datablocks import photo_dls
from snakecls.data.image_cache import ImageCache, say_room, _small_copy
from snakecls.data.photos import RESIZES, PhotoError, PhotoSpec, open_photo, prepare_photo
from snakecls.data.transforms import SampleSeeds, TrainPresize, train_view

VIEW = PhotoSpec(60, interpolation="bilinear")


def draw(folder: Path, n: int = 8, size: tuple[int, int] = (240, 160)) -> list[Path]:
    folder.mkdir(exist_ok=True)
    for number in range(n):
        draw_snake(number, size if number % 2 else size[::-1]).save(folder / f"{number}.jpg", quality=90)
    for file in folder.iterdir():  # their hashes are remembered
        os.utime(file, (1e9, 1e9))
    return sorted(folder.iterdir())


def pixels(photos: list[Path], cache: ImageCache) -> list[bytes]:
    return [cache.open(photo).tobytes() for photo in photos]


def expected(photos: list[Path], view: PhotoSpec = VIEW) -> list[bytes]:
    return [_small_copy(open_photo(photo, seen=view), view).tobytes() for photo in photos]


def count_decoded(monkeypatch) -> list:
    decoded, own = [], module.open_photo
    monkeypatch.setattr(module, "open_photo", lambda source, **how: decoded.append(source) or own(source, **how))
    return decoded


# What comes out


@pytest.mark.parametrize("resize", RESIZES)
@pytest.mark.parametrize("size", [(240, 160), (97, 131), (50, 41), (900, 610)])
def test_the_largest_stage_gets_what_it_gets_without(tmp_path, resize, size):
    view = replace(VIEW, resize=resize)
    for epoch in range(3):
        presize = TrainPresize(60, SampleSeeds(3), resize=resize)
        presize.seeds.start_epoch(epoch)
        for photo in draw(tmp_path / "photos", 4, size):
            squares = []
            for opened in (open_photo(photo, seen=view), ImageCache(view, tmp_path).open(photo)):
                opened.sample_key = photo.name
                squares.append(np.asarray(presize(opened, split_idx=0), int))
            most = 0 if resize != "crop" or min(size) <= 60 else 2
            assert np.abs(squares[0] - squares[1]).max() <= most


def test_a_smaller_stage_gets_nearly_what_it_gets_without(tmp_path):
    presize = TrainPresize(30, SampleSeeds(3))
    for photo in draw(tmp_path / "photos"):
        squares = []
        for opened in (open_photo(photo), ImageCache(VIEW, tmp_path).open(photo)):
            opened.sample_key = photo.name
            squares.append(np.asarray(presize(opened, split_idx=0), int))
        assert 0 < np.abs(squares[0] - squares[1]).mean() < 6


def test_pixels_do_not_depend_on_what_was_kept(tmp_path, monkeypatch):
    photos = draw(tmp_path / "photos")
    same = expected(photos)
    (tmp_path / "a file").write_text("in the way")
    for cache in (ImageCache(VIEW, tmp_path / "new"), ImageCache(VIEW, tmp_path / "new"), ImageCache(VIEW, tmp_path / "none", max_bytes=0),
                  ImageCache(VIEW, tmp_path / "few", max_bytes=60_000), ImageCache(VIEW, tmp_path / "a file")):
        assert pixels(photos, cache) == pixels(photos, cache) == same
    assert sum(file.stat().st_size for file in (tmp_path / "few").rglob("*.pixels")) < 75_000
    assert not list((tmp_path / "none").rglob("*.pixels"))
    monkeypatch.setattr(module.shutil, "disk_usage", lambda path: type("Usage", (), {"total": 1e12, "free": 1e9}))  # the disk is nearly full
    assert pixels(photos, ImageCache(VIEW, tmp_path / "crowded")) == same and not list((tmp_path / "crowded").rglob("*.pixels"))


def test_a_photo_is_known_by_its_content(tmp_path, monkeypatch):
    photos, decoded = draw(tmp_path / "photos"), count_decoded(monkeypatch)
    pixels(photos, ImageCache(VIEW, tmp_path / "cache"))
    assert len(decoded) == 8
    moved = [photo.rename(photo.with_name(f"moved-{photo.name}")) for photo in photos]
    assert pixels(moved, ImageCache(VIEW, tmp_path / "cache")) == expected(moved) and len(decoded) == 8
    for stamp in (None, 1.5e9):  # just now, in the same moment as before; and long ago
        before, cache = moved[0].read_bytes(), ImageCache(VIEW, tmp_path / "cache")
        if stamp is None:
            moved[0].write_bytes(before)
        cache.open(moved[0])
        changed = moved[1].read_bytes() if stamp is None else moved[2].read_bytes()
        at = moved[0].stat().st_mtime_ns
        moved[0].write_bytes(changed)
        os.utime(moved[0], ns=(at, at)) if stamp is None else os.utime(moved[0], (stamp, stamp))
        assert cache.open(moved[0]).tobytes() == expected(moved[1:3])[0 if stamp is None else 1]
    moved[0].unlink()
    with pytest.raises(PhotoError, match="no such file"):
        cache.open(moved[0])
    (tmp_path / "no photo.jpg").write_bytes(b"text")
    with pytest.raises(PhotoError, match="no photo.jpg"):
        cache.open(tmp_path / "no photo.jpg")


# Who writes


def _open_all(photos: list[Path], folder: Path, start, answers) -> None:
    cache = ImageCache(VIEW, folder)
    start.wait()
    answers.put([hash(part) for part in pixels(photos, cache)])


def test_writers_at_the_same_time(tmp_path):
    photos, context = draw(tmp_path / "photos"), multiprocessing.get_context("fork")
    start, answers = context.Event(), context.Queue()
    workers = [context.Process(target=_open_all, args=(photos, tmp_path / "cache", start, answers)) for _ in range(4)]
    [worker.start() for worker in workers]
    start.set()
    given = [answers.get(timeout=60) for _ in workers]
    [worker.join() for worker in workers]
    assert all(part == [hash(one) for one in expected(photos)] for part in given)  # forked processes hash alike
    cache = ImageCache(VIEW, tmp_path / "cache")
    cache.refresh()
    assert len(cache._places) == 8 and pixels(photos, cache) == expected(photos)


def test_a_writer_that_is_killed(tmp_path, monkeypatch):
    photos = draw(tmp_path / "photos")
    code = ("import sys, itertools; from snakecls.data.image_cache import ImageCache; from snakecls.data.photos import PhotoSpec\n"
            "for n in itertools.count(): cache = ImageCache(PhotoSpec(60, interpolation='bilinear'), sys.argv[1]); "
            "[cache.open(p) for p in sys.argv[2:]]; cache.folder.rename(cache.folder.with_name(str(n)))")
    for delay in (0.0, 0.02, 0.05):
        root = tmp_path / f"cache {delay}"
        worker = subprocess.Popen([sys.executable, "-c", code, str(root), *map(str, photos)], cwd=REPO)
        while not list(root.rglob("*.index")):
            time.sleep(0.002)
        time.sleep(delay)
        worker.send_signal(signal.SIGKILL)
        worker.wait()
        for _ in range(2):
            assert pixels(photos, ImageCache(VIEW, root)) == expected(photos)


@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "gone", "index cut", "index flip", "index gone", "names flip"])
def test_damage_is_made_good(tmp_path, monkeypatch, damage):
    photos, root = draw(tmp_path / "photos"), tmp_path / "cache"
    pixels(photos, ImageCache(VIEW, root))
    file = next(root.rglob(f"*.{damage.split()[0] if ' ' in damage else 'pixels'}"))
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 4
    kind = damage.split()[-1]
    if kind == "gone":
        file.unlink()
    else:
        file.write_bytes({"flip": content, "cut": content[: len(content) // 2 + 7], "empty": b""}[kind])
    for _ in range(2):  # what was read before the damage was noticed is kept anew the next time
        assert pixels(photos, ImageCache(VIEW, root)) == expected(photos)
    same, decoded = expected(photos), count_decoded(monkeypatch)
    assert pixels(photos, ImageCache(VIEW, root)) == same and len(decoded) == 0


def test_room_is_made_by_what_was_not_used_for_longest(tmp_path):
    photos, caches = draw(tmp_path / "photos"), [ImageCache(replace(VIEW, size=size), tmp_path / "cache", max_bytes=500_000) for size in (50, 55, 60)]
    for age, cache in zip((3000, 2000), caches):
        pixels(photos, cache)
        os.utime(cache.folder, (time.time() - age,) * 2)
    caches[2].max_bytes = 150_000
    pixels(photos, caches[2])
    assert not caches[0].folder.exists() and caches[2].folder.exists()
    os.utime(caches[2].folder)
    tight = ImageCache(replace(VIEW, size=40), tmp_path / "cache", max_bytes=1000)
    pixels(photos, tight)
    assert caches[2].folder.exists()  # another run may be at work there
    assert "about 1% of the training photos" in say_room(replace_limit(tight, 1000), 16) and not say_room(caches[0], 16)


def replace_limit(cache: ImageCache, max_bytes: float) -> ImageCache:
    return ImageCache(cache.view, cache.root, max_bytes=max_bytes)


# In a loader and a run


def table_of(photos: list[Path]) -> pd.DataFrame:
    return pd.DataFrame({"path": list(map(str, photos)), "label": ["a", "b"] * 4, "split": ["train"] * 6 + ["valid"] * 2})


@pytest.mark.parametrize("backend", ["fastai", "albumentations", "none"])
def test_loaders_give_the_same_with_and_without(tmp_path, backend):
    photos, augment = draw(tmp_path / "photos"), Augment(backend=backend)
    cache = ImageCache(train_view(48, augment, PhotoSpec(48)), tmp_path / "cache")
    options = {"size": 48, "bs": 3, "augment": augment, "num_workers": 0}
    kept, plain = photo_dls(table_of(photos), cache=cache, **options), photo_dls(table_of(photos), **options)
    for _ in range(2):
        for one, other in zip(kept.train, plain.train):
            assert (one[0] - other[0]).abs().mean() < (0.02 if backend != "none" else 0.2) and (one[1] == other[1]).all()
    assert np.abs(kept.valid.one_batch()[0][0].cpu().numpy() - prepare_photo(photos[6], kept.spec)).max() < 1e-5
    assert len(kept.train.cache._places) == 6  # training alone
    assert pickle.loads(pickle.dumps(cache)).open(photos[0]).tobytes() == cache.open(photos[0]).tobytes()


@pytest.mark.parametrize("target", ["label", "labels", ["label", "other"]])
@pytest.mark.parametrize("oversample", [0.0, 1.0])
def test_the_shorter_way_ends_in_the_same_tensors(tmp_path, monkeypatch, target, oversample):
    table = table_of(draw(tmp_path / "photos")).assign(labels=[["a"], ["a", "b"]] * 4, other=["x", "x", "y", "y"] * 2)
    gone, batches = draw(tmp_path / "photos")[2], []
    gone.unlink()
    for is_quick, has_cache, workers in ((False, True, 0), (True, True, 0), (True, True, None), (True, True, 2), (False, False, 0), (True, False, None)):
        cache = ImageCache(train_view(48, Augment(), PhotoSpec(48)), tmp_path / f"cache {is_quick} {workers}") if has_cache else None
        how = {} if isinstance(target, list) else {"oversample": oversample}
        dls = photo_dls(table, 48, target=target, bs=3, num_workers=workers, cache=cache, seed=4, **how)
        dls.train.quick = is_quick
        assert dls.train.fake_l.num_workers == (workers or 0) and (dls.train.n_threads > 0) == (workers is None)
        batches.append([batch for _ in range(2) for batch in dls.train])
    assert_same(*batches[:4]), assert_same(*batches[4:])


def assert_same(first: list, *others: list) -> None:
    for other in others:
        assert len(first) == len(other)
        for one, two in zip(first, other):
            assert len(one) == len(two) and all(type(a) is type(b) and (a == b).all() for a, b in zip(one, two))


def test_batches_do_not_depend_on_the_number_of_processes(tmp_path):
    photos, batches = draw(tmp_path / "photos"), []
    for workers in (0, 2):
        cache = ImageCache(train_view(48, Augment(), PhotoSpec(48)), tmp_path / f"cache {workers}")
        dls = photo_dls(table_of(photos), 48, bs=3, num_workers=workers, cache=cache)
        batches.append([batch[0].cpu().numpy() for loaders in (dls, dls.rebuild(size=32, bs=3)) for _ in range(2) for batch in loaders.train])
    assert len(batches[0]) == len(batches[1]) and all(np.array_equal(one, other) for one, other in zip(*batches))
    cache.refresh()
    assert len(cache._places) == 6  # what two processes have kept


def test_a_second_run_decodes_no_training_photo(tmp_path, monkeypatch):
    from snakecls.experiment.file import make_experiment
    from snakecls.workflow.run import run_experiment

    monkeypatch.setenv("SNAKECLS_CACHE", str(tmp_path / "cache"))
    (tmp_path / "photos").mkdir()
    for label, size in (("a", (240, 160)), ("b", (200, 130))):
        draw(tmp_path / "photos" / label, 6, size)
    decoded, scores = count_decoded(monkeypatch), []
    for change in ({}, {}, {"train": {"image_cache": 0}}):
        train = {"num_workers": 0, "precision": "fp32"} | change.get("train", {})
        values = {"data": {"source": str(tmp_path / "photos"), "valid": 0.34}, "model": {"arch": "test_resnet", "weights": "none"}, "train": train,
                  "schedule": [{"size": 32, "epochs": 1, "bs": 4}, {"size": 48, "epochs": 2, "bs": 4}], "track": []}
        result = run_experiment(make_experiment(values), root=tmp_path / "runs", logbook=None, say=lambda text: None)
        scores.append(result.metrics["valid"]["f1_macro"])
        if not scores[1:]:
            n_decoded = len(decoded)
    assert n_decoded == len(set(decoded)) == 8 == len(decoded) and scores[0] == scores[1]


def test_the_cache_is_seen_and_emptied_and_nothing_else_is_lost(tmp_path, monkeypatch):
    monkeypatch.setenv("SNAKECLS_CACHE", str(tmp_path))
    mine = draw(tmp_path / "decoded" / "mine", 2) if (tmp_path / "decoded").mkdir() is None else []
    pixels(mine, cache := ImageCache(VIEW))
    ask = [sys.executable, "-m", "snakecls", "cache", "--json"]
    shown = json.loads(subprocess.run(ask, cwd=REPO, check=True, capture_output=True, text=True).stdout)
    assert shown["decoded"]["bytes"] == sum(size for _, size in module._files(tmp_path)) > 20_000 and shown["graphs"]["bytes"] == 0
    pixels(mine, ImageCache(replace(VIEW, size=40), max_bytes=0))  # makes room where it can
    json.loads(subprocess.run([*ask, "--empty"], cwd=REPO, check=True, capture_output=True, text=True).stdout)
    assert all(photo.exists() for photo in mine) and not cache.folder.exists()
    assert pixels(mine, cache) == expected(mine)  # a run that goes on meanwhile
