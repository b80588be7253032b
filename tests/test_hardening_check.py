"""A check keeps what it learns, and no damage to what it keeps changes its answer; its processes end with it."""
import os
import shutil
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import REPO
from mutate import mutated_files
from PIL import Image

from snakecls.core import UserError
from snakecls.clean.facts_cache import FactsCache
from snakecls.clean.scan import scan_files
from snakecls.experiment.schema import DataConfig
from snakecls.clean.check_folder import undecided
from snakecls.workflow.check import check_source


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    "Twelve photos of three classes; two are copies, one cannot be read."
    folder, generator = tmp_path_factory.mktemp("checked") / "photos", np.random.default_rng(0)
    for number in range(12):
        (folder / "abc"[number % 3]).mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(0, 255, (70, 80 + number, 3), dtype=np.uint8)).save(folder / "abc"[number % 3] / f"{number}.png")
    shutil.copy(folder / "a/0.png", folder / "b/copy.png")
    (folder / "c/broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 this is no photo")
    return folder


def check(photos: Path, folder: Path) -> tuple[pd.DataFrame, list[str]]:  # issues; what was said
    said = []
    return check_source(DataConfig(source=str(photos)), folder, files_only=True, n_workers=1, say=said.append).issues, said


@pytest.fixture(scope="module")
def checked(photos, tmp_path_factory) -> tuple[Path, pd.DataFrame]:  # the folder of a check, its issues
    folder = tmp_path_factory.mktemp("check") / "kept"
    return folder, check(photos, folder)[0]


def test_no_damage_to_the_cache_changes_an_answer(photos, checked, tmp_path):
    paths = sorted(map(str, photos.rglob("*.*")))[::3]
    cache, fresh = tmp_path / "photos.sqlite", scan_files(paths)
    scan_files(paths, cache=cache)
    data, notes = cache.read_bytes(), 0
    for number, mutated in enumerate(mutated_files(data, seed=11)):
        for left in tmp_path.iterdir():
            left.unlink()
        cache.write_bytes(mutated)
        facts = scan_files(paths, cache=(kept := FactsCache(cache)))
        pd.testing.assert_frame_equal(facts, fresh)
        notes += bool(kept.note)
        if number % 10 == 0:
            again = scan_files(paths, cache=(kept := FactsCache(cache)))
            pd.testing.assert_frame_equal(again, fresh)
            assert not kept.note  # it has been made again
    assert notes > 50


def test_damaged_halves_of_a_killed_check(photos, tmp_path):
    "What SQLite itself leaves behind after kill -9: a journal, whole or damaged."
    paths = sorted(map(str, photos.rglob("*.*")))
    cache, fresh = tmp_path / "photos.sqlite", scan_files(paths)
    scan_files(paths[:6], cache=cache)
    db = sqlite3.connect(cache, isolation_level=None)
    db.execute("PRAGMA cache_size = 1")
    db.execute("BEGIN")
    db.execute("UPDATE photos SET width = width + 1, thumb = zeroblob(9000)")
    journal = Path(f"{cache}-journal")
    data, kept = cache.read_bytes(), journal.read_bytes()
    db.rollback()
    db.close()
    for mutated in [kept, *mutated_files(kept, seed=12, n=30)]:
        for left in tmp_path.iterdir():
            left.unlink()
        cache.write_bytes(data)
        journal.write_bytes(mutated)
        pd.testing.assert_frame_equal(scan_files(paths, cache=cache), fresh)


def place_old(cache: Path) -> None:
    with sqlite3.connect(cache) as db:
        for line in ("CREATE TABLE about (version TEXT)", "INSERT INTO about VALUES ('2, Pillow 9.0')", "CREATE TABLE files (path TEXT PRIMARY KEY, bytes INTEGER, changed INTEGER, sha TEXT)", "CREATE TABLE photos (sha TEXT PRIMARY KEY, bytes INTEGER)"):
            db.execute(line)
    db.close()


@pytest.mark.parametrize("place, told", [
    (place_old, ""), (lambda cache: cache.mkdir(), "is a folder"), (lambda cache: os.mkfifo(cache), "is a pipe"), (lambda cache: cache.symlink_to(cache), "cannot be used"),
    (lambda cache: cache.write_text("path,label\n"), "was damaged"), (lambda cache: cache.write_bytes(b""), ""), (lambda cache: cache.symlink_to("/dev/full"), "is a pipe, a socket or a device")])
def test_something_else_in_the_place_of_the_cache(photos, checked, tmp_path, place, told):
    (tmp_path / "check").mkdir()
    place(tmp_path / "check/photos.sqlite")
    issues, said = check(photos, tmp_path / "check")
    pd.testing.assert_frame_equal(issues, checked[1])
    assert told in " ".join(said) and bool(told) == bool(said)


def test_the_database_of_another_program_is_left_alone(photos, tmp_path):
    with sqlite3.connect(tmp_path / "photos.sqlite") as db:
        db.execute("CREATE TABLE photos (mine TEXT)")
        db.execute("INSERT INTO photos VALUES ('precious')")
    db.close()
    with pytest.raises(UserError, match="the database of something else"):
        check(photos, tmp_path)
    assert sqlite3.connect(tmp_path / "photos.sqlite").execute("SELECT * FROM photos").fetchall() == [("precious",)]


def test_a_cache_that_cannot_be_written_costs_only_itself(photos, checked, tmp_path):
    locked = tmp_path / "check/photos.sqlite"
    locked.parent.mkdir()
    code = ("import glob, os, sys; from snakecls.clean.scan import FactsCache, scan_files; paths = sorted(glob.glob(sys.argv[1] + '/*/*')); scan_files(paths)\n"
            "os.setgid(65534); os.setuid(65534); cache = FactsCache(sys.argv[2]); facts = scan_files(paths, cache=cache); print(len(facts), [cache.note])")
    if os.getuid():
        pytest.skip("only root can become another user")
    scan_files(sorted(map(str, photos.rglob("*.*")))[:6], cache=locked)  # as much as was kept before
    for folder in (tmp_path, *tmp_path.parents[:3], photos, *photos.parents[:3]):
        if not (folder.stat().st_mode & 0o005) and str(folder).startswith("/tmp/"):
            folder.chmod(0o755)
    locked.chmod(0o444)
    done = subprocess.run([sys.executable, "-c", code, photos, locked], capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(REPO)})
    assert done.stdout.startswith("14 [") and "readonly" in done.stdout, done.stderr + done.stdout


def test_two_checks_at_once_in_one_folder(photos, checked, tmp_path):
    found, threads, paths = [], [], sorted(map(str, photos.rglob("*.*")))

    def scan():
        cache = FactsCache(tmp_path / "photos.sqlite")
        found.append((scan_files(paths, cache=cache), cache.note))

    for _ in range(4):
        threads.append(threading.Thread(target=scan))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    fresh = scan_files(sorted(map(str, photos.rglob("*.*"))))
    assert len(found) == 4
    for facts, note in found:
        pd.testing.assert_frame_equal(facts, fresh)
        assert not note


def test_what_passes_is_not_kept(photos, tmp_path, monkeypatch):
    "A photo that there was no memory for, or that a disk did not give, is read the next time."
    from snakecls.clean import photo_facts

    paths, decode = sorted(map(str, photos.rglob("*.*"))), photo_facts.decode
    fresh = scan_files(paths)
    for error in (MemoryError(), OSError(5, "Input/output error")):
        def fail(*given, error=error, **more):
            raise error
        monkeypatch.setattr(photo_facts, "decode", fail)
        cache = tmp_path / f"{type(error).__name__}.sqlite"
        assert (scan_files(paths, cache=cache)["issue"] != "").all()
        monkeypatch.setattr(photo_facts, "decode", decode)
        pd.testing.assert_frame_equal(scan_files(paths, cache=cache), fresh)


@pytest.mark.parametrize("file", ["check.json", "issues.parquet", "photos.parquet"])
def test_a_damaged_check_is_told_and_made_again(photos, checked, tmp_path, file):
    folder = tmp_path / "check"
    shutil.copytree(checked[0], folder)
    data = (folder / file).read_bytes()
    right, refused = undecided(folder, tmp_path / "none.csv"), 0
    for mutated in mutated_files(data, seed=13, plain=file == "check.json"):
        (folder / file).write_bytes(mutated)
        try:
            issues, table, said = undecided(folder, tmp_path / "none.csv")
        except UserError as e:
            assert "check" in str(e) and len(str(e).splitlines()) == 1
            refused += 1
            continue
        pd.testing.assert_frame_equal(issues, right[0])
        pd.testing.assert_frame_equal(table, right[1])
        assert (said["labels"], said["multi_label"]) == (right[2]["labels"], right[2]["multi_label"])
    assert refused > 200
    (folder / file).unlink()
    with pytest.raises(UserError, match="check"):
        undecided(folder, tmp_path / "none.csv")
    (folder / file).mkdir()
    with pytest.raises(UserError, match="check"):
        undecided(folder, tmp_path / "none.csv")
    (folder / file).rmdir()
    (folder / file).write_bytes(mutated)
    issues, _ = check(photos, folder)
    pd.testing.assert_frame_equal(issues, checked[1])
    pd.testing.assert_frame_equal(undecided(folder, tmp_path / "none.csv")[0], right[0])
