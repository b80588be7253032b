"""The folder that `publish --space --dry-run` writes, as Hugging Face runs it: an environment of its requirements alone, `python app.py`, a browser.

PyTorch is hard-linked from the environment of the tests, as a second copy takes 5 GB; everything else is installed anew, from its package index.
"""
import re
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import CI, FACTS, REPO, WATCH_NETWORK, RunningApp, do_without, need
from warm import run_command

gradio_client = need("gradio_client")
pytestmark = pytest.mark.slow
NAME, HOST = "maria/tiny-snakes", "maria-tiny-snakes.hf.space"


@pytest.fixture(scope="module")
def space(tiny_bundle, tmp_path_factory) -> Path:
    "The folder, as the command writes it."
    place = tmp_path_factory.mktemp("publish")
    done = run_command("publish", tiny_bundle, "--space", NAME, "--dry-run", "space", cwd=place)
    assert done.returncode == 0, done.stderr
    return place / "space"


@pytest.fixture(scope="module")
def fresh(space, tmp_path_factory) -> Path:
    "The Python of an environment that has what the Space asks for, and what every Space of Gradio gets beside it."
    from make_env import link_pytorch, make_venv

    python = make_venv(tmp_path_factory.mktemp("fresh") / "venv")
    try:
        link_pytorch(python, Path(sys.prefix))
    except OSError as e:
        do_without(f"PyTorch cannot be linked into a fresh environment, and a second copy is too large: {e}")
    asked = [line for line in (space / "requirements.txt").read_text().splitlines() if not line.startswith("--")]  # PyTorch is there
    gradio = re.search(r'^sdk_version: "(.+)"$', (space / "README.md").read_text(encoding="utf-8"), re.MULTILINE)[1]
    command = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *asked, f"gradio[oauth,mcp]=={gradio}", "spaces"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode and not CI and re.search("NewConnectionError|No matching distribution", done.stderr + done.stdout):
        pytest.skip("no package index is in reach")
    assert done.returncode == 0, done.stdout + done.stderr
    site = next((python.parent.parent / "lib").glob("python3.*/site-packages"))
    (site / "sitecustomize.py").write_text(WATCH_NETWORK)
    return python


@pytest.fixture(scope="module")
def served(space, fresh, tmp_path_factory):
    "The Space, started as Hugging Face does: its environment alone, a home of its own, every address, its name."
    home = tmp_path_factory.mktemp("home")
    app = RunningApp(space / "app.py", space, tmp_path_factory.mktemp("scratch"), python=fresh, whole={
        "HOME": str(home), "PATH": f"{fresh.parent}:/usr/bin:/bin", "PYTHONPATH": str(space), "PYTHONUNBUFFERED": "1", "SYSTEM": "spaces", "SPACE_ID": NAME,
        "SPACE_HOST": HOST, "GRADIO_SERVER_NAME": "0.0.0.0", "GRADIO_ALLOW_FLAGGING": "never", "GRADIO_NUM_PORTS": "1", "GRADIO_THEME": "huggingface"})
    yield app.wait()
    app.stop()


def test_nothing_of_the_developer_is_seen(space, fresh):
    def place_of(module: str, cwd: Path) -> str:
        code = f"import importlib.util as u; found = u.find_spec('{module}'); print(found and found.origin)"
        return subprocess.run([str(fresh), "-c", code], cwd=cwd, env={"PATH": "/usr/bin:/bin", "WATCH_NETWORK": "/dev/null"}, capture_output=True, text=True, check=True).stdout.strip()

    assert place_of("snakecls", space) == str(space / "snakecls" / "__init__.py")
    assert place_of("snakecls", fresh.parent) == "None" == place_of("fastai", fresh.parent) == place_of("nbdev", fresh.parent)
    assert str(fresh.parent.parent) in place_of("gradio", fresh.parent) and str(fresh.parent.parent) in place_of("torch", fresh.parent)
    lines = (space / "requirements.txt").read_text().splitlines()
    assert lines[0].startswith("--extra-index-url ") and lines[0].endswith("/whl/cpu") and not [line for line in lines[1:] if line.startswith("-")]


def test_a_photo_dropped_on_the_space_gets_three_answers(served, browser, snake_photos, tiny_bundle):
    from snakecls.deploy.predict import Predictor

    page = browser.new_page(viewport={"width": 390, "height": 844})
    outside: list[str] = []
    page.on("request", lambda request: request.url.startswith((served.url, "data:", "blob:")) or outside.append(request.url))
    page.goto(served.url)
    page.wait_for_selector("#result h2")
    page.set_input_files("#photo input[type=file]", str(snake_photos[0]))
    page.wait_for_selector(".sc-row", timeout=60_000)
    rows, expected = page.query_selector_all(".sc-row"), Predictor(tiny_bundle).predict(snake_photos[0])
    assert len(rows) == 3 == len(expected)
    assert [row.get_attribute("data-label") for row in rows] == [p.label for p in expected]
    assert [float(row.get_attribute("data-prob")) for row in rows] == pytest.approx([p.prob for p in expected], abs=1e-4)
    assert all(FACTS[p.label]["common_name"] in row.inner_text() for row, p in zip(rows, expected))
    page.click("#look")
    page.wait_for_selector("#looked img", timeout=60_000)
    page.get_by_role("tab", name="About this model").click()
    assert "Random weights: for tests only." in page.inner_text("#about")
    assert outside == []
    page.close()


def test_programs_ask_the_space(served, snake_photos, tiny_bundle):
    import httpx

    from snakecls.deploy.predict import Predictor

    expected = Predictor(tiny_bundle).predict(snake_photos[1])
    client = gradio_client.Client(served.url, verbose=False, analytics_enabled=False)
    answer = client.predict(gradio_client.handle_file(str(snake_photos[1])), api_name="/predict")
    assert [row["label"] for row in answer] == [p.label for p in expected]
    assert [row["prob"] for row in answer] == pytest.approx([p.prob for p in expected], abs=1e-4)
    named = httpx.get(f"{served.url}health", headers={"Host": HOST})  # as the Hub's proxy asks
    assert named.status_code == 200 and named.json()["labels"] == len(FACTS)
    assert httpx.get(f"{served.url}health", headers={"Host": "evil.example"}).status_code == 403


def test_the_space_wrote_and_asked_for_nothing(served, space):
    assert served.asked() == []
    log = served.log.read_text()
    assert f"Serving {space / 'bundle'}" in log and "Traceback" not in log and str(REPO) not in log, log
