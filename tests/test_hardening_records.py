"""One damaged run among good ones, killed runs, and a disk that is full at any write of a run's end."""
import errno
import json
import logging
import os
import shutil
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

import pandas as pd
import pytest
from mutate import mutated_files
from test_faults_ends import SMALL, snakecls
from test_hardening_runs import make_photos

from snakecls.core import UserError
from snakecls.workflow.leaderboard import leaderboard_text
from snakecls.workflow.run_folder import RunFolder, _summarise_run, find_run, read_status
from snakecls.workflow.runs import _photo_group, all_runs

ONE = ["--set", "data.test=0.25", "--set", "schedule=[{size: 32, epochs: 1}]"]


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Path:
    "A folder with photos and two good runs, `one` and `two`."
    folder = tmp_path_factory.mktemp("records")
    make_photos(folder / "photos")
    for name in ("one", "two"):
        done = snakecls("train", "--data", "photos", *SMALL, *ONE, "--set", f"name={name}", cwd=folder)
        assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def runs(project, tmp_path) -> dict[str, Path]:
    "Two good runs and one to be damaged, in a folder of their own."
    shutil.copytree(project / "runs", tmp_path / "runs")
    found = {name: next((tmp_path / "runs").glob(f"*-{name}")) for name in ("one", "two")}
    found["bad"] = Path(shutil.copytree(found["one"], tmp_path / "runs" / "20200101-000000-bad"))
    status = json.loads((found["bad"] / "status.json").read_text())
    (found["bad"] / "status.json").write_text(json.dumps(status | {"name": "bad"}))
    return found


def normal(row) -> dict:
    "Give a row's values so that they can be compared: a column of numbers becomes one of floats when a value is missing."
    return {name: None if value is None or value != value else float(value) if isinstance(value, (int, float)) else str(value) for name, value in dict(row).items()}


def board_of(root: Path) -> dict[str, dict]:
    "List the runs as the command does, in all its forms."
    board = all_runs(root, photos=True)
    for wide in (False, True):
        assert len(leaderboard_text(board, root, wide=wide, width=None if wide else 80).splitlines()) > len(board)
    return {row["run"]: normal(row) for row in json.loads(board.to_json(orient="records"))}


def good_rows_are_right(runs: dict[str, Path], whole: dict[str, dict]) -> None:
    root, found = runs["one"].parent, board_of(runs["one"].parent)
    for name in ("one", "two"):
        assert found[runs[name].name] == whole[runs[name].name]
        assert find_run(root, name).id == find_run(root, runs[name].name).id == runs[name].name


@pytest.mark.parametrize("name", ["metrics.json", "experiment.yaml", "manifest.parquet", "history.csv", "environment.json", "status.json", "predictions-valid.parquet", "verdict.json"])
def test_a_damaged_run_is_a_row_with_its_message_or_right(runs, name):
    file, whole, seen = runs["bad"] / name, board_of(runs["one"].parent), Counter()
    n = 60 if name in ("environment.json", "verdict.json", "predictions-valid.parquet") else 300  # of each kind of file 300
    group_of = _photo_group if name.endswith("parquet") else lambda run: {}
    right, data = normal(_summarise_run(runs["bad"]) | group_of(runs["bad"])), file.read_bytes()
    for number, damaged in enumerate(mutated_files(data, seed=11, n=n, plain=name.endswith("json"))):
        file.write_bytes(damaged)
        row = normal(_summarise_run(runs["bad"]) | (group := group_of(runs["bad"])))
        row["message"] = row["message"] or group.get("fault")
        other = {key for key in row if row[key] not in (right.get(key), None)}
        seen["told" if row["message"] else "same"] += 1
        flips = {"photos"} if name in ("manifest.parquet", "predictions-valid.parquet") else set(right) if name in ("metrics.json", "experiment.yaml") else {"name", "date", "part_of", "status"}
        assert row["message"] or other <= flips, (number, other)  # a digit or letter that flipped is what the file says
        assert row.get("f1_macro") is None or 0 <= row["f1_macro"] <= 1
        if number == n // 2:
            good_rows_are_right(runs, whole)
    assert set(seen) == {"same"} if name in ("environment.json", "verdict.json") else seen["told"] > n / 3, seen


def test_odd_things_in_a_folder_of_runs_hide_no_good_run(runs):
    root, whole = runs["one"].parent, board_of(runs["one"].parent)
    (root / "a file").write_text("x")
    (root / "loop").symlink_to(root / "loop")
    (root / "itself").symlink_to(root)
    os.mkfifo(root / "pipe")
    for name in ("status.json", "experiment.yaml", "history.csv", "manifest.parquet"):
        file, data = runs["bad"] / name, (runs["bad"] / name).read_bytes()
        for make in (os.mkfifo, Path.mkdir, lambda file: file.symlink_to(file), lambda file, data=data: file.write_bytes(data.decode("latin-1").encode("utf-16")), lambda file: file.write_bytes(b""), lambda file: os.truncate(os.open(file, os.O_CREAT | os.O_WRONLY), 300_000_000)):
            file.unlink() if not file.is_dir() else file.rmdir()
            make(file)
            start = time.monotonic()
            good_rows_are_right(runs, whole)
            assert time.monotonic() - start < 20
        file.unlink()
        file.write_bytes(data)
    good_rows_are_right(runs, whole)


@pytest.mark.parametrize("damage", ["{", "[]", '{"valid": {"f1_macro": "0.9"}}', '{"valid": 3}', "\ufeff{}", "nul\0"])
def test_commands_that_meet_a_damaged_run_go_on_or_say_so(runs, project, damage):
    (runs["bad"] / "metrics.json").write_text(damage)
    cwd, photo = runs["one"].parent.parent, next((project / "photos").rglob("*.jpg"))
    assert snakecls("runs", "--json", cwd=cwd).returncode == 0
    for words in (["predict", photo, "--model", "one"], ["evaluate", "--model", "two", "--data", project / "photos"], ["ensemble", "one", "two"]):
        done = snakecls(*words, cwd=cwd)
        assert done.returncode == 0, done.stderr
    done = snakecls("train", "--data", project / "photos", *SMALL, *ONE, "--parent", "bad", cwd=cwd) if damage in ("{", "[]") else None
    assert done is None or (done.returncode == 0 and "not compared with" in done.stderr), done.stderr
    assert "Traceback" not in (done.stderr if done else "")


def kill(run: Path, **status) -> None:
    "Leave a run as kill -9 does in the middle of its training."
    for name in ("metrics.json", "verdict.json", "report.html", "export.pkl", "predictions-valid.parquet", "predictions-test.parquet"):
        (run / name).unlink(missing_ok=True)
    shutil.rmtree(run / "best", ignore_errors=True)
    old = json.loads((run / "status.json").read_text())
    (run / "status.json").write_text(json.dumps({key: old[key] for key in ("name", "started", "host", "pid")} | {"status": "running"} | status))


def test_the_next_command_completes_a_killed_runs_records_once(runs, project):
    cwd, logbook = runs["one"].parent.parent, runs["one"].parent.parent / "notes.md"
    kill(runs["bad"], logbook=str(logbook), command="snakecls train it")
    done = snakecls("runs", cwd=cwd)
    assert "was killed" in done.stderr and f"snakecls evaluate --model {runs['bad'].name}" in done.stderr and "killed" in done.stdout
    status = json.loads((runs["bad"] / "status.json").read_text())
    assert status["status"] == "killed" and "the best so far, epoch 1 of stage 1" in status["message"] and status["ended"]
    entry = logbook.read_text()
    assert entry.count("(killed)") == 1 and "snakecls train it" in entry and runs["bad"].name in entry
    for words in (["runs"], ["evaluate", "--model", "bad"], ["runs"]):
        assert "was killed" not in snakecls(*words, cwd=cwd).stderr
    assert logbook.read_text() == entry and (runs["bad"] / "best" / "bundle.json").exists()


def test_an_older_versions_killed_run_gets_its_records_too(runs):
    cwd = runs["one"].parent.parent
    (cwd / "logbook.md").write_text("# Logbook\n")
    kill(runs["bad"])
    assert snakecls("predict", "--model", "bad", next(iter(pd.read_parquet(runs["one"] / "manifest.parquet")["path"])), cwd=cwd).returncode == 0
    assert read_status(runs["bad"])["status"] == "killed" and (cwd / "logbook.md").read_text().count("(killed)") == 1


def test_a_run_that_lives_is_left_alone_here_and_on_other_machines(runs):
    cwd = runs["one"].parent.parent
    with RunFolder.open(runs["bad"]).start():
        assert "was killed" not in snakecls("runs", cwd=cwd).stderr and read_status(runs["bad"])["status"] == "running"
    kill(runs["bad"], host="another-machine", beats=30.0)
    os.utime(runs["bad"] / ".lock")
    assert "was killed" not in snakecls("runs", cwd=cwd).stderr and read_status(runs["bad"])["status"] == "running"
    for file in runs["bad"].iterdir():
        os.utime(file, (1, 1), follow_symlinks=False)
    os.utime(runs["bad"] / "status.json", (time.time() - 3600,) * 2)
    assert "was killed" in snakecls("runs", cwd=cwd).stderr


def test_a_killed_run_in_a_folder_that_cannot_be_written_is_told_and_listed(runs, monkeypatch):
    import snakecls.workflow.killed as module

    def read_only(*given):
        raise OSError(errno.EROFS, "Read-only file system")

    kill(runs["bad"])
    monkeypatch.setattr(module, "open_lock", read_only)
    done = snakecls("runs", cwd=runs["one"].parent.parent)
    assert done.returncode == 0 and "its folder cannot be written (Read-only file system)" in done.stderr and runs["bad"].name in done.stdout


def test_a_disk_that_is_full_at_any_write_of_the_end_leaves_a_state_that_can_be_read(project, tmp_path, monkeypatch):
    import snakecls.disk as disk
    import snakecls.workflow.run as module

    real, finish, writes = os.replace, module.finish_records, Counter()

    def replace(source, target, *more):
        if writes["on"]:
            writes["n"] += 1
            if writes["n"] >= writes["fail"]:  # from here on the disk is full
                raise OSError(errno.ENOSPC, "No space left on device", str(target))
        return real(source, target, *more)

    def counted(*given, **more):
        writes["on"] = 1
        return finish(*given, **more)

    monkeypatch.setattr(disk.os, "replace", replace)
    monkeypatch.setattr(module, "finish_records", counted)
    states = []
    for k in range(1, 40, 2):  # every second write
        root = tmp_path / f"runs{k}"
        writes.clear()
        writes["fail"] = k
        done = snakecls("train", "--data", project / "photos", *SMALL, *ONE, "--runs", root, "--logbook", tmp_path / f"{k}.md", cwd=tmp_path)
        writes["on"] = 0
        run = next(root.iterdir())
        assert "Traceback" not in done.stderr, done.stderr
        metrics, status = RunFolder(run).metrics(), read_status(run)
        assert not list(run.glob(".*.json")) and not list(run.glob(".*.parquet"))  # nothing half written is left
        if done.returncode:
            assert status["status"] == "failed" and "he disk is full" in status["message"] and run.name in status["message"]
        found = snakecls("evaluate", "--model", run.name, "--runs", root, "--json", cwd=tmp_path)
        assert found.returncode == 0, found.stderr
        if metrics.get("valid"):
            assert (run / "predictions-valid.parquet").exists() and (run / "predictions-test.parquet").exists()
        states.append((bool(metrics.get("valid")), (run / "export.pkl").exists(), (run / "report.html").exists(), done.returncode))
        if writes["n"] < k:
            break
    assert states[-1] == (True, True, True, 0) and states[0][3] == 1
    assert states == sorted(states, key=lambda state: (state[:3], -state[3]))  # scores come before copies and pages
    assert (True, False, False, 1) in states


def test_a_run_whose_folder_is_gone_breaks_no_other(tmp_path):
    gone, other = RunFolder.create(tmp_path / "gone", "first"), RunFolder.create(tmp_path / "other", "second")
    shutil.rmtree(tmp_path / "gone")
    logging.getLogger("snakecls").warning("a line that only one of them can keep")
    other.finish()
    with suppress(OSError, UserError):
        gone.finish()
    assert "a line that only one of them can keep" in (other.path / "run.log").read_text()
