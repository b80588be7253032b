"""Commands end with all that they started, and in one sentence wherever they are run; seconds each, so that few are started."""
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import REPO
from PIL import Image

from snakecls.core import UserError
from snakecls.disk import check_writable
from snakecls.workflow.recorder import check_places

CODE = f"import sys; sys.path.insert(0, {str(REPO)!r}); sys.argv[0] = 'snakecls'; from snakecls.cli import main; main()"


def start(*words: object, cwd: Path, **more) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, "-c", CODE, *map(str, words)], cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, **more)


def started_by(process: subprocess.Popen) -> list[int]:
    "List the living processes of its session but itself."
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            state, _, _, session = (folder / "stat").read_text().rsplit(")", 1)[1].split()[:4]
        except OSError:
            continue
        if int(session) == process.pid and state != "Z" and int(folder.name) != process.pid:
            found.append(int(folder.name))
    return found


def wait_until(condition, seconds: float) -> bool:
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.05)
    return condition()


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    "Photos that take a while: 240 names for 12 contents, none of which a pass has seen before it has read it."
    folder, generator = tmp_path_factory.mktemp("many") / "photos", np.random.default_rng(0)
    pixels = generator.integers(0, 255, (1000, 1000, 3), dtype=np.uint8)
    for label in "ab":
        (folder / label).mkdir(parents=True)
        for number in range(120):
            pixels[0, 0] = number, ord(label), 0
            Image.fromarray(pixels).save(folder / label / f"{number}.bmp")
    return folder


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="processes are looked up in /proc")
@pytest.mark.parametrize("words", [("check", "photos", "--files-only"),
                                   ("train", "--data", "photos", "--set", "model.arch=test_resnet", "--set", "model.weights=none", "--set", "train.num_workers=2", "--set", "schedule=[{size: 128, epochs: 500}]", "--set", "track=[]")], ids=["check", "train"])
def test_workers_end_with_a_killed_command(photos, words):
    process = start(*words, cwd=photos.parent)
    assert wait_until(lambda: len(started_by(process)) >= 2 or process.poll() is not None, 120) and process.poll() is None
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert wait_until(lambda: not started_by(process), 10), started_by(process)
    process.communicate()


def test_a_worker_ends_where_no_signal_tells_it(tmp_path, monkeypatch):
    "The watch alone, as on macOS: its parent is killed while it sleeps; of two workers, the first one's pipe is held open by the second."
    code = ("import ctypes, os, signal, sys, time; sys.platform = 'other'; from snakecls.workers import worker_processes\n"
            "def work(n): os.write(1, f'{os.getpid()}\\n'.encode()); time.sleep(100)\n"
            "with worker_processes(2) as pool: list(pool.map(work, [1, 2]))")
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(REPO)})
    workers = [int(process.stdout.readline()) for _ in range(2)]
    process.kill()
    process.wait()

    def gone(worker: int) -> bool:
        try:
            return Path(f"/proc/{worker}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
        except OSError:
            return True
    assert wait_until(lambda: all(map(gone, workers)), 10)


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="processes are looked up in /proc")
def test_ctrl_c_waits_for_no_photo(photos):
    process = start("check", "photos", "--files-only", "--output", "other", cwd=photos.parent)
    assert wait_until(lambda: len(started_by(process)) >= 2, 120)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: the workers get it, too
    said = process.communicate(timeout=60)[1]
    assert process.returncode == 130 and said == "snakecls: stopped by Ctrl-C.\n" and not started_by(process)


def room(folder: Path) -> int:
    return os.statvfs(folder).f_bavail * os.statvfs(folder).f_frsize


@pytest.mark.parametrize("place, needed, told", [
    ("file/inside", 1, "is a file"), ("nowhere/inside", 1, "a link that leads nowhere"), ("n" * 300, 1, "too long"), ("a/" * 30 + "n" * 256, 1, "too long"), ("zero\0", 1, "zero"),
    ("loop/inside", 1, "leads nowhere"), ("new/folder", 10**15, "MB are needed and there is no room for them")])
def test_a_place_that_cannot_take_what_comes_is_told(tmp_path, place, needed, told):
    (tmp_path / "file").touch()
    (tmp_path / "nowhere").symlink_to("nothing")
    (tmp_path / "loop").symlink_to("loop")
    before = sorted(path.name for path in tmp_path.iterdir())
    with pytest.raises(UserError, match=told):
        check_writable(tmp_path / place, "--output", needed)
    assert sorted(path.name for path in tmp_path.iterdir()) == before
    check_writable(tmp_path / "new/folder", "--output", 10**6)


def test_a_limit_of_the_process_is_told_before_photos_are_read(photos, tmp_path):
    code = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000)); {CODE}"
    done = subprocess.run([sys.executable, "-c", code, "check", "photos", "--output", tmp_path / "out"], cwd=photos.parent, capture_output=True, text=True)
    assert done.returncode == 2 and "there is no room for them" in done.stderr and len(done.stderr.splitlines()) == 1, done.stderr
    assert not (tmp_path / "out").exists()


def test_a_logbook_that_is_a_pipe_is_refused(tmp_path):
    os.mkfifo(tmp_path / "logbook.md")
    with pytest.raises(UserError, match="is a pipe, a socket or a device"):
        check_places(tmp_path / "runs", tmp_path / "logbook.md")


@pytest.mark.skipif(os.name == "nt", reason="a shell that closes streams")
@pytest.mark.parametrize("closed, code, out, err", [("2>&-", 2, "", ""), (">&-", 2, "", "nowhere.jpg does not exist"), ("2>/dev/full", 2, "", ""), (">&- 2>&- <&-", 2, "", "")])
def test_closed_and_full_streams(tmp_path, closed, code, out, err):
    "What belongs to standard error does not appear in standard output, and an exit code tells what the closed stream cannot."
    done = subprocess.run(["bash", "-c", f'"$0" -c "$1" predict nowhere.jpg {closed}', sys.executable, CODE], cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (code, out) and err in done.stderr and "Traceback" not in done.stderr


def test_a_name_that_is_too_long_is_one_sentence(tmp_path):
    done = subprocess.run([sys.executable, "-c", CODE, "predict", "n" * 300], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2 and "is too long; give another" in done.stderr and len(done.stderr.splitlines()) == 1 and len(done.stderr) < 200, done.stderr
