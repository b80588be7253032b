"""The folder that becomes a Space works alone."""
import os
import subprocess
import sys
from configparser import ConfigParser

import pytest

from conftest import REPO, need
from packaging.requirements import Requirement

gradio_client = need("gradio_client")


@pytest.fixture(scope="module")
def space(tiny_bundle, tmp_path_factory):
    from snakecls.deploy.hub import write_space

    return write_space(tiny_bundle, tmp_path_factory.mktemp("hub") / "space", space="maria/tiny-snakes")


def test_the_space_answers_from_its_own_folder_alone(space, start_app, tiny_bundle, snake_photos):
    from snakecls.deploy.predict import Predictor

    app = start_app(space / "app.py", space).wait()
    code = "import snakecls, snakecls.deploy.app; print(snakecls.__file__, snakecls.deploy.app.__file__)"
    clean = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    files = subprocess.run([sys.executable, "-c", code], cwd=space, env=clean, capture_output=True, text=True, check=True).stdout.split()
    assert files == [str(space / "snakecls" / "__init__.py"), str(space / "snakecls" / "deploy" / "app.py")]
    assert f"Serving {space / 'bundle'}" in app.log.read_text()
    client = gradio_client.Client(app.url, verbose=False, analytics_enabled=False)
    answer = client.predict(gradio_client.handle_file(str(snake_photos[1])), api_name="/predict")
    expected = Predictor(tiny_bundle).predict(snake_photos[1])
    assert [row["label"] for row in answer] == [p.label for p in expected]
    assert [row["prob"] for row in answer] == pytest.approx([p.prob for p in expected], abs=1e-5)
    assert app.asked() == []


def test_the_space_has_the_same_app_and_versions(space):
    from snakecls.deploy.hub import APP, _requirement_lines

    assert (REPO / "app.py").read_text(encoding="utf-8") == APP == (space / "app.py").read_text(encoding="utf-8")
    assert len(APP.splitlines()) <= 60
    config = ConfigParser(delimiters=["="])
    config.read(REPO / "settings.ini", encoding="utf-8")
    required = {Requirement(line) for line in config["DEFAULT"]["requirements"].split()}  # a wheel writes the same bounds in another order
    wheels, *lines = (space / "requirements.txt").read_text().splitlines()
    assert wheels == "--extra-index-url https://download.pytorch.org/whl/cpu"  # without CUDA
    assert len(lines) > 5
    for line in lines:
        assert line in _requirement_lines() and Requirement(line) in required


def test_the_space_holds_nothing_of_this_machine(space):
    for file in space.rglob("*"):
        if file.is_file() and file.suffix in (".md", ".json", ".txt", ".py"):
            assert str(REPO) not in file.read_text(encoding="utf-8"), file
