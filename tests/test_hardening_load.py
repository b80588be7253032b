"""The app under load: good requests are answered, bad ones hear why, bombs hold up nobody, and memory comes back."""
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from conftest import REPO

sys.path.append(str(REPO / "benchmarks"))
import serve  # the benchmark's own client

pytestmark = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")


@pytest.fixture(scope="module")
def port(start_app, tiny_bundle, tmp_path_factory):
    "A running app; its port, and its process."
    app = start_app(REPO / "app.py", tmp_path_factory.mktemp("cwd"), SNAKECLS_BUNDLE=str(tiny_bundle)).wait()
    return int(app.url.rstrip("/").rsplit(":", 1)[1]), app.process


@pytest.fixture(scope="module")
def kinds():
    "Good requests, bad ones, bombs."
    good, bad, heavy = serve.kinds_of_requests([serve.telephone_photo(seed, (1600, 1200)) for seed in range(3)], side=6000, too_far=7200)
    return good, [kind for kind in bad if kind.name not in ("too large", "giant JSON", "deep JSON")], heavy


def wrong(outcomes):
    return [f"{one.kind.name}: {one.status} {one.reason[:200]} {one.labels}" for one in outcomes if one.wrong]


def test_mixed_requests_of_eight_clients_get_what_they_are_due_and_memory_comes_back(port, kinds):
    port, process = port
    good, bad, heavy = kinds
    serve.drive(port, serve.mixed(np.random.default_rng(1), good, bad, heavy, 150), 8)  # what every kind loads once (decoders, the largest buffers) is no leak
    before, most, done = serve.memory_mb(process.pid), [0.0], threading.Event()

    def watch():
        while not done.wait(0.02):
            most[0] = max(most[0], serve.memory_mb(process.pid))

    watcher = threading.Thread(target=watch)
    watcher.start()
    outcomes = serve.drive(port, serve.mixed(np.random.default_rng(0), good, bad, heavy, 150), 8)
    done.set()
    watcher.join()
    time.sleep(2)
    after = serve.memory_mb(process.pid)
    assert wrong(one for one in outcomes if one.kind.wanted == "answer") == []
    assert most[0] < before + 500, f"{before:.0f} MB before, {most[0]:.0f} at most"  # one bomb of 36 megapixels and an ordinary photo; never two bombs
    assert after < 1.1 * before, f"{before:.0f} MB before, {after:.0f} after"
    assert wrong(outcomes) == []
    assert wrong(serve.drive(port, good, 2)) == []


def test_a_photo_goes_past_the_bombs_that_came_before_it(port, kinds):
    port, _ = port
    good, _, heavy = kinds
    bombs, exploded = [kind for kind in heavy if kind.name == "RGBA PNG of 36 megapixels"] * 6, []
    threads = [threading.Thread(target=lambda kind=kind: exploded.append(serve.Client(port).request(kind))) for kind in bombs]
    for thread in threads:
        thread.start()
    time.sleep(0.5)  # they are in the queue
    outcome = serve.Client(port).request(good[0])
    before_it = len(exploded)
    for thread in threads:
        thread.join()
    assert wrong([outcome, *exploded]) == []
    assert before_it <= 3, f"{before_it} of 6 bombs were answered first"
