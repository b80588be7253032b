"""How a command ends: which model is meant, what a stopped run leaves, and one sentence for whatever goes wrong."""
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
CODE = f"import sys; sys.path.insert(0, {str(ROOT)!r}); sys.argv[0] = 'snakecls'; from snakecls.cli import main; main()"


def snakecls(*words: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-c", CODE, *words], capture_output=True, text=True, errors="surrogateescape", cwd=cwd, env=os.environ | {"NO_COLOR": "1", "COLUMNS": "200"} | environment, timeout=300)


SMALL = ["--set", "model.arch=test_resnet", "--set", "model.weights=none", "--set", "train.num_workers=0", "--set", "data.valid=0.25", "--set", "data.test=0.2"]


@pytest.fixture(scope="module")
def shop(tmp_path_factory) -> Path:
    "A folder with photos in clothes/, and a run of the same name."
    from conftest import draw_snake

    folder = tmp_path_factory.mktemp("ends")
    for number in range(24):
        file = folder / "clothes" / ("dress", "Vipère 蛇")[number % 2] / f"{number}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        draw_snake(number, (48, 40)).save(file)
    done = snakecls("train", "--data", "clothes/", *SMALL, "--set", "schedule=[{size: 32, epochs: 0, head: probe}]", "--json", cwd=folder)
    assert done.returncode == 0, done.stderr
    (folder / "run.txt").write_text(json.loads(done.stdout)["run"])
    return folder


def test_a_folder_of_photos_does_not_hide_the_run_of_its_name(shop):
    run = (shop / "run.txt").read_text()
    for words in (["evaluate", "clothes"], ["evaluate", "--model", "clothes/"], ["evaluate", "-m", run], ["evaluate", "--model", f"runs/{run}"]):
        done = snakecls(*words, "--json", cwd=shop)
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["bundle"].startswith(f"runs/{run}")
    photo = str(next((shop / "clothes").rglob("*.jpg")))
    for option in ("--model", "--bundle"):
        assert snakecls("predict", photo, option, "clothes", cwd=shop).returncode == 0
    for words in (["export", "out/one", "--model", "clothes"], ["publish", "--model", "clothes", "--space", "me/x", "--dry-run", "out/space"], ["publish", "clothes", "--space", "me/x", "--dry-run", "out/space2"]):
        done = snakecls(*words, "--json", cwd=shop)
        assert done.returncode == 0 and json.loads(done.stdout)["model"].startswith(f"runs/{run}"), done.stderr
    done = snakecls("evaluate", "./clothes", cwd=shop)
    assert done.returncode == 2 and "neither a bundle" in done.stderr
    done = snakecls("evaluate", "clothes", "--model", "other", cwd=shop)
    assert done.returncode == 2 and "two models are named" in done.stderr


def test_two_models_of_one_name_are_a_question(shop):
    run = (shop / "run.txt").read_text()
    shutil.move(shop / "clothes", shop / "photos")
    shutil.copytree(shop / "runs" / run / "best", shop / "clothes")
    try:
        done = snakecls("app", "clothes", cwd=shop)
        assert done.returncode == 2 and run in done.stderr and "./clothes" in done.stderr
    finally:
        shutil.rmtree(shop / "clothes")
        shutil.move(shop / "photos", shop / "clothes")


@pytest.mark.parametrize("command", ["evaluate", "predict", "app", "ensemble", "export", "publish"])
def test_every_command_names_a_model_by_the_same_option(command, tmp_path):
    assert "--model" in snakecls(command, "--help", cwd=tmp_path).stdout
