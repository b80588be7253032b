"""The door before app and review: what a request may name, by which name it may come, how much of it, and what stays behind."""
import http.client
import io
import json
import os
import re
import signal
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from urllib.parse import quote, urlsplit

import pytest

from conftest import draw_snake, need
from mutate import mutated_files

gradio = need("gradio")
gradio_client = need("gradio_client")

FILE = {"_type": "gradio.FileData"}


def ask(address: str, method: str, path: str, body: bytes | dict | None = None, *, timeout: float = 30, **headers: str) -> tuple[int, bytes]:
    "Send one request as it is; (status, body)."
    if isinstance(body, dict):
        body, headers = json.dumps(body).encode(), {"content-type": "application/json"} | headers
    connection = http.client.HTTPConnection(urlsplit(address).netloc, timeout=timeout)
    try:
        connection.putrequest(method, path, skip_host="Host" in headers, skip_accept_encoding=True)
        for key, value in ({"content-length": str(len(body))} if body is not None else {} | {}).items():
            connection.putheader(key, value)
        for key, value in headers.items():
            connection.putheader(key.replace("_", "-"), value)
        connection.endheaders(body)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def sentence(answer: bytes) -> str:
    "The reason that a refusal gives."
    reason = json.loads(answer)["detail"]
    assert isinstance(reason, str) and reason[0].isupper() and reason.endswith(".") and "Traceback" not in reason
    return reason


def upload(address: str, content: bytes, name: str = "snake.jpg", *, copies: int = 1, **headers: str) -> tuple[int, bytes]:
    "Upload a file as a browser does."
    part = f'--edge\r\nContent-Disposition: form-data; name="files"; filename="{name}"\r\nContent-Type: image/jpeg\r\n\r\n'.encode() + content + b"\r\n"
    return ask(address, "POST", "/gradio_api/upload", part * copies + b"--edge--\r\n", **{"content-type": "multipart/form-data; boundary=edge"} | headers)


def jpeg(seed: int = 0) -> bytes:
    draw_snake(seed).save(stream := io.BytesIO(), "JPEG")
    return stream.getvalue()


def config_of(address: str) -> dict:
    "What the page tells the browser about itself."
    return json.loads(re.search(r"window\.gradio_config = (.*?);</script>", ask(address, "GET", "/")[1].decode(), re.DOTALL)[1])


def answer_to(address: str, path: str) -> tuple[str, str]:
    "Ask the programs' interface about an uploaded photo: ('complete' or 'error', data)."
    status, answer = ask(address, "POST", "/gradio_api/call/predict", {"data": [{"path": path, "meta": FILE}]})
    assert status == 200, answer
    text = ask(address, "GET", f"/gradio_api/call/predict/{json.loads(answer)['event_id']}")[1].decode()
    return re.findall(r"event: (complete|error)\ndata: (.*)", text)[-1]


@pytest.fixture(scope="module")
def app(tiny_bundle):
    from snakecls.deploy.app import launch_app
    from snakecls.deploy.predict import Predictor

    return launch_app(Predictor(tiny_bundle), block=False)


@pytest.fixture(scope="module")
def review(tmp_path_factory):
    import pandas as pd

    from snakecls.deploy.review import launch_review

    folder = tmp_path_factory.mktemp("review")
    draw_snake(1).save(folder / "0.png")
    issues = pd.DataFrame([(str(folder / "0.png"), "label", "relabel", 0.9, "looks like Naja naja", "Vipera berus", "Naja naja")], columns=["path", "issue", "verdict", "score", "reason", "label", "suggested"])
    return launch_review(issues, ["Naja naja", "Vipera berus"], folder / "corrections.csv", block=False)


@pytest.fixture()
def small(tiny_bundle):
    "A function that starts the app with other limits: `small(waiting=1)` gives its address; all end with the test."
    from snakecls.deploy.app import build_app
    from snakecls.deploy.door import Limits
    from snakecls.deploy.predict import Predictor
    from snakecls.deploy.service import serve

    pages = []

    def start(predictor=None, **limits) -> str:
        pages.append(serve(build_app(predictor or Predictor(tiny_bundle)), "The app", block=False, files=True, programs=True, limits=Limits(**limits)))
        return pages[-1]

    yield start
    for address in pages:
        address.close()


def names_of_the_server(tmp_path: Path, uploaded: str) -> list[str]:
    "Files that are there and that are not, and what only looks like an upload."
    os.mkfifo(tmp_path / "pipe.jpg")
    draw_snake(1).save(tmp_path / "private.jpg")
    (tmp_path / "link.jpg").symlink_to(tmp_path / "private.jpg")
    beside = Path(uploaded).parent / "link.jpg"
    beside.symlink_to("/etc/passwd")
    pipe = Path(uploaded).parent / "pipe.jpg"
    os.mkfifo(pipe)
    return ["/etc/passwd", "/nowhere/at/all", "/dev/ptmx", "/dev/zero", "/proc/self/environ", str(tmp_path), *(str(tmp_path / name) for name in ("pipe.jpg", "private.jpg", "link.jpg")), str(beside), str(pipe), uploaded + "/",
            f"{Path(uploaded).parent}/./{Path(uploaded).name}", f"{uploaded}/../../../../../../etc/passwd", f"file://{uploaded}", "~/.bashrc", "", "app.py", f"{Path(uploaded).parent.parent}/{'0' * 64}/snake.jpg"]


def test_no_request_names_a_file_of_the_server(app, tmp_path):
    uploaded = json.loads(upload(app, jpeg())[1])[0]
    functions = [one["id"] for one in config_of(app)["dependencies"]]
    answers = set()
    for path in names_of_the_server(tmp_path, uploaded):
        file = {"path": path, "meta": FILE}
        requests = [("/gradio_api/call/predict", {"data": [file]}), ("/gradio_api/call/v2/predict", {"photo": file})]
        requests += [("/gradio_api/queue/join", {"data": [file], "fn_index": function, "session_hash": "abc"}) for function in functions]
        requests += [("/gradio_api/run/predict", {"data": [file], "fn_index": function, "session_hash": "abc"}) for function in functions]
        for address, body in requests:
            answers.add(ask(app, "POST", address, body, timeout=5))
        if path:
            answers.add(ask(app, "GET", f"/gradio_api/file={quote(path)}", timeout=5))
    (status, answer), = answers  # one, whatever was named and wherever
    assert status == 403 and "uploaded to this page" in sentence(answer)
    assert answer_to(app, uploaded)[0] == "complete"
    Path(uploaded).unlink()
    Path(uploaded).symlink_to("/etc/passwd")
    assert ask(app, "GET", f"/gradio_api/file={uploaded}") == (status, answer)


SHAPES = {
    "alone": lambda file: file, "in a list": lambda file: [file], "in lists": lambda file: [[file, None]], "as a value": lambda file: {"value": file}, "deep": lambda file: {"a": [{"b": {"c": [file]}}]},
    "beside texts": lambda file: ["a", {"text": "b", "files": [file]}],
}
FILES = {
    "plain": {"path": "/etc/hostname", "meta": FILE}, "without meta": {"path": "/etc/hostname"}, "stream": {"path": "/etc/hostname", "meta": FILE, "is_stream": True}, "address": {"path": "http://127.0.0.1:9/a.png", "meta": FILE},
    "url alone": {"url": "http://127.0.0.1:9/a.png", "meta": FILE}, "data": {"path": None, "url": "data:image/png;base64,AAAA", "meta": FILE}, "capital": {"Path": "/etc/hostname", "meta": FILE}, "number": {"path": 3, "meta": FILE},
}


@pytest.mark.parametrize("page", ["app", "review"])
def test_every_component_of_both_pages_stands_behind_the_door(page, request):
    address = request.getfixturevalue(page)
    config = config_of(address)
    assert len(config["dependencies"]) > 3 and any(one["inputs"] for one in config["dependencies"])
    answers = set()
    for one in config["dependencies"]:
        for place in range(len(one["inputs"])):
            for shape in SHAPES.values():
                for file in FILES.values():
                    data = [shape(file) if i == place else None for i in range(len(one["inputs"]))]
                    for path in ("queue/join", "run/predict"):
                        answers.add(ask(address, "POST", f"/gradio_api/{path}", {"data": data, "fn_index": one["id"], "session_hash": "abc", "event_data": None}))
        answers.add(ask(address, "POST", "/gradio_api/queue/join", {"data": [None] * len(one["inputs"]), "fn_index": one["id"], "session_hash": "abc", "event_data": FILES["plain"]}))
    (status, answer), = answers
    assert status == 403 and "uploaded to this page" in sentence(answer)


def test_what_the_pages_do_not_need_is_closed(app, review):
    "Every route that this version of Gradio has: those in the list are open, all others are not here."
    from gradio.routes import App

    with gradio.Blocks() as blocks:
        gradio.Textbox()
    there = App.create_app(blocks).routes
    there = [*there, *(route for one in there if hasattr(one, "original_router") for route in one.original_router.routes)]  # as newer FastAPI keeps them
    routes = {(method, route.path) for route in there if hasattr(route, "path") for method in getattr(route, "methods", None) or ["GET"]}
    assert len(routes) > 60
    for prefix in ("/gradio_api/", "/"):
        routes |= {("GET", f"{prefix}{name}") for name in ("mcp/sse", "mcp", "docs", "redoc", "openapi.json", "profiling/traces")}
    shared = {"/", "/theme.css", "/favicon.ico", "/manifest.json", "/robots.txt", "/assets/{path:path}", "/static/{path:path}", "/gradio_api/queue/join", "/gradio_api/queue/data", "/gradio_api/run/{api_name}", "/gradio_api/app_id", "/gradio_api/app_id/"}
    of_app = {"/gradio_api/upload", "/gradio_api/upload_progress", "/gradio_api/file={path_or_url:path}", "/config", "/config/", "/gradio_api/info", "/gradio_api/info/"}
    of_app |= {f"/gradio_api/call/{path}" for path in ("{api_name}", "{api_name}/", "{api_name}/{event_id}", "v2/{api_name}", "v2/{api_name}/", "v2/{api_name}/{event_id}")}
    for address, expected in ((app, shared | of_app), (review, shared)):
        is_open = set()
        for method, route in routes:
            status, answer = ask(address, method, re.sub(r"\{[^}]*\}", "x", route), b"" if method == "POST" else None)
            if status != 404 or (method != "HEAD" and b"needs no such address" not in answer):
                is_open.add(route)
        assert is_open == expected
    for path in ("/gradio_api/call/predict/nobody", "/gradio_api/queue/data?session_hash=nobody"):
        status, answer = ask(app, "GET", path)
        assert status == 404 and "ask again" in sentence(answer)
    for path in ("/gradio_api/call/lambda", "/gradio_api/call/load_example", "/gradio_api/call/v2/lambda"):  # what is not told to programs
        assert ask(app, "POST", path, {"data": [None]})[0] == 404


def test_no_address_is_fetched(app):
    fetched = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            fetched.append(self.path)
            self.send_response(200)
            self.end_headers()

        do_HEAD = do_GET

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    there = f"http://127.0.0.1:{server.server_port}/a.png"
    uploaded = json.loads(upload(app, jpeg())[1])[0]
    for file in ({"path": there, "meta": FILE}, {"path": "x", "url": there, "meta": FILE}, {"url": there, "meta": FILE}):
        assert ask(app, "POST", "/gradio_api/call/predict", {"data": [file]})[0] == 403
    for path in (f"file={there}", f"proxy={there}", f"file={quote(there, safe='')}"):
        assert ask(app, "GET", f"/gradio_api/{path}")[0] in (403, 404)
    status, answer = ask(app, "POST", "/gradio_api/call/predict", {"data": [{"path": uploaded, "url": there, "meta": FILE}]})
    assert status == 200 and b"event: complete" in ask(app, "GET", f"/gradio_api/call/predict/{json.loads(answer)['event_id']}")[1]
    server.shutdown()
    assert fetched == []


@pytest.mark.parametrize("page", ["app", "review"])
def test_another_host_is_refused(page, request):
    address = request.getfixturevalue(page)
    port = urlsplit(address).port
    for host in ("evil.example", f"evil.example:{port}", "127.0.0.1.evil.example", "localhost.evil.example", "169.254.169.254", "", "localhost@evil.example", "evil.example:80:80"):
        for method, path in (("GET", "/"), ("GET", "/config"), ("POST", "/gradio_api/queue/join"), ("OPTIONS", "/")):
            status, answer = ask(address, method, path, {"data": [None], "fn_index": 0, "session_hash": "a"} if method == "POST" else None, Host=host)
            assert status == 403 and "SNAKECLS_HOSTS" in sentence(answer), (host, method, path)
    for host in ("localhost", f"LOCALHOST:{port}", "127.0.0.1", f"[::1]:{port}", "snakes.localhost"):
        assert ask(address, "GET", "/", Host=host)[0] == 200, host


@pytest.mark.parametrize("page", ["app", "review"])
def test_another_origin_is_refused(page, request):
    address = request.getfixturevalue(page)
    host, body = urlsplit(address).netloc, {"data": [], "fn_index": 0, "session_hash": "a"}
    for origin in ("https://evil.example", "null", "http://localhost:3000", f"http://evil.example#{host}"):
        status, answer = ask(address, "POST", "/gradio_api/queue/join", body, origin=origin)
        assert status == 403 and "SNAKECLS_HOSTS" in sentence(answer), origin
    assert ask(address, "GET", "/", upgrade="websocket", connection="upgrade", origin="https://evil.example")[0] == 403
    for fine in ({"origin": f"http://{host}"}, {}, {"origin": "https://snakes.example", "x-forwarded-host": "snakes.example"}):
        assert ask(address, "POST", "/gradio_api/queue/join", body, **fine)[0] != 403


def test_names_that_are_told_are_allowed(small, monkeypatch):
    for told, host, status in (("snakes.example", "snakes.example", 200), ("a.example, snakes.example", "snakes.example:8080", 200), ("a.example", "snakes.example", 403), ("*", "snakes.example", 200)):
        monkeypatch.setenv("SNAKECLS_HOSTS", told)
        assert ask(small(), "GET", "/", Host=host, origin=f"https://{host}")[0] == status
    monkeypatch.delenv("SNAKECLS_HOSTS")
    monkeypatch.setenv("GRADIO_SERVER_NAME", "0.0.0.0")  # as in a container
    monkeypatch.setenv("SPACE_HOST", "maria-snakes.hf.space")
    address = small()
    assert [ask(address, "GET", "/", Host=host)[0] for host in ("192.168.0.9:8080", "maria-snakes.hf.space", "evil.example")] == [200, 200, 403]
    status, page = ask(address, "GET", "/", Host="maria-snakes.hf.space", x_forwarded_proto="https", x_forwarded_host="maria-snakes.hf.space")
    assert b'"root":"https://maria-snakes.hf.space"' in page.replace(b" ", b"")


def test_limits_end_in_a_sentence(app, small):
    tries = [
        (400, ask(app, "POST", "/gradio_api/call/predict", b'{"data": ' + b"[" * 100_000)), (400, ask(app, "POST", "/gradio_api/call/predict", b'{"data": [' + b'{"a":' * 20_000)),
        (413, ask(app, "POST", "/gradio_api/call/predict", b" " * 5_000_000)), (413, ask(app, "POST", "/gradio_api/queue/join", b'"' + b"x" * 300_000 + b'"')),
        (400, ask(app, "POST", "/gradio_api/call/predict", b'{"data": [NaN]}')), (400, ask(app, "POST", "/gradio_api/call/predict", b'{"data": [' + b"9" * 10_000 + b"]}")), (400, ask(app, "POST", "/gradio_api/call/predict", b"\xff\xfe")),
        (400, ask(app, "POST", "/gradio_api/call/predict", {"data": [None] * 5})), (400, ask(app, "POST", "/gradio_api/queue/join", {"data": [], "fn_index": True})), (404, ask(app, "POST", "/gradio_api/queue/join", {"data": [], "fn_index": 10**30, "session_hash": "a"})),
        (400, ask(app, "POST", "/gradio_api/call/v2/predict", {"nobody": 1})), (400, ask(app, "GET", "/gradio_api/queue/data?session_hash=" + "x" * 200)),
        (413, upload(app, b"x" * 41_000_000)), (413, upload(app, b"x", copies=11)), (400, ask(app, "POST", "/gradio_api/upload", b"x", **{"content-type": "text/plain"})), (400, upload(app, b"x", **{"content-type": "multipart/form-data; boundary=other"})),
        (400, ask(app, "POST", "/gradio_api/upload", b"--edge--\r\n", **{"content-type": "multipart/form-data; boundary=edge"})),
    ]
    for expected, (status, answer) in tries:
        assert status == expected, (expected, status, answer)
        sentence(answer)
    address, there = small(requests_each=3, uploads_each=1), {"x-forwarded-for": "203.0.113.9, 198.51.100.7"}  # a proxy on this machine says who asks; what the client adds is not believed
    assert [upload(address, jpeg(), **there)[0] for _ in range(4)] == [200, 200, 200, 429]
    assert upload(address, jpeg(), **{"x-forwarded-for": "203.0.113.10, 198.51.100.7"})[0] == 429
    assert upload(address, jpeg(), **{"x-forwarded-for": "198.51.100.8"})[0] == 200


def test_an_upload_is_cut_off_while_it_comes_in(app):
    uploads = app.page.server.door.uploads
    before, host = uploads.held, urlsplit(app)
    with socket.create_connection((host.hostname, host.port), timeout=20) as client:
        client.sendall(f"POST /gradio_api/upload HTTP/1.1\r\nHost: {host.netloc}\r\nContent-Type: multipart/form-data; boundary=edge\r\nContent-Length: 60000000\r\n\r\n".encode())
        client.sendall(b'--edge\r\nContent-Disposition: form-data; name="files"; filename="a.jpg"\r\n\r\n')
        for _ in range(41):
            client.sendall(b"x" * 1_000_000)  # 19 MB are still to come
        end, most = time.monotonic() + 10, 0
        while time.monotonic() < end and (now := uploads.held) != before:
            most = max(most, now - before)
            time.sleep(0.02)
        assert most <= 40_100_000 and uploads.held == before  # nothing of it is kept
        assert b" 413 " in client.recv(200)


def test_slow_requests_are_ended(small, monkeypatch):
    import snakecls.deploy.service as service

    monkeypatch.setattr(service, "HEADER_S", 1)
    host = urlsplit(small(json_s=1, pause_s=1, upload_s=3))
    starts = {
        b"": b"", b"GET / HTTP/1.1\r\nHost: localhost\r\nX-A": b"",
        b"POST /gradio_api/call/predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{": b" 408 ",
        b"POST /gradio_api/upload HTTP/1.1\r\nHost: localhost\r\nContent-Type: multipart/form-data; boundary=e\r\nContent-Length: 100\r\n\r\n--e": b" 408 ",
    }
    clients = {start: socket.create_connection((host.hostname, host.port), timeout=15) for start in starts}
    for start, client in clients.items():
        client.sendall(start)
    for start, client in clients.items():
        answer = client.recv(300)
        assert starts[start] in answer and (answer or not starts[start]), start
        client.close()


class SlowPredictor:
    "A predictor that answers when it is told to."

    def __init__(self, predictor):
        self.predictor, self.go = predictor, threading.Event()

    def __getattr__(self, name):
        return getattr(self.predictor, name)

    def probs_known(self, photos, **kwargs):
        self.go.wait(30)
        return self.predictor.probs_known(photos, **kwargs)


def test_a_full_queue_is_told(small, tiny_bundle, browser, snake_photos):
    from snakecls.deploy.predict import Predictor

    predictor = SlowPredictor(Predictor(tiny_bundle))
    address = small(predictor, waiting=2)
    page = browser.new_page(viewport={"width": 390, "height": 844})
    page.goto(address)
    page.wait_for_selector("#result h2")
    predictor.go.set()
    page.set_input_files("#photo input[type=file]", str(snake_photos[0]))
    page.wait_for_selector(".sc-row", timeout=30_000)
    predictor.go.clear()
    uploaded = json.loads(upload(address, jpeg())[1])[0]
    answers = []
    while len(answers) < 300 and not (answers and answers[-1][0] == 503):
        answers.append(ask(address, "POST", "/gradio_api/call/predict", {"data": [{"path": uploaded}]}))
    assert answers[-1][0] == 503 and "Wait a moment" in sentence(answers[-1][1])
    page.set_input_files("#photo input[type=file]", str(snake_photos[1])) if page.query_selector("#photo input[type=file]") else None
    if page.query_selector(".sc-row"):
        page.click("#photo button[aria-label='Clear'], #photo [aria-label='Remove Image']")
        page.set_input_files("#photo input[type=file]", str(snake_photos[1]))
    page.wait_for_function("document.querySelector('#result').innerText.includes('busy with other photos')", timeout=20_000)
    assert page.query_selector(".sc-row") is None  # no old answer under a new photo
    predictor.go.set()
    page.close()


def test_a_photo_of_too_many_pixels_gets_a_sentence(app, browser, tmp_path):
    from PIL import Image

    Image.new("1", (8000, 7000)).save(tmp_path / "large.png")  # 56 megapixels in a few kilobytes
    kind, data = answer_to(app, json.loads(upload(app, (tmp_path / "large.png").read_bytes(), "large.png")[1])[0])
    assert kind == "error" and "its 56 megapixels are more than the 50" in data
    page = browser.new_page()
    page.goto(app)
    page.wait_for_selector("#result h2")
    page.set_input_files("#photo input[type=file]", str(tmp_path / "large.png"))
    page.wait_for_selector(".sc-error", timeout=30_000)
    assert "Its 56 megapixels" in page.inner_text("#result") and "smaller copy" in page.inner_text("#result")
    page.close()


def test_uploads_are_removed_after_their_answer(app):
    first, second = (json.loads(upload(app, jpeg(3))[1])[0] for _ in range(2))  # the same photo, sent twice, is two files
    assert first != second and Path(first).read_bytes() == Path(second).read_bytes()
    assert answer_to(app, first)[0] == "complete"
    gone = app.page.server.door.uploads.sweep(time.monotonic() + 61)
    assert first in gone and second not in gone and not Path(first).exists() and answer_to(app, second)[0] == "complete"
    assert ask(app, "GET", f"/gradio_api/file={first}")[0] == 403
    left = [file for file in Path(first).parent.parent.rglob("*.jpg") if file.read_bytes() == jpeg(3)]
    assert left == [Path(second)]  # no copy anywhere


SCRIPT = """
from snakecls.deploy.service import prepare_gradio, serve
prepare_gradio()
import gradio as gr
with gr.Blocks() as page:
    gr.Image(type="filepath")
serve(page, "The page", files=True)
"""


def test_uploads_are_private_and_removed(start_app, tmp_path):
    "At the end of a program, however it ends; where it was killed, at the next start."
    (tmp_path / "page.py").write_text(SCRIPT)
    folders = {"term": tmp_path / "term", "kill": tmp_path / "kill"}
    apps = {end: start_app(tmp_path / "page.py", tmp_path, GRADIO_TEMP_DIR=str(folder)) for end, folder in folders.items()}
    sent = {end: Path(json.loads(upload(app.wait().url, jpeg())[1])[0]) for end, app in apps.items()}
    for end, path in sent.items():
        assert path.is_relative_to(folders[end]) and path.stat().st_mode & 0o777 == 0o600
        inside = [place for place in path.parents if place.is_relative_to(folders[end]) and place != folders[end]]
        assert [place.stat().st_mode & 0o777 for place in inside] == [0o700] * 4
    apps["term"].process.send_signal(signal.SIGTERM)
    apps["kill"].process.kill()
    for app in apps.values():
        app.process.wait(15)
    assert apps["term"].process.returncode == 0 and not [file for file in folders["term"].rglob("*") if file.is_file() or file.name not in ("term", sent["term"].parents[3].name)]
    assert sent["kill"].exists()
    again = start_app(tmp_path / "page.py", tmp_path, GRADIO_TEMP_DIR=str(folders["kill"])).wait()
    assert not sent["kill"].exists()
    path = Path(json.loads(upload(again.url, jpeg())[1])[0])
    again.process.send_signal(signal.SIGINT)
    assert again.process.wait(15) == 0 and not path.parents[2].exists() and "Traceback" not in again.log.read_text()


def test_damaged_requests_and_forms(tmp_path):
    "300 of each end in a refusal, or in a request that names nothing but what was uploaded."
    from snakecls.deploy.door import Limits, PhotoWriter
    from snakecls.deploy.requests import Refused, clean_call
    from snakecls.deploy.uploads import Uploads

    ours, passed = "/private/0f/snake.jpg", 0
    good = json.dumps({"data": [{"path": ours, "url": "http://10.0.0.1/x", "orig_name": "snake.jpg", "size": 3, "meta": FILE, "is_stream": False}, None, "text", [1, 2.5]], "event_data": None, "fn_index": 3, "trigger_id": 9, "session_hash": "abc"}).encode()
    for body in mutated_files(good, seed=1, plain=True):
        try:
            value, files = clean_call(body, lambda path: path == ours)
        except Refused as e:
            assert 400 <= e.status < 500
            continue
        passed += 1
        text = json.dumps(value, allow_nan=False)
        assert set(files) <= {ours} and set(value) <= {"data", "event_data", "fn_index", "trigger_id", "session_hash"} and "10.0.0.1" not in text and text.count('"path"') == len(files)
    assert 50 < passed < 300
    uploads, passed = Uploads(tmp_path), 0
    form = b'--e\r\nContent-Disposition: form-data; name="files"; filename="a.jpg"\r\nContent-Type: image/jpeg\r\n\r\nphoto\r\n--e\r\nContent-Disposition: form-data; name="files"; filename="b.jpg"\r\n\r\n' + jpeg() + b"\r\n--e--\r\n"
    for body in mutated_files(form, seed=2):
        writer = PhotoWriter("multipart/form-data; boundary=e", uploads, Limits())
        try:
            writer.write(body)
            names = writer.finish()
            assert all(Path(name).is_file() and Path(name).parent.parent == tmp_path for name in names)
            passed += 1
        except Refused as e:
            assert 400 <= e.status < 500
        finally:
            writer.close()
        uploads.remove_all()
        assert list(tmp_path.iterdir()) == [] and uploads.held == 0
    assert 50 < passed < 300


def test_no_json_takes_long():
    "Each body at its bound, whatever it is made of."
    from snakecls.deploy.requests import Refused, _read_json

    for piece in (b'\\"', b'"', b'["', b"\\", b"1", b'{"a":', b'"\\\\', b"[]", b'" '):
        for start in (b'{"data": ["', b'{"data": [', b""):
            began = time.process_time()
            with pytest.raises(Refused):
                _read_json((start + piece * 256_000)[:256_000])
            assert time.process_time() - began < 2, (start, piece)
    assert _read_json(b'{"data": ["\\"[[[", "\\\\", 1e-999]}') == {"data": ['"[[[', "\\", 0.0]}


def test_values_that_nothing_can_be_made_of(app, review, capfd):
    "One sentence each, and no traceback in the log."
    examples = [one["id"] for one in config_of(app)["dependencies"] if one["api_name"] == "load_example"]
    example, picture = examples[0], {"path": json.loads(upload(app, jpeg())[1])[0], "meta": FILE}
    tries = [("call/predict", b'{"data": [1e999]}'), ("call/predict", b'{"data": [-1e400]}'), ("call/predict", b'{"data": ["\\ud800"]}'), ("call/v2/predict", b'{"photo": "\\ud800"}'), ("call/v2/predict", {"photo": "a.jpg"}), ("call/v2/predict", {"photo": [1]}), ("call/v2/predict", {"nobody": picture})]
    tries += [("run/predict", {"data": [value], "fn_index": example, "session_hash": "a"}) for value in (None, "0", -1, 10**9, True, [0], 0.5)]
    for path, body in tries:
        status, answer = ask(app, "POST", f"/gradio_api/{path}", body)
        assert status == 400, (path, body, answer)
        sentence(answer)
    press = next(one for one in config_of(review)["dependencies"] if len(one["inputs"]) == 4)
    for data in ([["a"], None, "", ""], ["", {"a": 1}, "", ""], ["", None, 3, ""]):
        assert ask(review, "POST", "/gradio_api/queue/join", {"data": data, "fn_index": press["id"], "session_hash": "a"})[0] == 400
    assert "Traceback" not in (log := "".join(capfd.readouterr())), log
    status, answer = ask(app, "POST", "/gradio_api/call/predict", {"data": [None]})
    assert "No photo was given" in ask(app, "GET", f"/gradio_api/call/predict/{json.loads(answer)['event_id']}")[1].decode()


def test_what_fails_within_is_one_sentence_and_one_line(app, monkeypatch, capfd):
    async def broken(*_) -> None:
        raise RuntimeError("of Gradio's")

    monkeypatch.setattr(app.page.server.door, "app", broken)
    for method, path, body in (("GET", "/", None), ("GET", "/config", None), ("GET", "/gradio_api/info", None)):
        status, answer = ask(app, method, path, body)
        assert status == 500 and sentence(answer)
    lines = "".join(capfd.readouterr()).strip().splitlines()
    assert len(lines) == 3 and all("RuntimeError: of Gradio's" in line for line in lines)


def test_a_request_of_two_lengths_and_odd_addresses_are_refused(app):
    host = urlsplit(app)
    with socket.create_connection((host.hostname, host.port), timeout=10) as client:
        client.sendall(f"POST /gradio_api/call/predict HTTP/1.1\r\nHost: {host.netloc}\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n".encode())
        assert b" 400 " in client.recv(500)
    for path in ("/assets//etc/passwd", "/static//etc/passwd", "/assets/x//y", "/assets/", "/assets/nothing.js", "/static/img"):
        status, answer = ask(app, "GET", path)
        assert status == 404 and sentence(answer)


def test_no_other_page_shows_this_one_within_itself(app, review, small, monkeypatch):
    def headers(address: str, path: str = "/", **more: str) -> dict:
        connection = http.client.HTTPConnection(urlsplit(address).netloc, timeout=10)
        connection.request("GET", path, headers=more)
        answer = connection.getresponse()
        answer.read()
        return {key.lower(): value for key, value in answer.getheaders()}

    for address in (app, review):
        for given in (headers(address), headers(address, "/nothing"), headers(address, "/theme.css"), headers(address, Host="evil.example")):
            assert given["content-security-policy"] == "frame-ancestors 'self'" and given["x-frame-options"] == "SAMEORIGIN" and given["referrer-policy"] == "same-origin" and given["x-content-type-options"] == "nosniff"
    monkeypatch.setenv("SPACE_ID", "maria/snakes")
    monkeypatch.setenv("GRADIO_SERVER_NAME", "127.0.0.1")
    given = headers(small())
    assert given["content-security-policy"] == "frame-ancestors 'self' https://huggingface.co https://*.hf.space" and "x-frame-options" not in given


@pytest.mark.parametrize("host, origin, passes", [("snakes.example", "https://snakes.example", True), ("snakes.example", "https://evil.example", False), ("evil.example", "http://evil.example:81", False), ("localhost", "file://localhost", False), ("localhost", "chrome-extension://localhost", False), ("localhost", "http://localhost", True)])
def test_every_name_is_not_every_page(host, origin, passes):
    from snakecls.deploy.requests import Refused, check_host

    if passes:
        return check_host({"host": host, "origin": origin}, "127.0.0.1", ("*",))
    with pytest.raises(Refused, match="SNAKECLS_HOSTS"):
        check_host({"host": host, "origin": origin}, "127.0.0.1", ("*",))


def test_too_many_connections_are_told(small):
    host = urlsplit(small(connections=5))
    clients = [socket.create_connection((host.hostname, host.port), timeout=10) for _ in range(5)]
    time.sleep(0.2)
    with socket.create_connection((host.hostname, host.port), timeout=10) as client:
        client.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        head, _, body = client.recv(5000).partition(b"\r\n\r\n")
        body = body or client.recv(5000)
    assert b" 503 " in head and b"retry-after: 10" in head.lower() and b"frame-ancestors" in head and "Wait a moment" in sentence(body)
    for one in clients:
        one.close()
    time.sleep(0.2)
    assert ask(f"http://{host.netloc}/", "GET", "/robots.txt")[0] != 503


def test_one_address_holds_some_connections_alone(small, monkeypatch):
    import snakecls.deploy.service as service

    monkeypatch.setattr(service, "client_key", lambda address: "203.0.113.9")  # as if all came from beyond this machine
    host = urlsplit(small(connections_each=3))
    clients = [socket.create_connection((host.hostname, host.port), timeout=10) for _ in range(3)]
    time.sleep(0.2)
    assert ask(f"http://{host.netloc}/", "GET", "/robots.txt")[0] == 503
    for one in clients:
        one.close()
    time.sleep(0.2)
    assert ask(f"http://{host.netloc}/", "GET", "/")[0] == 200


def test_two_pages_of_one_process_keep_their_own_uploads(small):
    first, second = small(), small()
    ours, theirs = (json.loads(upload(address, jpeg())[1])[0] for address in (first, second))
    assert ask(first, "POST", "/gradio_api/call/predict", {"data": [{"path": theirs, "meta": FILE}]})[0] == 403
    assert ask(second, "GET", f"/gradio_api/file={ours}")[0] == 403
    first.close()
    assert not Path(ours).exists() and Path(theirs).exists() and answer_to(second, theirs)[0] == "complete"
    with pytest.raises(OSError):
        ask(first, "GET", "/", timeout=2)


def test_where_it_cannot_listen_or_keep_photos_the_right_name_is_said(monkeypatch, tmp_path):
    from snakecls.core import UserError
    from snakecls.deploy.service import _names_text, serve
    from snakecls.deploy.uploads import _own_root

    monkeypatch.setenv("GRADIO_SERVER_NAME", "192.0.2.1")
    with pytest.raises(UserError, match="GRADIO_SERVER_NAME=192.0.2.1"):
        serve(None, "The page")
    (tmp_path / "file").touch()
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "file"))
    with pytest.raises(UserError, match="GRADIO_TEMP_DIR"):
        _own_root()
    monkeypatch.setenv("SNAKECLS_HOSTS", "snakes.example")
    assert "this machine's addresses, snakes.example" in _names_text("0.0.0.0") and "SNAKECLS_HOSTS=NAME" in _names_text("0.0.0.0") and _names_text("127.0.0.1") == ""


@pytest.mark.parametrize("cut", ["queue/join", "queue/data"])
def test_a_lost_connection_is_told_and_found_again(cut, app, browser, snake_photos):
    page = browser.new_page(viewport={"width": 390, "height": 844})
    page.goto(app)
    page.wait_for_selector("#result h2")
    page.set_input_files("#photo input[type=file]", str(snake_photos[0]))
    page.wait_for_selector(".sc-row", timeout=30_000)
    for path in (cut, "app_id"):
        page.route(f"**/{path}*", lambda route: route.abort())
    page.set_input_files("#photo input[type=file]", str(snake_photos[1]))
    page.wait_for_function("document.querySelector('#result').innerText.includes('There is no answer')", timeout=20_000)
    assert not page.is_visible(".sc-row")
    page.evaluate("window.before = true")
    for path in (cut, "app_id"):
        page.unroute(f"**/{path}*")
    page.wait_for_function("!window.before && document.querySelector('#result')?.innerText.includes('There is no answer')", timeout=20_000)  # loaded anew
    page.set_input_files("#photo input[type=file]", str(snake_photos[2]))
    page.wait_for_selector(".sc-row", timeout=20_000)
    assert "There is no answer" not in page.inner_text("#result")
    page.close()


def test_no_old_answer_stands_beside_a_photo_on_its_way(app, browser, snake_photos, tmp_path):
    page = browser.new_page()
    page.goto(app)
    page.wait_for_selector("#result h2")
    page.set_input_files("#photo input[type=file]", str(snake_photos[0]))
    page.wait_for_selector(".sc-row", timeout=30_000)
    held = []
    page.route("**/gradio_api/upload?*", lambda route: held.append(route))  # it does not come in
    page.set_input_files("#photo input[type=file]", str(snake_photos[1]))
    page.wait_for_function("document.querySelector('#result').innerText.includes('on its way')", timeout=5_000)
    assert not page.is_visible(".sc-row")
    while not held:
        page.wait_for_timeout(50)
    held.pop().fulfill(status=503, content_type="application/json", body='{"detail": "The photo cannot be kept here (No space left on device); tell whoever runs this page."}')
    page.wait_for_function("document.querySelector('#result').innerText.includes('No space left on device')", timeout=5_000)
    assert not page.is_visible(".sc-row") and "Nothing is known" in page.inner_text("#result")
    page.unroute("**/gradio_api/upload?*")
    (tmp_path / "large.jpg").write_bytes(jpeg() + bytes(40_000_001))
    page.set_input_files("#photo input[type=file]", str(tmp_path / "large.jpg"))
    page.wait_for_function("document.querySelector('#result').innerText.includes('larger than 40 MB')", timeout=5_000)
    page.set_input_files("#photo input[type=file]", str(snake_photos[2]))
    page.wait_for_selector(".sc-row", timeout=20_000)
    assert not page.is_visible(".sc-said")
    page.close()


def test_waiting_for_an_answer_ends(app, browser, snake_photos):
    page = browser.new_page()
    page.clock.install()
    page.goto(app)
    page.wait_for_selector("#result h2")
    answers = []
    page.route("**/queue/data*", lambda route: answers.append(route))  # nothing comes, and nothing fails
    page.set_input_files("#photo input[type=file]", str(snake_photos[0]))
    page.wait_for_function("document.querySelector('#result').innerText.includes('Looking at your photo')", timeout=20_000)
    end = time.monotonic() + 10
    while not answers and time.monotonic() < end:
        page.wait_for_timeout(50)
    page.clock.fast_forward(61_000)
    page.wait_for_function("document.querySelector('#result').innerText.includes('There is no answer')", timeout=5_000)
    assert answers
    answers.pop().continue_()  # what comes late is shown
    page.wait_for_selector(".sc-row", timeout=20_000)
    assert not page.is_visible(".sc-said")
    page.close()


def test_a_review_whose_connection_was_lost_shows_what_was_saved(review, browser):
    page = browser.new_page()
    page.goto(review)
    page.wait_for_selector("#keep")
    page.wait_for_function("document.querySelector('#case').innerText.includes('Label now')", timeout=20_000)
    for path in ("queue/data", "app_id"):
        page.route(f"**/{path}*", lambda route: route.abort())
    page.keyboard.press("k")
    page.wait_for_selector("body.sc-lost", timeout=10_000)
    for path in ("queue/data", "app_id"):
        page.unroute(f"**/{path}*")
    page.wait_for_selector(".sc-end", timeout=15_000)  # the only photo is decided
    assert "1 kept" in page.inner_text("body") and not page.is_visible("body.sc-lost")
    page.close()


END = """
import sys, threading, time
from snakecls.deploy.service import end_at_once, prepare_gradio, serve
prepare_gradio()
import gradio as gr
from snakecls.deploy.turns import Turns
turns = Turns()

def look(photo):
    print("looking", flush=True)
    time.sleep(20)
    raise ValueError("too late")

async def ask(photo):
    return await turns.take(look, photo)

with gr.Blocks() as page:
    photo, said = gr.Image(type="filepath"), gr.Textbox()
    gr.Button().click(ask, photo, said, api_name="predict", concurrency_limit=None)
serve(page, "The page", files=True, programs=True)
end_at_once()
"""


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_the_end_waits_for_no_photo(name, start_app, tmp_path):
    (tmp_path / "page.py").write_text(END)
    app = start_app(tmp_path / "page.py", tmp_path, GRADIO_TEMP_DIR=str(tmp_path / "sent")).wait()
    path = json.loads(upload(app.url, jpeg())[1])[0]
    event = json.loads(ask(app.url, "POST", "/gradio_api/call/predict", {"data": [{"path": path, "meta": FILE}]})[1])["event_id"]
    host = urlsplit(app.url)
    with socket.create_connection((host.hostname, host.port)) as client:
        client.sendall(f"GET /gradio_api/call/predict/{event} HTTP/1.1\\r\\nHost: {host.netloc}\\r\\n\\r\\n".encode())
        end = time.monotonic() + 20
        while "looking" not in app.log.read_text() and time.monotonic() < end:
            time.sleep(0.05)
        began = time.monotonic()
        app.process.send_signal(getattr(signal, name))
        assert app.process.wait(15) == 0 and time.monotonic() - began < 4
    assert not Path(path).parents[2].exists() and not list((tmp_path / "sent").rglob("*.jpg"))
    assert len([line for line in app.log.read_text().splitlines() if "Traceback" in line or "Error" in line or "ERROR" in line]) == 0, app.log.read_text()
