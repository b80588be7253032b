"""What README and Dockerfile tell one to type is typed here: a training, and an address that answers photos.

An engine for containers is not needed: the image's environment, its command and its health check are run as they are written, with its folders elsewhere.
"""
import json
import os
import re
import shlex
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from conftest import REPO, draw_colours, free_port

BIN = Path(sys.executable).parent
DOCKERFILE = (REPO / "Dockerfile").read_text(encoding="utf-8")


def commands_of(heading: str) -> list[list[str]]:
    "Read the first block of commands below a heading of the README."
    text = (REPO / "README.md").read_text(encoding="utf-8").split(f"\n## {heading}\n", 1)[1]
    return [shlex.split(line, comments=True) for line in re.search(r"```sh\n(.+?)```", text, re.DOTALL)[1].splitlines()]


def instruction(name: str) -> list[str]:
    "Read an instruction of the Dockerfile that ends in a list of words."
    lines = re.sub(r"^#.*\n", "", DOCKERFILE, flags=re.MULTILINE).replace("\\\n", " ").splitlines()
    return json.loads(re.search(r"\[.*\]", [line for line in lines if line.startswith(name)][-1])[0])


def container(place: Path) -> dict[str, str]:
    "Give the environment of the image, its /tmp and /bundle in a folder, and nothing of this process's."
    pairs = re.search(r"^ENV (.+?)\n\n", DOCKERFILE, re.DOTALL | re.MULTILINE)[1].replace("\\\n", " ").split()
    values = dict(pair.split("=", 1) for pair in pairs)
    (place / "tmp" / "cache").mkdir(parents=True, exist_ok=True)
    for key, value in values.items():
        if value.startswith(("/tmp", "/bundle")):
            values[key] = f"{place}{value}"
    return values | {"PATH": f"{BIN}{os.pathsep}/usr/bin:/bin", "OMP_NUM_THREADS": "1", "PORT": str(free_port()), "GRADIO_SERVER_NAME": "127.0.0.1"}


def start(words: list[str], cwd: Path, environment: dict[str, str]):
    "Start a command that serves, and wait for its address."
    log = cwd / f"{Path(words[0]).name}-{environment['PORT']}.log"
    with open(log, "w") as stream:
        process = subprocess.Popen(words, cwd=cwd, env=environment, stdout=stream, stderr=subprocess.STDOUT)
    end = time.monotonic() + 120
    while time.monotonic() < end and process.poll() is None:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{environment['PORT']}/health", timeout=2).close()
            return process, log
        except OSError:
            time.sleep(0.2)
    process.kill()
    raise AssertionError(log.read_text())


def ask(port: str, photo: Path) -> list[dict]:
    request = urllib.request.Request(f"http://127.0.0.1:{port}/predict", photo.read_bytes(), {"Content-Type": "image/png"})
    with urllib.request.urlopen(request, timeout=60) as reply:
        return json.loads(reply.read())


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    "The folder in which the README's and the Dockerfile's training ran, in the image's environment."
    work = tmp_path_factory.mktemp("work")
    draw_colours(work / "photos", n=30, step=60)
    said = shlex.split(re.search(r"^# Train: +docker run .+? snakecls (snakecls .+)$", DOCKERFILE, re.MULTILINE)[1])
    assert said == commands_of("Serve it")[0]
    environment = container(tmp_path_factory.mktemp("container"))
    done = subprocess.run([str(BIN / said[0]), *said[1:]], cwd=work, env=environment, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stdout + done.stderr
    assert {path.name for path in work.iterdir() if path.name[0] != "."} == {"logbook.md", "photos", "runs"}
    return work


def test_two_commands_of_the_readme_lead_to_an_address(trained):
    _, second = commands_of("Serve it")
    environment = {"PATH": f"{BIN}:/usr/bin:/bin", "HOME": str(trained), "PORT": str(free_port()), "OMP_NUM_THREADS": "1"}
    process, log = start([str(BIN / second[0]), *second[1:]], trained, environment)
    try:
        photo = next((trained / "photos" / "red").iterdir())
        assert {row["label"] for row in ask(environment["PORT"], photo)} == {"red", "green"} and ask(environment["PORT"], photo)[0]["label"] == "red"
        with urllib.request.urlopen(f"http://127.0.0.1:{environment['PORT']}/") as page:
            assert b"gradio" in page.read()
        assert f":{environment['PORT']}" in log.read_text()
    finally:
        process.terminate()
        process.wait(20)


def test_the_container_serves_a_mounted_bundle_and_its_health_check_tells(trained, tmp_path):
    environment = container(tmp_path)
    (best,) = (trained / "runs").glob("*/best")
    (tmp_path / "bundle").symlink_to(best, target_is_directory=True)
    program, check = instruction("CMD"), instruction("HEALTHCHECK")
    assert program[0] == "python" == check[0] and program[1] == "/opt/snakecls/app.py"

    def healthy() -> int:
        return subprocess.run([sys.executable, *check[1:]], env=environment, capture_output=True, timeout=60).returncode

    assert healthy() != 0
    process, log = start([sys.executable, str(REPO / "app.py")], tmp_path, environment)
    try:
        assert healthy() == 0
        assert ask(environment["PORT"], next((trained / "photos" / "green").iterdir()))[0]["label"] == "green"
    finally:
        process.terminate()
        assert process.wait(20) in (0, -15, 143)
    assert healthy() != 0 and "Traceback" not in log.read_text()


def test_the_sentence_about_shared_memory_is_the_one_that_is_documented(monkeypatch):
    import shutil
    from collections import namedtuple

    from snakecls.data import datablocks

    monkeypatch.setattr(datablocks.os.path, "isdir", lambda path: True)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: namedtuple("usage", "total used free")(67_108_864, 0, 67_108_864))
    workers, sentence = datablocks._fitting_workers(4, 10_000_000)
    page = "".join("".join(cell["source"]) for cell in json.loads((REPO / "nbs" / "commands.ipynb").read_text(encoding="utf-8"))["cells"])
    assert workers == 2 and sentence in page
    assert sentence.split(" has ")[0] in DOCKERFILE and "--shm-size 2g" in page
