"""Folds and grids that are stopped, killed or lose photos; a group of runs says how many are done and what can be used."""
import json
import os
import signal

import pytest
from test_faults_ends import SMALL, snakecls
from test_hardening_runs import make_photos


def train_folds(tmp_path, monkeypatch, act):
    "Train two folds, and act at the end of the second one's epoch."
    import snakecls.workflow.run as module

    make_photos(tmp_path / "photos", 24)

    def describe(row, monitor):
        if len(list((tmp_path / "runs").glob("*-fold2"))) == 1:
            act()
        return "epoch"

    monkeypatch.setattr(module, "_describe_epoch", describe)
    return snakecls("train", "--data", "photos", *SMALL, "--set", "schedule=[{size: 32, epochs: 1}]", "--folds", "2", cwd=tmp_path)


def interrupt():
    raise KeyboardInterrupt


def test_folds_that_are_stopped_say_how_many_are_done_and_how_to_go_on(tmp_path, monkeypatch):
    done = train_folds(tmp_path, monkeypatch, interrupt)
    assert done.returncode == 130 and "stopped after 1 of 2 runs" in done.stderr.lower(), done.stderr
    folder = next((tmp_path / "runs").glob("*-folds"))
    said = json.loads((folder / "progress.json").read_text())
    assert (said["status"], said["done"], said["of"]) == ("stopped", 1, 2)
    assert f"](runs/{folder.name})" in (tmp_path / "logbook.md").read_text() and "stopped after 1 of 2" in (tmp_path / "logbook.md").read_text()
    listed = snakecls("runs", cwd=tmp_path)
    assert listed.returncode == 0 and "1 of 2 runs" in listed.stderr, listed.stderr
    said["status"] = "running"  # as kill -9 leaves it
    (folder / "progress.json").write_text(json.dumps(said))
    assert "Killed after 1 of 2 runs".lower() in snakecls("runs", cwd=tmp_path).stderr.lower()
    assert json.loads((folder / "progress.json").read_text())["status"] == "killed"
    for damage in ("{", "[]", '{"status": "running", "of": "\\u0000"}', '{"status": 3, "kind": [], "of": 2}'):
        (folder / "progress.json").write_text(damage)
        assert snakecls("runs", cwd=tmp_path).returncode == 0


def test_folds_where_one_lost_a_test_photo_are_joined_on_the_others(tmp_path, monkeypatch):
    import pandas as pd

    import snakecls.workflow.run as module

    make_photos(tmp_path / "photos", 32)

    def describe(row, monitor):
        for run in (tmp_path / "runs").glob("*-fold2"):
            table = pd.read_parquet(run / "manifest.parquet")
            path = table["path"][table["split"] == "test"].iloc[0]
            if os.path.exists(path):
                os.unlink(path)
        return "epoch"

    monkeypatch.setattr(module, "_describe_epoch", describe)
    done = snakecls("train", "--data", "photos", *SMALL, "--set", "data.test=0.25", "--set", "schedule=[{size: 32, epochs: 1}]", "--folds", "2", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    folds = json.loads(next((tmp_path / "runs").glob("*-folds/folds.json")).read_text())
    runs = {run: json.loads((tmp_path / "runs" / run / "metrics.json").read_text())["test"]["n"] for run in folds["runs"]}
    assert sorted(runs.values()) == [folds["test"]["n"], folds["test"]["n"] + 1]


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="there is no timer")
def test_a_signal_that_a_destructor_swallows_ends_the_command_all_the_same(tmp_path):
    import subprocess
    import sys

    (tmp_path / "swallow.py").write_text("""
import os, signal, time
from snakecls.workflow.terminal import stop_on_signals
class Swallow:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGHUP)
        sum(range(10000))
@stop_on_signals()
def command():
    thing = Swallow()
    del thing
    end = time.time() + 6
    while time.time() < end:
        time.sleep(0.05)
    print("went on")
command()
""")
    done = subprocess.run([sys.executable, "swallow.py"], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 129 and done.stdout == "" and done.stderr.strip() == "snakecls: stopped by SIGHUP.", done.stderr


def test_a_pipe_that_takes_a_files_place_in_between_does_not_hang(tmp_path, monkeypatch):
    from snakecls.disk import NotAFileError, open_file

    os.mkfifo(tmp_path / "photo.jpg")
    (tmp_path / "whole.jpg").write_bytes(b"whole")
    real = os.stat
    monkeypatch.setattr(os, "stat", lambda path, *args, **more: real(tmp_path / "whole.jpg") if str(path).endswith("photo.jpg") else real(path, *args, **more))
    with pytest.raises(NotAFileError):
        open_file(tmp_path / "photo.jpg")
    with open_file(tmp_path / "whole.jpg") as stream:
        assert stream.read() == b"whole" and os.get_blocking(stream.fileno())


def test_a_photo_that_the_machine_failed_at_is_not_called_bad(tmp_path, monkeypatch):
    from snakecls.clean import photo_facts
    from snakecls.clean.files import check_files

    make_photos(tmp_path / "photos", 4)
    paths, real = sorted(map(str, (tmp_path / "photos").rglob("*.jpg"))), photo_facts.examine
    for error in (MemoryError(), OSError(5, "Input/output error")):
        def decode(*given, error=error, **more):
            raise error

        with monkeypatch.context() as patch:
            patch.setattr(photo_facts, "decode", decode)
            facts = [{"path": path, **real(path)} for path in paths]
            assert {row["issue"] for row in facts} == {"not looked at"}
            issues = check_files(paths, n_workers=1)
        assert set(issues["issue"]) == {"not looked at"} and set(issues["verdict"]) == {"look"}
