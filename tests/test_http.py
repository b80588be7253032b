"""Plain HTTP beside the page: the same answer, photos that come together in one run, health, metrics, a full queue; the second tab and flags."""
import csv
import io
import json
import re
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from conftest import REPO, need
from test_hardening_door import SlowPredictor, ask, sentence
from trusting import ANSWERS, SCRIPT, draw_colour, write_trusting

gradio_client = need("gradio_client")
EDGE = {"content-type": "multipart/form-data; boundary=edge"}


def form(*fields: tuple[str, bytes | str | Path]) -> bytes:
    "Write a form: bytes and paths are files, texts are texts."
    parts = []
    for name, value in fields:
        content = value.read_bytes() if isinstance(value, Path) else value if isinstance(value, bytes) else value.encode()
        more = "" if isinstance(value, str) else '; filename="snake.jpg"'
        parts.append(f'--edge\r\nContent-Disposition: form-data; name="{name}"{more}\r\n\r\n'.encode() + content + b"\r\n")
    return b"".join(parts) + b"--edge--\r\n"


def metric(address: str, name: str, **labels: str) -> float:
    "One value of /metrics; 0 where the series is not there."
    text = ask(address, "GET", "/metrics")[1].decode()
    said = ",".join(f'{key}="{value}"' for key, value in labels.items())
    found = re.search(rf"^{re.escape(name + (f'{{{said}}}' if said else ''))} (\S+)$", text, re.MULTILINE)
    return float(found[1]) if found else 0.0


@pytest.fixture()
def serve_it():
    "A function that starts the service; all end with the test."
    from snakecls.deploy.serving import launch_service

    started = []

    def start(predictor, **settings):
        started.append(launch_service(predictor, block=False, **settings))
        return started[-1]

    yield start
    for address in started:
        address.close()


@pytest.fixture(scope="module")
def trusting(tmp_path_factory):
    "A service whose model decides; runs of up to 8 photos."
    from snakecls.deploy.predict import Predictor
    from snakecls.deploy.serving import launch_service

    address = launch_service(Predictor(write_trusting(tmp_path_factory.mktemp("trusting") / "best")), block=False, most=8)
    yield address
    address.close()


def test_the_answer_is_the_one_of_gradios_endpoint(trusting, snake_photos):
    client = gradio_client.Client(str(trusting), verbose=False, analytics_enabled=False)
    first, second = snake_photos[0], snake_photos[1]
    for country in ("", "Mexico"):
        theirs = client.predict(gradio_client.handle_file(str(first)), country, api_name="/predict")
        for status, answer in (ask(trusting, "POST", f"/predict?country={country}", first.read_bytes(), **{"content-type": "image/jpeg"}),
                               ask(trusting, "POST", "/predict", form(("photo", first), ("country", country)), **EDGE),
                               ask(trusting, "POST", "/predict/", form(("any name", first), ("country", country)), **EDGE)):
            assert status == 200 and json.loads(answer) == theirs and theirs[0]["decision"]["country"] == (country or None)
    both = client.predict(gradio_client.handle_file(str(first)), "", [gradio_client.handle_file(str(second))], api_name="/predict")
    assert json.loads(ask(trusting, "POST", "/predict", form(("photo", first), ("photo", second)), **EDGE)[1]) == both
    page = json.loads(ask(trusting, "GET", "/gradio_api/info")[1])  # the page's interface is there still
    assert list(page["named_endpoints"]) == ["/predict"]


def test_bad_requests_get_a_status_and_one_sentence(trusting, snake_photos, broken_photo):
    photo, uploads = snake_photos[0].read_bytes(), trusting.page.server.door.uploads
    uploads.remove_all()
    Image.new("RGB", (90, 90), "white").save(plain := io.BytesIO(), "PNG")
    cases = [
        (422, b"not a photo", {}), (422, broken_photo.read_bytes(), {"content-type": "image/jpeg"}), (422, plain.getvalue(), {}), (400, b"", {}),
        (400, form(("country", "Mexico")), EDGE), (400, form(("photo", "/etc/passwd")), EDGE), (400, form(("photo", photo), ("contry", "Mexico")), EDGE), (400, form(("photo", photo))[:-30], EDGE),
        (400, form(("photo", photo)), {"content-type": "multipart/form-data"}), (400, form(*[("photo", photo)] * 6), EDGE), (413, form(*[("photo", photo)] * 11), EDGE), (400, form(("photo", photo), ("country", "Atlantis")), EDGE),
        (415, b'{"path": "/etc/passwd"}', {"content-type": "application/json"}), (415, b"https://example.com/snake.jpg", {"content-type": "text/plain"}), (422, form(("photo", photo), ("photo", b"no photo")), EDGE),
    ]
    for expected, body, headers in cases:
        status, answer = ask(trusting, "POST", "/predict", body, **headers)
        assert status == expected, (expected, status, answer, body[:80])
        sentence(answer.replace(b"'Albania'?", b"'Albania'."))
    for path in ("/predict?contry=Mexico", "/predict?country=%ff", "/predict?country=" + "x" * 200, "/predict?" + "&".join(f"a{i}=1" for i in range(50))):
        status, answer = ask(trusting, "POST", path, photo)
        assert status == 400 and sentence(answer)
    status, answer = ask(trusting, "GET", "/predict")
    assert status == 405 and "curl -F photo=@snake.jpg" in json.loads(answer)["detail"]
    assert ask(trusting, "PUT", "/predict", photo)[0] == 404 and ask(trusting, "GET", "/predict/x")[0] == 404
    assert ask(trusting, "POST", "/predict", photo, Host="evil.example")[0] == 403 and ask(trusting, "POST", "/predict", photo, origin="https://evil.example")[0] == 403
    assert ask(trusting, "GET", "/metrics", Host="evil.example")[0] == 403
    assert uploads.held == 0 and not [file for file in uploads.folder.rglob("*") if file.is_file()]


def test_photos_that_come_together_are_one_run_and_bad_ones_fail_alone(tiny_bundle, snake_photos, broken_photo):
    from snakecls.data.photos import PhotoError
    from snakecls.deploy.batching import BatchedPredictor, Batcher
    from snakecls.deploy.predict import Predictor

    predictor, runs = Predictor(tiny_bundle), []
    alone = {photo: predictor.probs([photo])[0] for photo in snake_photos}
    batcher = Batcher(predictor, most=16, wait_ms=300, on_run=lambda n, seconds: runs.append(n))
    together, ready = BatchedPredictor(predictor, batcher), threading.Barrier(12)

    def answer(photo):
        ready.wait(20)
        try:
            return together.probs_known([photo])[0]["binomial"][0]
        except PhotoError as e:
            return e

    asked = [*snake_photos, *snake_photos, broken_photo, broken_photo]
    with ThreadPoolExecutor(12) as threads:
        found = list(threads.map(answer, asked))
    for photo, said in zip(asked, found):
        if photo == broken_photo:
            assert isinstance(said, PhotoError)
        else:
            np.testing.assert_allclose(said, alone[photo], atol=1e-5)
    assert sum(runs) == 10 and max(runs) >= 5  # the bad ones were never in a run
    batcher.close()


def test_two_photos_are_decoded_at_a_time_and_one_of_them_large(tiny_bundle, snake_photos, tmp_path):
    "Whoever asks, and however many."
    from snakecls.deploy.batching import BatchedPredictor, Batcher
    from snakecls.deploy.predict import Predictor

    Image.new("1", (5200, 5100)).save(tmp_path / "large.png")  # 26 megapixels
    batcher, lock, now, most = Batcher(Predictor(tiny_bundle), most=4), threading.Lock(), {"all": 0, "large": 0}, {"all": 0, "large": 0}
    prepare, together = batcher._prepare, BatchedPredictor(batcher.predictor, batcher)

    def watched(photo, spec):
        kinds = ["all", "large"] if "large" in str(photo) else ["all"]
        with lock:
            for kind in kinds:
                now[kind] += 1
                most[kind] = max(most[kind], now[kind])
        time.sleep(0.05)
        try:
            return prepare(snake_photos[0], spec)
        finally:
            with lock:
                for kind in kinds:
                    now[kind] -= 1

    batcher._prepare = watched
    with ThreadPoolExecutor(12) as threads:
        list(threads.map(lambda photo: together.probs_known([photo]), [str(tmp_path / "large.png")] * 6 + [str(photo) for photo in snake_photos]))
    assert most == {"all": 2, "large": 1}
    batcher.close()


def test_what_fails_in_a_run_fails_alone(tiny_bundle, snake_photos):
    from snakecls.core import UserError
    from snakecls.deploy.batching import Batcher
    from snakecls.deploy.predict import Predictor

    predictor = Predictor(tiny_bundle)
    batcher = Batcher(predictor, most=8, wait_ms=300)
    asked, bad = batcher.asked.probs_known, batcher.prepare(snake_photos[1])

    def fails_with_it(batch, **more):
        if any(one is bad for one in batch):
            raise UserError("the model's answer to this photo is no number.")
        return asked(batch, **more)

    batcher.asked.probs_known = fails_with_it
    with batcher.lock:
        batcher.coming += 1  # so that it waits for all of them
    dues = [batcher.ask(one) for one in (batcher.prepare(snake_photos[0]), bad, batcher.prepare(snake_photos[2]))]
    for due, photo in ((dues[0], snake_photos[0]), (dues[2], snake_photos[2])):
        np.testing.assert_allclose(due.result(20)[0]["binomial"], predictor.probs([photo]), atol=1e-5)
    with pytest.raises(UserError, match="no number"):
        dues[1].result(20)
    batcher.close()
    with pytest.raises(UserError, match="is ending"):
        batcher.ask(bad).result(20)


def test_many_clients_at_once_get_their_own_answers(trusting, snake_photos, broken_photo):
    "Good and bad photos of 16 clients; runs of the network are fewer than photos."
    alone = {photo: json.loads(ask(trusting, "POST", "/predict", photo.read_bytes())[1]) for photo in snake_photos}
    photos, runs = (metric(trusting, f"snakecls_batch_photos_{what}") for what in ("sum", "count"))
    asked = [*snake_photos, broken_photo] * 10
    with ThreadPoolExecutor(16) as threads:
        answers = list(threads.map(lambda photo: ask(trusting, "POST", "/predict", photo.read_bytes()), asked))
    for photo, (status, answer) in zip(asked, answers):
        if photo == broken_photo:
            assert status == 422 and "cannot be read" in sentence(answer)
        else:
            assert status == 200
            assert [(one["label"], pytest.approx(one["prob"], abs=1e-5)) for one in alone[photo]] == [(one["label"], one["prob"]) for one in json.loads(answer)]
    assert metric(trusting, "snakecls_batch_photos_sum") == photos + 50
    assert metric(trusting, "snakecls_batch_photos_count") < runs + 50


def test_health_and_metrics(serve_it, tiny_bundle, snake_photos):
    import snakecls

    address = serve_it(tiny_bundle, most=4)
    status, said = ask(address, "GET", "/health")
    assert status == 200 and json.loads(said) == {"status": "ok", "model": "tiny", "labels": 5, "waiting": 0, "photos_in_a_run": 4, "snakecls": snakecls.__version__}
    assert ask(address, "HEAD", "/health") == (200, b"")
    assert ask(address, "POST", "/predict", snake_photos[0].read_bytes())[0] == 200
    assert ask(address, "POST", "/predict", b"no photo")[0] == 422
    assert ask(address, "GET", "/nothing/here")[0] == 404
    for name, labels, value in (("snakecls_requests_total", {"kind": "photo", "status": "200"}, 1), ("snakecls_refused_total", {"kind": "photo", "reason": "photo cannot be read"}, 1), ("snakecls_answer_seconds_count", {}, 1),
                                ("snakecls_refused_total", {"kind": "other", "reason": "no such address"}, 1), ("snakecls_batch_photos_sum", {}, 1), ("snakecls_waiting_photos", {}, 0)):
        assert metric(address, name, **labels) == value, name
    text = ask(address, "GET", "/metrics")[1].decode()
    assert "process_resident_memory_bytes" in text and "127.0.0.1" not in text and str(tiny_bundle) not in text
    names = {line.split("{")[0].split(" ")[0] for line in text.splitlines() if not line.startswith("#")}
    from prometheus_client.parser import text_string_to_metric_families

    assert len(list(text_string_to_metric_families(text))) > 8 and all(re.fullmatch("[a-z_]+", name) for name in names)


def test_a_full_queue_is_told_with_when_to_come_again(serve_it, tiny_bundle, snake_photos):
    import http.client
    from urllib.parse import urlsplit

    from snakecls.deploy.door import Limits
    from snakecls.deploy.predict import Predictor

    slow, photo = SlowPredictor(Predictor(tiny_bundle)), snake_photos[0].read_bytes()
    address = serve_it(slow, limits=Limits(waiting=2))
    with ThreadPoolExecutor(2) as threads:
        waiting = [threads.submit(ask, address, "POST", "/predict", photo) for _ in range(2)]
        end = time.monotonic() + 20
        while json.loads(ask(address, "GET", "/health")[1])["waiting"] < 2 and time.monotonic() < end:
            time.sleep(0.02)
        connection = http.client.HTTPConnection(urlsplit(address).netloc, timeout=20)
        connection.request("POST", "/predict", photo)
        answer = connection.getresponse()
        assert answer.status == 503 and int(answer.headers["Retry-After"]) > 0 and "Wait a moment" in sentence(answer.read())
        connection.close()
        slow.go.set()
        assert [due.result()[0] for due in waiting] == [200, 200]
    assert metric(address, "snakecls_refused_total", kind="photo", reason="busy") == 1
    assert ask(address, "POST", "/predict", photo)[0] == 200


def test_the_end_of_the_service_ends_its_thread(tiny_bundle):
    from snakecls.deploy.serving import launch_service

    def threads():
        return [thread for thread in threading.enumerate() if thread.name == "batches"]

    before = len(threads())
    address = launch_service(tiny_bundle, block=False, most=1)
    assert len(threads()) == before + 1
    address.close()
    assert len(threads()) == before


@pytest.fixture(scope="module")
def page_app(start_app, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tabs")
    bundle = write_trusting(folder / "best")
    script = SCRIPT.replace("snakecls.deploy.app import launch_app", "snakecls.deploy.serving import launch_service").replace("launch_app(", "launch_service(")
    (folder / "page.py").write_text(script.format(paths=[str(REPO)], answers=ANSWERS, bundle=str(bundle)))
    app = start_app(folder / "page.py", folder, SNAKECLS_FLAGS=str(folder / "flagged")).wait()
    return app, folder


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_card_is_a_tab_and_the_answer_stays(page_app, browser, scheme, tmp_path):
    app, _ = page_app
    page = browser.new_page(viewport={"width": 390, "height": 844}, color_scheme=scheme)
    page.goto(app.url)
    page.wait_for_selector("#result h2")
    page.set_input_files("#photo input[type=file]", str(draw_colour("r", tmp_path / "r.png")))
    page.wait_for_selector(".sc-row", timeout=30_000)
    page.get_by_role("tab", name="Answer").focus()
    page.keyboard.press("ArrowRight")
    if not page.locator("#about .sc-about").is_visible():
        page.keyboard.press("Tab")
        page.keyboard.press("Enter")
    page.wait_for_selector("#about .sc-about", timeout=10_000)
    text = page.inner_text("#about")
    for words in ("About this model", "Random weights: for tests only.", "5 labels of binomial", "Eastern coral snake", "⚠ VENOMOUS", "Nothing was measured", "90%", "sent nowhere", "curl -F photo=@photo.jpg"):
        assert words in text, words
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    ink, ground = (page.evaluate(f"getComputedStyle(document.querySelector('{at}')).{what}") for at, what in (("#about p", "color"), ("body", "backgroundColor")))
    bright = [sum(map(int, re.findall(r"\d+", colour)[:3])) for colour in (ink, ground)]
    assert abs(bright[0] - bright[1]) > 400 and (bright[0] > bright[1]) == (scheme == "dark")
    page.get_by_role("tab", name="Answer").click()
    page.wait_for_selector(".sc-row", timeout=10_000)
    assert "Eastern coral snake" in page.inner_text("#result")  # it was not lost on the way
    page.set_input_files("#photo input[type=file]", str(draw_colour("g", tmp_path / "g.png")))
    page.wait_for_selector("#result:has-text('Corn snake')", timeout=20_000)
    page.close()


def test_an_answer_is_flagged_into_a_table_beside_its_photo(page_app, browser, tmp_path):
    app, folder = page_app
    page = browser.new_page(viewport={"width": 390, "height": 844})
    page.goto(app.url)
    page.wait_for_selector("#result h2")
    assert not page.locator("#flag").is_visible()  # there is no answer yet
    photo = draw_colour("b", tmp_path / "b.png")
    page.set_input_files("#photo input[type=file]", str(photo))
    page.wait_for_selector(".sc-row", timeout=30_000)
    assert not (folder / "flagged").exists()  # nothing is kept unless it is asked for
    page.click("#flag button >> nth=0")
    page.wait_for_selector("#flag-words textarea, #flag-words input", timeout=10_000)
    assert "kept on the machine that answered" in page.inner_text("#flag") and page.evaluate("document.documentElement.scrollWidth") <= 390
    page.fill("#flag-words textarea, #flag-words input", "=cmd|' /C calc'!A1 it is a milk snake <b>")
    page.focus("#flag-keep")
    page.keyboard.press("Enter")
    page.wait_for_selector("#flag-said:has-text('Kept, for whoever runs this page')", timeout=20_000)
    row, = csv.DictReader((folder / "flagged" / "flags.csv").open())
    assert row["label"] == "Lampropeltis elapsoides" and row["words"].startswith("'=cmd") and json.loads(row["answer"])[0]["label"] == row["label"]
    assert (folder / "flagged" / row["photos"]).read_bytes() == photo.read_bytes()
    page.set_input_files("#photo input[type=file]", str(draw_colour("g", tmp_path / "g.png")))
    page.wait_for_selector("#result:has-text('Corn snake')", timeout=20_000)
    page.wait_for_function("!document.querySelector('#flag').innerText.includes('Kept')", timeout=10_000)  # it was of another photo
    page.close()
    assert app.asked() == [] and "Traceback" not in app.log.read_text()


def test_nothing_is_flagged_unless_a_folder_was_named(trusting):
    named = {getattr(block, "elem_id", None): block for block in trusting.page.blocks.values()}
    assert "flag" not in named and "below an answer, it is kept here" not in named["about"].value
