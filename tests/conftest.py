"""What several tests share: a tiny bundle, photos, a running app, a browser."""
import atexit
import importlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # the suite was started in the background: what it starts would not hear Ctrl-C
    signal.signal(signal.SIGINT, signal.default_int_handler)

REPO = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(REPO), str(REPO / "tools")]  # the checkout itself, installed or not
os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
if "SNAKECLS_CACHE" not in os.environ:  # not the user's own
    os.environ["SNAKECLS_CACHE"] = tempfile.mkdtemp(prefix="snakecls-cache-")
    atexit.register(shutil.rmtree, os.environ["SNAKECLS_CACHE"], ignore_errors=True)

CI = os.environ.get("SNAKECLS_RUN") == "ci"


def do_without(reason: str) -> None:
    "Skip a test for want of something; where all has to be there, in CI, it fails."
    (pytest.fail if CI else pytest.skip)(reason)


def need_sources() -> None:
    "Skip a file of tests about notebooks and sources where the wheel alone is tested."
    if not (REPO / "snakecls").is_dir():
        pytest.skip("it is about the notebooks and sources, and here is the wheel alone", allow_module_level=True)


def need(module: str):
    "Import a module that the test needs."
    return importlib.import_module(module) if CI else pytest.importorskip(module)


FACTS = {
    "Micrurus fulvius": {"common_name": "Eastern coral snake", "venomous": True, "countries": ["United States"]},
    "Lampropeltis elapsoides": {"common_name": "Scarlet kingsnake", "venomous": False, "countries": ["United States"]},
    "Crotalus adamanteus": {"common_name": "Eastern diamondback rattlesnake", "venomous": True, "countries": ["United States"]},
    "Pantherophis guttatus": {"common_name": "Corn snake", "venomous": False},
    "Natrix natrix": {"common_name": "Grass snake", "venomous": None, "countries": ["Germany", "France"]},
}


def without_seal(values: dict) -> dict:
    "Give the content of a bundle.json as it was before there were seals, so that a test may edit it."
    return {key: value for key, value in values.items() if key != "seal"} | {"format": 1}


def draw_snake(seed: int, size: tuple[int, int] = (120, 90)):
    "Draw a striped tube on a noisy ground; a PIL image."
    import numpy as np
    from PIL import Image

    generator = np.random.default_rng(seed)
    x, y = np.meshgrid(np.linspace(0, 1, size[0]), np.linspace(0, 1, size[1]))
    body = abs(y - 0.5 - 0.25 * np.sin(x * 7 + seed)) < 0.1
    ground = generator.integers(90, 200, (size[1], size[0], 3))
    rings = np.where((x * 14 % 2 < 1)[..., None], generator.integers(0, 255, 3), generator.integers(0, 255, 3))
    return Image.fromarray(np.where(body[..., None], rings, ground).astype(np.uint8))


def draw_colours(folder: Path, n: int = 60, step: int = 8) -> Path:
    "Write tiny photos of noise that is a little redder or a little greener, in a folder for each; gives the folder."
    import numpy as np
    from PIL import Image

    rng = np.random.default_rng(0)
    for i in range(n):
        pixels = rng.integers(0, 120, (36, 36, 3), dtype=np.uint8)
        pixels[..., i % 2] += step
        file = folder / ("red", "green")[i % 2] / f"{i}.png"
        file.parent.mkdir(exist_ok=True, parents=True)
        Image.fromarray(pixels).save(file)
    return folder


@pytest.fixture(scope="session")
def snake_photos(tmp_path_factory) -> list[Path]:
    "Five photos; the first lies on its side, as its EXIF says."
    from PIL import Image

    folder = tmp_path_factory.mktemp("photos")
    for number in range(5):
        exif = Image.Exif()
        exif[0x0112] = 6 if number == 0 else 1
        draw_snake(number, (120 + 10 * number, 90)).save(folder / f"{number}.jpg", quality=92, exif=exif)
    return sorted(folder.glob("*.jpg"))


@pytest.fixture(scope="session")
def photo(tmp_path_factory) -> Path:
    "One drawn snake."
    path = tmp_path_factory.mktemp("photo") / "snake.jpg"
    draw_snake(3).save(path)
    return path


@pytest.fixture(scope="session")
def broken_photo(tmp_path_factory) -> Path:
    "A file that begins like a JPEG and is none."
    path = tmp_path_factory.mktemp("broken") / "broken.jpg"
    path.write_bytes(b"\xff\xd8\xff\xe0 this is no photo")
    return path


@pytest.fixture(scope="session")
def tiny_bundle(tmp_path_factory) -> Path:
    "A bundle of a tiny network with random weights, five species and two examples; read only."
    import timm
    import torch

    from snakecls.models.bundle import write_bundle

    torch.manual_seed(0)
    model = timm.create_model("test_resnet", num_classes=len(FACTS))
    info = {
        "model": {"library": "timm", "arch": "test_resnet", "kwargs": {"num_classes": len(FACTS)}}, "labels": list(FACTS),
        "photo": {"size": 64, "mean": [0.5] * 3, "std": [0.5] * 3}, "temperature": 0.5, "flip": True, "name": "tiny",
        "label_facts": FACTS, "notice": "Random weights: for tests only.", "licence": "Apache-2.0", "weights_source": "random",
    }
    return write_bundle(tmp_path_factory.mktemp("run") / "best", model, info, examples=[(draw_snake(7), "Natrix natrix"), (draw_snake(8), "")])


# A program that writes down that it watches, and then every address outside this machine that is asked for, which it refuses.
WATCH_NETWORK = """
import os, sys
def watch(event, args):
    if event == "socket.connect": host = args[1][0] if isinstance(args[1], tuple) else "localhost"
    elif event == "socket.getaddrinfo": host = args[0]
    else: return
    host = host.decode() if isinstance(host, bytes) else host
    if host not in (None, "", "localhost", "127.0.0.1", "::1", "0.0.0.0"):
        open(os.environ["WATCH_NETWORK"], "a").write(f"{event} {host}\\n")
        raise OSError(f"no network in tests: {host}")
sys.addaudithook(watch)
open(os.environ["WATCH_NETWORK"], "a").write("watching\\n")
"""


def free_port() -> int:
    "Find a port that nobody listens at."
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class RunningApp:
    "An app in a process of its own: its address, and what it asked of the network."

    def __init__(self, script: Path, folder: Path, scratch: Path, *, python: str | Path = sys.executable, whole: dict[str, str] | None = None, **environment: str):
        (scratch / "sitecustomize.py").write_text(WATCH_NETWORK)
        port = free_port()
        self.url, self.network, self.log = f"http://127.0.0.1:{port}/", scratch / "network.txt", scratch / "app.log"
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("SNAKECLS_", "GRADIO_", "PYTHON"))}
        kept |= {"PORT": str(port), "PYTHONPATH": os.pathsep.join(filter(None, [str(scratch), os.environ.get("SNAKECLS_TEST_PATH")])),
                 "WATCH_NETWORK": str(self.network), "GRADIO_TEMP_DIR": str(scratch / "uploads"), "NO_PROXY": "*"}
        if whole is not None:  # this and nothing of the developer's
            kept = whole | {"PORT": str(port), "WATCH_NETWORK": str(self.network)}
        with open(self.log, "w") as log:
            self.process = subprocess.Popen([str(python), str(script)], cwd=folder, env=kept | environment, stdout=log,
                                            stderr=subprocess.STDOUT, start_new_session=True)

    def wait(self, seconds: float = 90) -> "RunningApp":
        "Wait until the app answers; fail with its log when it does not."
        end = time.monotonic() + seconds
        while time.monotonic() < end and self.process.poll() is None:
            try:
                urllib.request.urlopen(self.url, timeout=2).close()
                return self
            except OSError:
                time.sleep(0.2)
        raise AssertionError(f"the app did not start:\n{self.log.read_text()}")

    def asked(self) -> list[str]:
        "Give the addresses outside this machine that were asked for; fails where nobody watched."
        lines = self.network.read_text().splitlines() if self.network.exists() else []
        assert "watching" in lines, "sitecustomize.py was not loaded, so nobody watched the network"
        return [line for line in lines if line != "watching"]

    def stop(self) -> None:
        "End the app and whatever it started."
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGTERM)
        self.process.wait(10)


@pytest.fixture(scope="session")
def start_app(tmp_path_factory) -> Iterator[Callable[..., RunningApp]]:
    "A function that starts an app.py: `start_app(script, folder, **environment)`; all are ended with the session."
    apps: list[RunningApp] = []

    def start(script: Path, folder: Path, **environment: str) -> RunningApp:
        apps.append(RunningApp(script, folder, tmp_path_factory.mktemp("app"), **environment))
        return apps[-1]

    yield start
    for app in apps:
        app.stop()


@pytest.fixture(scope="session")
def browser():
    "A headless Chromium, as tools/find_browser.py finds it."
    sync_api = need("playwright.sync_api")
    from find_browser import find_browser

    if (path := find_browser()) is None:
        do_without("there is no Chromium: set SNAKECLS_CHROMIUM, apt install chromium, or run 'playwright install chromium'")
    with sync_api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-gpu", "--disable-background-networking"])
        yield chromium
        chromium.close()
