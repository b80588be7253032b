"""Abuse of plain HTTP: damaged photos and forms, bombs, endless bodies, names and paths that lead elsewhere, files that are none, labels with markup."""
import http.client
import io
import json
import socket
import time
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest
from PIL import Image

from conftest import REPO, need
from mutate import mutate_bytes, mutated_files
from test_hardening_door import answer_to, ask, jpeg, sentence, upload
from test_http import EDGE, form, metric

need("gradio")


@pytest.fixture(scope="module")
def app(start_app, tiny_bundle, tmp_path_factory):
    "The service in a process of its own, in an empty folder, with few photos a run."
    app = start_app(REPO / "app.py", tmp_path_factory.mktemp("empty"), SNAKECLS_BUNDLE=str(tiny_bundle), SNAKECLS_BATCH="4").wait()
    app.folder = Path(f"/proc/{app.process.pid}/cwd")
    yield app
    assert app.process.poll() is None and ask(app.url, "GET", "/health")[0] == 200  # whatever came, it answers
    assert app.asked() == [] and "Traceback" not in app.log.read_text()
    assert not list(app.folder.iterdir())  # nothing was written where it runs
    assert metric(app.url, "snakecls_waiting_photos") == 0


def answered(status: int, answer: bytes) -> bool:
    "Whether a photo was answered; else it was refused with one sentence."
    if status == 200:
        assert json.loads(answer)[0]["label"]
        return True
    assert 400 <= status < 500, (status, answer)
    assert b"Traceback" not in answer and sentence(answer)
    return False


def saved(format: str, **options) -> bytes:
    pixels = np.random.default_rng(7).integers(0, 255, (40, 60, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(stream := io.BytesIO(), format, **options)
    return stream.getvalue()


@pytest.mark.parametrize("format, options", [("JPEG", {"quality": 80}), ("PNG", {}), ("GIF", {}), ("TIFF", {"compression": "tiff_adobe_deflate"}), ("WEBP", {})])
def test_300_damaged_photos_are_answered_or_refused(app, format, options):
    "60 of each of five formats, over one connection."
    host, passed = urlsplit(app.url), 0
    connection = http.client.HTTPConnection(host.netloc, timeout=30)
    for body in mutated_files(saved(format, **options), seed=11, n=60):
        connection.request("POST", "/predict", body, {"Content-Type": "image/jpeg"})
        reply = connection.getresponse()
        passed += answered(reply.status, reply.read())
    connection.close()
    assert passed < 60


def test_100_damaged_forms(app):
    generator, passed = np.random.default_rng(12), 0
    whole = form(("photo", saved("JPEG")), ("country", "Mexico"), ("photo", saved("PNG")))
    for _ in range(100):
        status, answer = ask(app.url, "POST", "/predict", mutate_bytes(generator, whole), **EDGE)
        passed += answered(status, answer)
    assert 0 < passed < 100


@pytest.mark.parametrize("side, mode", [(8000, "1"), (12000, "L"), (30000, "1")])
def test_bombs_are_refused_before_they_unfold(app, side, mode):
    Image.MAX_IMAGE_PIXELS, before = None, Image.MAX_IMAGE_PIXELS
    try:
        Image.new(mode, (side, side)).save(stream := io.BytesIO(), "PNG")
    finally:
        Image.MAX_IMAGE_PIXELS = before
    resident = int(Path(f"/proc/{app.process.pid}/statm").read_text().split()[1])
    began = time.monotonic()
    status, answer = ask(app.url, "POST", "/predict", stream.getvalue())
    assert status in (413, 422) and "pixels" in sentence(answer) and time.monotonic() - began < 5
    grown = (int(Path(f"/proc/{app.process.pid}/statm").read_text().split()[1]) - resident) * 4096
    assert grown < side * side / 8 + 20e6  # not even a bit for each pixel
    if status == 413:
        assert metric(app.url, "snakecls_refused_total", kind="photo", reason="too many pixels") >= 1


def test_a_body_of_200_megabytes_is_refused_by_what_it_says_and_by_what_it_is(app):
    host = urlsplit(app.url)
    with socket.create_connection((host.hostname, host.port), timeout=30) as client:
        client.sendall(f"POST /predict HTTP/1.1\r\nHost: {host.netloc}\r\nContent-Type: image/jpeg\r\nContent-Length: 200000000\r\n\r\n".encode())
        client.sendall(b"x" * 1000)
        assert b" 413 " in client.recv(300)  # though no more than this came in
    for kind in ("image/jpeg", EDGE["content-type"]):
        with socket.create_connection((host.hostname, host.port), timeout=30) as client:
            client.sendall(f"POST /predict HTTP/1.1\r\nHost: {host.netloc}\r\nContent-Type: {kind}\r\nTransfer-Encoding: chunked\r\n\r\n".encode())
            head = b'--edge\r\nContent-Disposition: form-data; name="photo"; filename="a.jpg"\r\n\r\n' if "multipart" in kind else b"\xff\xd8"
            client.sendall(f"{len(head):x}\r\n".encode() + head + b"\r\n")
            piece, refused = b"f4240\r\n" + b"x" * 1_000_000 + b"\r\n", b""
            client.settimeout(0.01)
            for _ in range(200):
                client.settimeout(30)
                try:
                    client.sendall(piece)
                except (BrokenPipeError, ConnectionResetError):
                    break
                client.settimeout(0.001)
                try:
                    refused += client.recv(2000)
                    break
                except TimeoutError:
                    continue
            client.settimeout(30)
            try:
                refused = refused or client.recv(2000)
            except ConnectionResetError:
                refused = b""
            assert refused == b"" or b" 413 " in refused
    held = sum(file.stat().st_size for file in (app.log.parent / "uploads").rglob("*") if file.is_file())
    assert held < 1_000_000


@pytest.mark.parametrize("name", ["../../../../tmp/snakecls-was-here.jpg", "/tmp/snakecls-was-here.jpg", "..\\..\\snakecls-was-here.jpg", "a\0b.jpg", ".htaccess", "x" * 5000, "\u202egpj.exe", "con.jpg", "-rf", "$(touch snakecls-was-here)", "a.jpg\r\nX-Evil: 1"])
def test_no_name_leads_elsewhere(app, name):
    body = f'--edge\r\nContent-Disposition: form-data; name="photo"; filename="{name}"\r\n\r\n'.encode() + jpeg() + b"\r\n--edge--\r\n"
    status, answer = ask(app.url, "POST", "/predict", body, **EDGE)
    assert answered(status, answer) or status == 400
    assert not Path("/tmp/snakecls-was-here.jpg").exists() and not list(app.folder.iterdir())
    status, answer = upload(app.url, jpeg(), name.encode("ascii", "ignore").decode().replace("\r\n", ""))
    assert status in (200, 400)
    if status == 200:
        assert Path(json.loads(answer)[0]).is_relative_to(app.log.parent / "uploads")


@pytest.mark.parametrize("path", ["/etc/passwd", "file:///etc/passwd", "http://127.0.0.1:9/a.jpg", "https://photos.example/a.jpg", "~/.bashrc", "app.py", "/proc/self/environ"])
def test_no_file_of_the_server_is_an_input(app, path):
    tries = [ask(app.url, "POST", "/predict", {"path": path}), ask(app.url, "POST", "/predict", {"data": [{"path": path, "meta": {"_type": "gradio.FileData"}}]}), ask(app.url, "POST", "/predict", path.encode(), **{"content-type": "text/plain"}),
             ask(app.url, "POST", "/predict", path.encode()), ask(app.url, "POST", "/predict", form(("photo", path)), **EDGE), ask(app.url, "POST", f"/predict?photo={path}", jpeg()), ask(app.url, "GET", f"/predict?photo={path}")]
    assert [status for status, _ in tries] == [415, 415, 415, 422, 400, 400, 405]
    assert all(b"root:" not in answer and b"PATH=" not in answer and b"Traceback" not in answer for _, answer in tries)


SVG = b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/><script>alert(1)</script></svg>'
OTHERS = {"SVG": SVG, "HTML": b"<!DOCTYPE html><html><script>alert(document.domain)</script></html>", "EPS": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(touch here) system\n", "PDF": b"%PDF-1.4\n1 0 obj\n<<>>\nendobj\n",
          "pickle": b"cos\nsystem\n(S'touch here'\ntR.", "zip": b"PK\x03\x04" + bytes(100), "text with a JPEG's head": b"\xff\xd8\xff\xe0" + SVG}


@pytest.mark.parametrize("kind", OTHERS)
def test_what_only_is_called_a_photo_is_refused_everywhere(app, kind):
    for status, answer in (ask(app.url, "POST", "/predict", OTHERS[kind], **{"content-type": "image/jpeg"}), ask(app.url, "POST", "/predict", form(("photo", OTHERS[kind])), **EDGE)):
        assert status == 422 and "cannot be read" in sentence(answer) and b"<" not in answer
    status, answer = upload(app.url, OTHERS[kind], "photo.jpg")
    path = json.loads(answer)[0]
    said, why = answer_to(app.url, path)
    assert status == 200 and said == "error" and "cannot be read" in why
    status, _ = ask(app.url, "GET", f"/gradio_api/file={path}")  # its owner alone knows the name; no browser runs it
    assert status in (200, 403, 404)
    if status == 200:
        connection = http.client.HTTPConnection(urlsplit(app.url).netloc, timeout=20)
        connection.request("GET", f"/gradio_api/file={path}")
        reply = connection.getresponse()
        kind_said, how = reply.headers["Content-Type"], reply.headers.get("Content-Disposition", "")
        assert reply.headers["X-Content-Type-Options"] == "nosniff" and (kind_said.startswith("image/jpeg") or how.startswith("attachment"))
        connection.close()


ODD = ["<img src=x onerror=window.hit=1>", "</script><script>window.hit=2</script>", "harmless \u202eekans\u202c snake", "\u2067abc\u2069 {{ 7*7 }}", "'; window.hit=3; '"]


@pytest.fixture(scope="module")
def odd_app(start_app, tmp_path_factory):
    "A service of a bundle whose labels, facts and texts hold markup and signs that turn text round."
    import timm

    from snakecls.models.bundle import write_bundle

    folder = tmp_path_factory.mktemp("odd")
    info = {"model": {"library": "timm", "arch": "test_resnet", "kwargs": {"num_classes": len(ODD)}}, "labels": ODD, "photo": {"size": 64}, "name": ODD[1], "target": "binomial", "subject": "snake", "notice": ODD[0], "licence": ODD[2],
            "title": f"Which {ODD[0]}?", "weights_source": ODD[1], "label_facts": {label: {"venomous": True, "common_name": f"{label} \u202ex"} for label in ODD}}
    bundle = write_bundle(folder / "best", timm.create_model("test_resnet", num_classes=len(ODD)), info)
    (folder / "cwd").mkdir()
    return start_app(REPO / "app.py", folder / "cwd", SNAKECLS_BUNDLE=str(bundle)).wait()


def test_labels_with_markup_and_turned_text_are_shown_harmlessly(odd_app, browser, snake_photos):
    status, answer = ask(odd_app.url, "POST", "/predict", snake_photos[0].read_bytes())
    assert status == 200 and {one["label"] for one in json.loads(answer)} <= set(ODD) and "\u202e".encode() not in answer
    assert "<script>" not in metric_text(odd_app.url).replace(ODD[1], "")
    page = browser.new_page(viewport={"width": 390, "height": 844})
    page.goto(odd_app.url)
    page.wait_for_selector("#result h2")
    page.set_input_files("#photo input[type=file]", str(snake_photos[0]))
    page.wait_for_selector(".sc-row", timeout=30_000)
    page.get_by_role("tab", name="About this model").click()
    page.wait_for_selector("#about .sc-about", timeout=10_000)
    about, result = page.inner_text("#about"), page.evaluate("document.querySelector('#result').innerText")
    assert page.evaluate("window.hit") is None and page.query_selector("#about img, #result .sc-row img") is None
    assert "<img src=x onerror=window.hit=1>" in about and "{{ 7*7 }}" in about and "49" not in about.replace("1049", "")
    assert not set("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069") & set(about + result)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    page.close()
    assert "Traceback" not in odd_app.log.read_text()


def metric_text(address: str) -> str:
    return ask(address, "GET", "/metrics")[1].decode()
