"Run folders, logbook and W&B as several processes, crashes and silent servers meet them."
import os
import re
import socket
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path

import pytest

from snakecls.core import UserError
from snakecls.workflow.logbook import LogbookEntry, LogbookTracker, add_entry
from snakecls.workflow.trackers import Trackers, WandbTracker
from snakecls.workflow.run_folder import RunFolder, find_run, list_runs, read_status

REPO = Path(__file__).resolve().parent.parent


def run_python(code: str, *args: object, **environment: str) -> subprocess.Popen:
    "Start a Python process that imports this repository's snakecls."
    env = {**os.environ, "PYTHONPATH": str(REPO), **environment}
    return subprocess.Popen([sys.executable, "-c", code, *map(str, args)], env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_runs_that_start_at_once_get_folders_of_their_own(tmp_path):
    code = ("import sys; from snakecls.workflow.run_folder import make_run_path; from datetime import datetime\n"
            "for _ in range(10): print(make_run_path(sys.argv[1], 'same', now=datetime(2026, 1, 1)).name)")
    processes = [run_python(code, tmp_path) for _ in range(4)]
    names = [name for process in processes for name in process.communicate()[0].split()]
    assert len(names) == len(set(names)) == 40
    assert {path.name for path in tmp_path.iterdir()} == set(names)


def test_a_killed_run_is_stopped_and_can_be_resumed_only_once(tmp_path):
    code = ("import sys, time; from snakecls.workflow.run_folder import RunFolder\n"
            "run = RunFolder.create(sys.argv[1], 'killed'); run.add_epoch({'epoch': 1}); print(run.path, flush=True); time.sleep(60)")
    process = run_python(code, tmp_path)
    path = Path(process.stdout.readline().strip())
    assert read_status(path)["status"] == "running"
    with pytest.raises(UserError, match="still running"):
        RunFolder.open(path).start()
    process.kill()
    process.communicate()
    assert read_status(path)["status"] == "killed"
    with RunFolder.open(path).start() as run:
        assert list_runs(tmp_path).status.tolist() == ["running"]
        run.add_epoch({"epoch": 0})  # a probe, and no epoch
        run.add_epoch({"epoch": 2})
    assert list_runs(tmp_path)[["status", "epochs"]].values.tolist() == [["finished", 2]]


def test_a_run_that_fails_after_its_metrics_wins_nothing(tmp_path):
    logbook = tmp_path / "logbook.md"
    for f1 in (0.5, 0.9):
        try:
            with RunFolder.create(tmp_path, "good" if f1 == 0.5 else "bad") as run:
                tracker = LogbookTracker(logbook)
                tracker.start({}, run)
                run.write_metrics({"labels": ["a"], "valid": {"f1_macro": f1, "n": 3}})
                if f1 == 0.9:
                    raise OSError("no room for the bundle")
                tracker.finish(run.metrics())
        except OSError:
            tracker.finish({})
    assert list_runs(tmp_path).name.tolist() == ["good", "bad"]
    headings = [line for line in logbook.read_text().splitlines() if line.startswith("## ")]
    assert len(headings) == 2 and "(failed)" in headings[0] and "(first of its task)" in headings[1]


def test_the_leaderboard_survives_damaged_runs(tmp_path):
    for name in ("good", "bad metrics", "bad status"):
        with RunFolder.create(tmp_path, name) as run:
            run.write_metrics({"valid": {"f1_macro": 0.5, "n": 3}})
    (find_run(tmp_path, "bad metrics") / "metrics.json").write_text('{"valid": ')
    (find_run(tmp_path, "bad status") / "status.json").write_text("")
    board = list_runs(tmp_path)
    assert len(board) == 3 and board.name[0] == "good"
    assert "not valid JSON" in " ".join(board.message)
    assert len(list_runs(tmp_path / "nothing here")) == 0


def test_logbook_entries_of_runs_that_end_at_once_are_all_there(tmp_path):
    logbook = tmp_path / "logbook.md"
    logbook.write_text("# My log\n\nBy hand.\n\n## 2020-01-01: old (kept)\n\nA person's line.\n")
    code = ("import sys; from snakecls.workflow.logbook import *\n"
            "for i in range(10): add_entry(sys.argv[1], LogbookEntry(f'{sys.argv[2]}-{i}?'))")
    processes = [run_python(code, logbook, name) for name in "abcd"]
    assert [process.wait() for process in processes] == [0] * 4
    text = logbook.read_text()
    assert text.startswith("# My log\n\nBy hand.\n\n## ") and text.endswith("## 2020-01-01: old (kept)\n\nA person's line.\n")
    assert set(re.findall(r": (\w-\d)\?", text)) == {f"{name}-{i}" for name in "abcd" for i in range(10)}
    for name in "abcd":  # newest first
        assert re.findall(rf": ({name}-\d)\?", text) == [f"{name}-{i}" for i in reversed(range(10))]


def test_a_logbook_that_is_a_link_stays_one(tmp_path):
    (tmp_path / "real.md").write_text("# Log\n")
    (tmp_path / "logbook.md").symlink_to("real.md")
    add_entry(tmp_path / "logbook.md", LogbookEntry("Linked?"))
    assert (tmp_path / "logbook.md").is_symlink() and "Linked?" in (tmp_path / "real.md").read_text()


TRACK = """
import sys, time
from snakecls.workflow.trackers import Trackers, WandbTracker
from snakecls.workflow.run_folder import RunFolder
with RunFolder.create(sys.argv[1], "tracked") as run:
    trackers = Trackers([WandbTracker()])
    trackers.start({"model": {"arch": "resnet18"}}, run)
    trackers.log({"epoch": 0, "f1_macro": 0.5})
    started = time.time()
    trackers.finish({"f1_macro": 0.5})
print(f"waited {time.time() - started:.1f} ended {time.time()}")
"""


@pytest.fixture(params=["never answers", "answers the first question only"])
def silent_server(request):
    "A server that accepts every connection and then keeps silent, at once or after a first answer."
    server, kept = socket.create_server(("127.0.0.1", 0)), []

    def serve() -> None:
        while True:
            try:
                connection, _ = server.accept()
            except OSError:
                return
            kept.append(connection)
            if request.param.startswith("answers"):
                threading.Thread(target=answer_head, args=(connection,), daemon=True).start()

    def answer_head(connection: socket.socket) -> None:
        if connection.recv(4096).startswith(b"HEAD"):
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")

    threading.Thread(target=serve, daemon=True).start()
    yield f"http://127.0.0.1:{server.getsockname()[1]}"
    server.close()
    for connection in kept:
        connection.close()


def test_a_wandb_server_that_never_answers_costs_ten_seconds_and_a_warning(tmp_path, silent_server):
    process = run_python(TRACK, tmp_path, WANDB_BASE_URL=silent_server, WANDB_API_KEY="f" * 40, WANDB_MODE="online", HOME=str(tmp_path))
    out, err = process.communicate(timeout=60)
    exited = time.time()
    assert process.returncode == 0, err
    waited, ended = map(float, re.match(r"waited (\S+) ended (\S+)\n$", out).groups())
    assert waited < 11 and exited - ended < 3
    assert err.count("TrackerWarning") == 1 and "Traceback" not in err and len(err.splitlines()) <= 2, err
    assert list_runs(tmp_path).status.tolist() == ["finished"]
    assert list(tmp_path.glob("*-tracked/wandb/*/*.wandb")) or "did not finish within" in err


def test_without_a_key_wandb_records_offline_in_the_run_folder(tmp_path):
    process = run_python(TRACK, tmp_path, WANDB_MODE="", WANDB_API_KEY="", NETRC=os.devnull, HOME=str(tmp_path))
    err = process.communicate(timeout=60)[1]
    assert process.returncode == 0 and err.count("TrackerWarning") == 1 and "no API key" in err
    assert list(tmp_path.glob("*-tracked/wandb/offline-run-*/*.wandb"))


@pytest.mark.parametrize("worker, complaint", [("import time; time.sleep(60)", "did not finish within 1 s"),
                                               ("import sys; sys.exit(3)", "")])
def test_a_wandb_process_that_hangs_or_dies_is_left_behind(tmp_path, worker, complaint):
    with RunFolder.create(tmp_path, "stubborn") as run, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        tracker = WandbTracker(command=[sys.executable, "-c", worker], wait_s=1)
        trackers = Trackers([tracker])
        trackers.start({}, run)
        started = time.monotonic()
        for epoch in range(3):
            trackers.log({"epoch": epoch})
            time.sleep(0.2)
        trackers.finish({"f1_macro": 0.5})
    assert time.monotonic() - started < 5 and tracker.process.poll() is not None
    said = [str(one.message) for one in caught if type(one.message).__name__ == "TrackerWarning"]  # and not what the collector finds of other tests
    assert len(said) == 1 and complaint in said[0]
    assert "warning:" in (run / "run.log").read_text()
