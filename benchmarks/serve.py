"""The app under load, bad requests and decompression bombs among them, over loopback alone.

Usage: python benchmarks/serve.py [gradio|http|batching] [--quick] [--requests N] [--growth N] [--seconds S] [--bundle FOLDER] [--note WORDS] [--dry]
gradio: 1, 16 and 64 clients upload photos and call Gradio's API. http: 64 clients ask POST /predict for a minute. batching: photos asked one after the other, 64 clients answered
one by one, and in runs of several, in turn. What it needs it makes itself, Linux only (memory comes from /proc). The app runs in a process of its own.
Rows go to results.csv; it ends with 1 where a good request failed, a bad one got no reason, or memory grew."""
import argparse
import contextlib
import io
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPException
from pathlib import Path

import numpy as np
from PIL import Image

CLIENTS = (1, 16, 64)
REPO = Path(__file__).resolve().parent.parent
PATIENCE_S = 180  # for one answer; longer counts as failed


@dataclass
class Kind:
    "A kind of request: what is sent, and what is due."

    name: str
    wanted: str  # 'answer', 'reason' (a status of 4xx or a sentence), or 'either'
    upload: bytes | None = None  # a file
    filename: str = "photo.jpg"
    data: bytes | None = None  # the body of the call, where nothing is uploaded


@dataclass
class Outcome:
    "What came of a request."

    kind: Kind
    seconds: float
    status: int = 0  # of the last reply; 0 where there was none
    labels: list[str] = field(default_factory=list)
    reason: str = ""

    @property
    def wrong(self) -> bool:
        "Whether the request did not get what it was due."
        refused = 400 <= self.status < 500 or (self.status < 500 and len(self.reason.split()) > 3 and "Traceback" not in self.reason)
        return {"answer": not self.labels, "reason": bool(self.labels) or not refused, "either": not (self.labels or refused)}[self.kind.wanted]


def encoded(image: Image.Image, form: str, **options) -> bytes:
    "Write an image into memory."
    stream = io.BytesIO()
    image.save(stream, form, **options)
    return stream.getvalue()


def telephone_photo(seed: int, size: tuple[int, int] = (4032, 3024)) -> bytes:  # a JPEG of 12 megapixels, 3 MB
    "Draw a snake as large and as grainy as a telephone takes it."
    from snakecls.data.demo.drawing import draw_snake

    generator = np.random.default_rng(seed)
    drawn = np.asarray(draw_snake("Vipera berus", seed, 500, place_seed=seed).convert("RGB").resize(size, Image.Resampling.BICUBIC))
    grain = generator.integers(0, 12, (*drawn.shape[:2], 1), dtype=np.uint8)
    return encoded(Image.fromarray(np.minimum(drawn, 243) + grain), "JPEG", quality=88)


def bombs(side: int) -> dict[str, tuple[bytes, str]]:  # kind -> file, name
    "Make files of 0.1 to 1.5 MB that unfold to `side` x `side` pixels, in several modes."
    size = (side, side)
    return {"16-bit PNG": (encoded(Image.new("I;16", size), "PNG", compress_level=1), "a.png"),
            "RGBA PNG": (encoded(Image.new("RGBA", size, (9, 90, 9, 128)), "PNG", compress_level=1), "b.png"),
            "float TIFF": (encoded(Image.new("F", size, 0.5), "TIFF", compression="tiff_adobe_deflate"), "c.tif"),
            "GIF": (encoded(Image.new("P", size), "GIF"), "d.gif"),
            "JPEG": (encoded(Image.new("RGB", size, (90, 120, 60)), "JPEG", quality=75), "e.jpg")}


def kinds_of_requests(photos: list[bytes], *, side: int = 7000, too_far: int = 9500) -> tuple[list[Kind], list[Kind], list[Kind]]:  # good, bad, bombs
    "List what is asked; bombs of `side` pixels are answered or refused, those of `too_far` have to be refused."
    good = [Kind("photo", "answer", upload=photo) for photo in photos]
    cut, path = photos[0][: len(photos[0]) // 2], {"meta": {"_type": "gradio.FileData"}}
    bad = [Kind("cut photo", "reason", upload=cut), Kind("no photo", "reason", upload=b"\xff\xd8\xff\xe0 this is no photo"),
           Kind("text", "reason", upload=b"Hello", filename="hello.txt"), Kind("empty", "reason", upload=b""),
           Kind("too large", "reason", upload=bytes(41_000_000))]
    values = {"server file": [path | {"path": "/etc/passwd"}], "device": [path | {"path": "/dev/ptmx"}], "own source": [path | {"path": str(REPO / "app.py")}],
              "address": [path | {"path": "http://127.0.0.1:9/x.jpg", "url": "http://127.0.0.1:9/x.jpg"}], "no file": [None], "number": [5], "words": ["photo.jpg"],
              "list": [[path]], "nothing": [], "no path": [path], "path of a wrong type": [path | {"path": 7}], "giant text": [path | {"path": "A" * 3_000_000}]}
    bad += [Kind(name, "reason", data=json.dumps({"data": value}).encode()) for name, value in values.items()]
    bad += [Kind("no JSON", "reason", data=b"{data"), Kind("other JSON", "reason", data=b"[1, 2]"), Kind("deep JSON", "reason", data=b'{"data": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"),
            Kind("giant JSON", "reason", data=json.dumps({"data": list(range(2_000_000))}).encode())]
    heavy = [Kind(f"{name} of {pixels**2 / 1e6:.0f} megapixels", wanted, upload=data, filename=file)
             for pixels, wanted in ((side, "either"), (too_far, "reason")) for name, (data, file) in bombs(pixels).items()]
    return good, bad, heavy


class Client:
    "The documented API, as a program calls it: upload a file, call, read the answer."

    def __init__(self, port: int):
        self.port = port

    def ask(self, method: str, path: str, body: bytes | None = None, kind: str = "application/json") -> tuple[int, str]:
        "Send one request; gives status and text."
        connection = HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE_S)
        try:
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # refused before all was sent: the reply says why
                connection.request(method, f"/gradio_api{path}", body, {"Content-Type": kind} if body is not None else {})
            reply = connection.getresponse()
            return reply.status, reply.read().decode("utf-8", "replace")
        finally:
            connection.close()

    def request(self, kind: Kind) -> Outcome:
        "Ask one question to its end."
        started, outcome = time.perf_counter(), Outcome(kind, 0)
        try:
            self._request(kind, outcome)
        except (OSError, HTTPException, ValueError) as e:
            outcome.status, outcome.reason = 0, f"{type(e).__name__}: {e}"
        outcome.seconds = time.perf_counter() - started
        return outcome

    def _request(self, kind: Kind, outcome: Outcome) -> None:
        body = kind.data
        if kind.upload is not None:
            edge = "snakeclsbenchmark"
            head = f'--{edge}\r\nContent-Disposition: form-data; name="files"; filename="{kind.filename}"\r\nContent-Type: application/octet-stream\r\n\r\n'
            outcome.status, text = self.ask("POST", "/upload", head.encode() + kind.upload + f"\r\n--{edge}--\r\n".encode(), f"multipart/form-data; boundary={edge}")
            if outcome.status != 200:
                outcome.reason = text
                return
            body = json.dumps({"data": [{"path": json.loads(text)[0], "meta": {"_type": "gradio.FileData"}}]}).encode()
        outcome.status, text = self.ask("POST", "/call/predict", body)
        if outcome.status != 200:
            outcome.reason = text
            return
        outcome.status, text = self.ask("GET", f"/call/predict/{json.loads(text)['event_id']}")
        event, data = re.findall(r"event: (\w+)\ndata: (.*)", text)[-1]
        if event == "complete":
            outcome.labels = [row["label"] for row in json.loads(data)[0]]
        else:
            outcome.reason = str((json.loads(data) or {}).get("error") or "")


def memory_mb(pid: int) -> float:  # 0 where it has ended
    "Give what a process holds in memory now (RSS)."
    with contextlib.suppress(OSError, TypeError):
        return int(re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())[1]) / 1024
    return 0.0


class App:
    "The app in a process of its own, and its memory."

    def __init__(self, bundle: Path, scratch: Path, **environment: str):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        scratch.mkdir(parents=True, exist_ok=True)
        self.log, self.uploads = scratch / "app.log", scratch / "uploads"
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("SNAKECLS_", "GRADIO_"))}
        kept |= {"PORT": str(self.port), "SNAKECLS_BUNDLE": str(bundle), "GRADIO_TEMP_DIR": str(self.uploads)} | environment
        with open(self.log, "w") as log:
            self.process = subprocess.Popen([sys.executable, str(REPO / "app.py")], cwd=scratch, env=kept, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
        self.peak_mb, self._watching = 0.0, True
        threading.Thread(target=self._watch, daemon=True).start()

    def wait(self) -> "App":
        "Wait until it answers."
        for _ in range(600):
            if self.process.poll() is not None:
                break
            with contextlib.suppress(OSError, HTTPException):
                Client(self.port).ask("GET", "/app_id")
                return self
            time.sleep(0.2)
        raise SystemExit(f"the app did not start:\n{self.log.read_text()}")

    def _watch(self) -> None:
        while self._watching:
            self.peak_mb = max(self.peak_mb, memory_mb(self.process.pid))
            time.sleep(0.02)

    def stop(self) -> float:  # seconds that it took
        "End it as a system does."
        self._watching, started = False, time.perf_counter()
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGTERM)
        self.process.wait(30)
        return time.perf_counter() - started


def drive(port: int, requests: list[Kind], clients: int) -> list[Outcome]:
    "Let `clients` threads work off the requests, each one at a time."
    waiting, outcomes, lock = iter(requests), [], threading.Lock()

    def work() -> None:
        client = Client(port)
        while True:
            with lock:
                kind = next(waiting, None)
            if kind is None:
                return
            outcomes.append(client.request(kind))

    threads = [threading.Thread(target=work) for _ in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return outcomes


def mixed(generator: np.random.Generator, good: list[Kind], bad: list[Kind], heavy: list[Kind], n: int) -> list[Kind]:
    "Draw `n` requests: 70 % good, 24 % bad, 6 % bombs, in any order."
    kinds = [bad if i < 0.24 * n else heavy if i < 0.3 * n else good for i in range(n)]
    return [kinds[i][generator.integers(len(kinds[i]))] for i in generator.permutation(n)]


@contextlib.contextmanager
def scratch_folder() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="snakecls-serve-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def random_bundle(folder: Path, arch: str = "tf_efficientnet_lite0", *, size: int = 352, flip: bool = True) -> Path:
    "Write a bundle of a network of real size with random weights."
    import timm

    from snakecls.models.bundle import write_bundle

    labels = [f"Species {i:02}" for i in range(14)]
    info = {"model": {"library": "timm", "arch": arch, "kwargs": {"num_classes": len(labels)}}, "labels": labels, "flip": flip, "photo": {"size": size}, "name": "benchmark",
            "notice": "Random weights: for measuring only.", "licence": "Apache-2.0", "weights_source": "random"}
    return write_bundle(folder / "best", timm.create_model(arch, num_classes=len(labels)), info)


def settled_mb(app: App, seconds: float = 8) -> float:
    "Give the memory after a while without requests."
    time.sleep(seconds)
    return memory_mb(app.process.pid)


def say(outcomes: list[Outcome]) -> None:
    "Print what did not get what it was due."
    for outcome in outcomes:
        if outcome.wrong:
            print(f"WRONG: {outcome.kind.name} ({outcome.kind.wanted} is due) got {outcome.status} {outcome.reason[:200]!r} {outcome.labels} after {outcome.seconds:.1f} s", flush=True)


def small_photo(seed: int) -> bytes:  # a JPEG of 0.3 megapixels, 80 KB, as a page would send it
    return telephone_photo(seed, (640, 480))


EDGE = "snakeclsbenchmark"


def form(content: bytes, *, name: str = "photo", filename: str | None = "snake.jpg") -> bytes:
    "Write a form with one field."
    said = f'; filename="{filename}"' if filename is not None else ""
    return f'--{EDGE}\r\nContent-Disposition: form-data; name="{name}"{said}\r\n\r\n'.encode() + content + f"\r\n--{EDGE}--\r\n".encode()


def http_kinds(*, side: int = 7000, too_far: int = 9500) -> tuple[list[Kind], list[Kind], list[Kind]]:  # good, bad, bombs
    "List what is asked of POST /predict; `filename` is the type that is said."
    whole = f"multipart/form-data; boundary={EDGE}"
    small, large = [small_photo(seed) for seed in range(6)], [telephone_photo(seed) for seed in range(2)]
    good = [Kind("photo", "answer", data=photo, filename="image/jpeg") for photo in small]
    good += [Kind("photo in a form", "answer", data=form(photo), filename=whole) for photo in small]
    good += [Kind("photo of 12 megapixels", "answer", data=photo, filename="image/jpeg") for photo in large]
    good += [Kind("name that leads elsewhere", "answer", data=form(small[0], filename="../../../etc/cron.d/a.jpg"), filename=whole)]
    texts = {"cut photo": small[0][: len(small[0]) // 2], "no photo": b"\xff\xd8\xff\xe0 this is no photo", "empty": b"", "SVG": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
             "HTML": b"<html><script>alert(1)</script></html>", "pickle": b"cos\nsystem\n(S'true'\ntR."}
    bad = [Kind(name, "reason", data=text, filename="image/jpeg") for name, text in texts.items()]
    bad += [Kind("server path in JSON", "reason", data=b'{"path": "/etc/passwd"}', filename="application/json"), Kind("server path in a form", "reason", data=form(b"/etc/passwd", filename=None), filename=whole),
            Kind("unknown word", "reason", data=form(b"Mexico", name="contry", filename=None), filename=whole), Kind("broken form", "reason", data=form(small[0])[:-20], filename=whole),
            Kind("too large", "reason", data=bytes(41_000_000), filename="image/jpeg")]
    heavy = [Kind(f"{name} of {pixels**2 / 1e6:.0f} megapixels", wanted, data=data, filename="image/png") for pixels, wanted in ((side, "either"), (too_far, "reason"))
             for name, (data, _) in bombs(pixels).items()]
    return good, bad, heavy


class HttpClient:
    "Plain HTTP, one connection as long as it is kept."

    def __init__(self, port: int):
        self.port, self.connection = port, None

    def request(self, kind: Kind) -> Outcome:
        "Ask about a photo."
        started, outcome = time.perf_counter(), Outcome(kind, 0)
        try:
            if self.connection is None:
                self.connection = HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE_S)
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # refused before all was sent: the reply says why
                self.connection.request("POST", "/predict", kind.data, {"Content-Type": kind.filename})
            reply = self.connection.getresponse()
            outcome.status, said = reply.status, json.loads(reply.read())
            outcome.labels = [row["label"] for row in said] if isinstance(said, list) else []
            outcome.reason = said.get("detail", "") if isinstance(said, dict) else ""
            if reply.will_close:
                self.close()
        except (OSError, HTTPException, ValueError) as e:
            outcome.status, outcome.reason = 0, f"{type(e).__name__}: {e}"
            self.close()
        outcome.seconds = time.perf_counter() - started
        return outcome

    def close(self) -> None:
        if self.connection is not None:
            self.connection.close()
        self.connection = None


def hold(port: int, draw: Callable[[np.random.Generator], Kind], clients: int, seconds: float, *, seed: int = 0) -> tuple[list[Outcome], float]:  # and how long it took
    "Let `clients` threads ask one request after the other for some seconds; each ends with its last answer."
    outcomes, began = [], time.perf_counter()

    def work(number: int) -> None:
        generator, client = np.random.default_rng([seed, number]), HttpClient(port)
        while time.perf_counter() - began < seconds:
            outcomes.append(client.request(draw(generator)))
        client.close()

    threads = [threading.Thread(target=work, args=(number,)) for number in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return outcomes, time.perf_counter() - began


def run_sizes(port: int) -> np.ndarray:  # photos, runs and seconds of the network since the start
    "Ask /metrics how many photos were run, in how many runs, and for how long."
    connection = HTTPConnection("127.0.0.1", port, timeout=30)
    connection.request("GET", "/metrics")
    text = connection.getresponse().read().decode()
    connection.close()
    return np.array([float(re.search(rf"^snakecls_{what} (\S+)", text, re.MULTILINE)[1]) for what in ("batch_photos_sum", "batch_photos_count", "run_seconds_sum")])


def measure_http(folder: Path, record: Callable, args: argparse.Namespace) -> bool:  # whether all was as it should be
    "64 clients for a minute, 70 % good photos, 26 % bad requests, 4 % bombs."
    good, bad, heavy = http_kinds()

    def draw(generator: np.random.Generator) -> Kind:
        kinds = (good, bad, heavy)[int(generator.choice(3, p=(0.70, 0.26, 0.04)))]
        kind = kinds[generator.integers(len(kinds))]
        return kind if kind.name != "too large" or generator.random() < 0.1 else bad[0]  # 41 MB each: they measure the loopback device

    app = App(args.bundle or random_bundle(folder), folder / "http").wait()
    try:
        warm, _ = hold(app.port, draw, 64, args.seconds / 2, seed=1)
        before = settled_mb(app)
        outcomes, took = hold(app.port, draw, 64, args.seconds)
        after, sizes = settled_mb(app, 15), run_sizes(app.port)
        alive = app.process.poll() is None
        peak = app.peak_mb
    finally:
        seconds = app.stop()
    tracebacks, left = app.log.read_text().count("Traceback"), sum(file.is_file() for file in app.uploads.rglob("*")) if app.uploads.exists() else 0
    times = {what: [one.seconds for one in outcomes if one.kind.wanted == what and not one.wrong] for what in ("answer", "reason")}
    note = (f"tf_efficientnet_lite0 at 352 px, flip; POST /predict, 64 clients for {took:.0f} s: 70 % good photos (2 of 15 of 12 megapixels, else 640 x 480), 26 % bad requests, 4 % bombs"
            f"{'; ' + args.note if args.note else ''}")
    record("serve", f"http, 64 clients: good requests (p95 {np.percentile(times['answer'], 95):.2f})", times["answer"], unit="seconds", note=note)
    record("serve", f"http, 64 clients: bad requests (p95 {np.percentile(times['reason'], 95):.2f})", times["reason"], unit="seconds", note=note)
    failed = {what: [float(one.wrong) for one in outcomes if (one.kind.wanted == "answer") is (what == "good")] for what in ("good", "bad")}
    record("serve", "http, 64 clients: good requests that failed", failed["good"], unit="share", note=note)
    statuses = sorted({one.status for one in outcomes if one.kind.wanted == "reason"})
    record("serve", "http, 64 clients: bad requests without a reason", failed["bad"], unit="share", note=f"{len({one.kind.name for one in outcomes})} kinds; statuses {statuses}; {tracebacks} tracebacks in the log")
    record("serve", "http, 64 clients: memory before, after, peak", [before, after, peak], unit="MB (RSS)",
           note=f"{len(outcomes)} requests after {len(warm)} to warm up; before {before:.0f}, after {after:.0f} ({after / before - 1:+.1%}), peak {peak:.0f}; {left} uploads left; "
                f"{sizes[0] / max(sizes[1], 1):.2f} photos a run; ended in {seconds:.1f} s")
    say([*warm, *outcomes])
    print(f"{len(outcomes) / took:.1f} requests a second, {len(times['answer']) / took:.1f} of them answered photos; statuses of bad requests {statuses}; {tracebacks} tracebacks")
    return alive and not any(one.wrong for one in [*warm, *outcomes]) and after <= 1.1 * before


def measure_batching(folder: Path, record: Callable, args: argparse.Namespace) -> bool:
    "The same small photos, asked one after the other and by 64 clients, the network run for one, for as many as pay, and for up to 8; arms in turn."
    bundle = args.bundle or random_bundle(folder / "small", size=224, flip=False)
    photos = [Kind("small photo", "answer", data=small_photo(seed), filename="image/jpeg") for seed in range(8)]
    arms = {"one after the other": ("1", 1), "64 clients, one photo a run": ("1", 64), "64 clients, as many as pay": ("", 64), "64 clients, up to 8 photos a run": ("8", 64)}
    apps = {most: App(bundle, folder / f"most{most or 'measured'}", **({"SNAKECLS_BATCH": most} if most else {})).wait() for most in dict.fromkeys(most for most, _ in arms.values())}
    rates, sizes, busy, wrong = {name: [] for name in arms}, {name: [] for name in arms}, {name: [] for name in arms}, False
    rounds = 2 if args.quick else 6
    try:
        for app in apps.values():
            hold(app.port, lambda generator: photos[generator.integers(8)], 16, 3)
        for number in range(rounds):
            for name, (most, clients) in [*arms.items()][:: 1 if number % 2 else -1]:
                app = apps[most]
                before = run_sizes(app.port)
                outcomes, took = hold(app.port, lambda generator: photos[generator.integers(8)], clients, args.seconds / 10, seed=number)
                ran = run_sizes(app.port) - before
                rates[name].append(sum(not one.wrong for one in outcomes) / took)
                sizes[name].append(ran[0] / max(ran[1], 1))
                busy[name].append(ran[2] / took)
                wrong |= any(one.wrong for one in outcomes)
                say(outcomes)
    finally:
        for app in apps.values():
            app.stop()
    base, alone = np.array(rates["64 clients, one photo a run"]), np.array(rates["one after the other"])
    for name, found in rates.items():
        note = (f"tf_efficientnet_lite0 at 224 px, photos of 640 x 480; {np.mean(sizes[name]):.2f} photos a run, the network busy {np.mean(busy[name]):.0%} of the time; {np.median(np.array(found) / base):.2f} of one photo a run and "
                f"{np.median(np.array(found) / alone):.2f} of one after the other (medians of rounds); clients on the same cores; arms in turn{'; ' + args.note if args.note else ''}")
        record("serve", f"batching, {name}", found, unit="photos a second", note=note)
    return not wrong


def measure_gradio(folder: Path, record: Callable, args: argparse.Namespace) -> bool:
    "1, 16 and 64 clients of Gradio's API."
    n, growth, rounds = (max(10, args.requests // 5), args.growth // 10, 1) if args.quick else (args.requests, args.growth, 3)
    generator = np.random.default_rng(0)
    good, bad, heavy = kinds_of_requests([telephone_photo(seed) for seed in range(4)])
    small = [Kind("small photo", "answer", upload=telephone_photo(seed, (640, 480))) for seed in range(8)]
    app = App(args.bundle or random_bundle(folder), folder / "app").wait()
    try:
        drive(app.port, good * 8, 16)
        before, outcomes = settled_mb(app), {clients: [] for clients in CLIENTS}
        for _ in range(rounds):
            for clients in CLIENTS:
                outcomes[clients] += drive(app.port, mixed(generator, good, bad, heavy, n), clients)
                print(f"{clients} clients, {len(outcomes[clients])} requests, {memory_mb(app.process.pid):.0f} MB", flush=True)
        after_load = settled_mb(app)
        slim = [kind for kind in bad if kind.name not in ("too large", "giant JSON", "giant text")]  # 40 MB each: they measure the loopback device
        rest = drive(app.port, mixed(generator, small, slim, [kind for kind in heavy if "16-bit" in kind.name or "RGBA" in kind.name], growth), 16) if growth else []
        after = settled_mb(app, 15)
        last = drive(app.port, good * 2, 2)
    finally:
        seconds = app.stop()
    left = sum(file.is_file() for file in app.uploads.rglob("*")) if app.uploads.exists() else 0
    tracebacks = app.log.read_text().count("Traceback")
    note = f"tf_efficientnet_lite0 at 352 px, flip; photos of 12 megapixels, 24 % bad requests, 6 % bombs; {rounds} rounds in turn{'; ' + args.note if args.note else ''}"
    for clients, found in outcomes.items():
        times = [outcome.seconds for outcome in found if outcome.kind.wanted == "answer" and not outcome.wrong]
        if times:
            record("serve", f"{clients} client{'s' * (clients > 1)}: good requests (p95 {np.percentile(times, 95):.2f})", times, unit="seconds", note=note)
    every = [outcome for found in outcomes.values() for outcome in found] + rest + last
    failed = {what: [float(outcome.wrong) for outcome in every if (outcome.kind.wanted == "answer") is (what == "good")] for what in ("good", "bad")}
    record("serve", "good requests that failed", failed["good"], unit="share", note=note)
    record("serve", "bad requests without a reason", failed["bad"], unit="share", note=f"{len({outcome.kind.name for outcome in every}) - 2} kinds; {tracebacks} tracebacks in the log")
    record("serve", "memory before, after load, after growth, peak", [before, after_load, after, app.peak_mb], unit="MB (RSS)", note=f"{len(every)} requests; before {before:.0f}, after load {after_load:.0f}, after {after:.0f}, peak {app.peak_mb:.0f}; {left} uploads left; ended in {seconds:.1f} s")
    say(every)
    worst = sorted((outcome.seconds, outcome.kind.name) for outcome in every)[-5:]
    print(f"slowest: {worst}\nmemory: before {before:.0f}, after load {after_load:.0f}, after {after:.0f} ({after / before - 1:+.1%}), peak {app.peak_mb:.0f} MB; {left} uploads left, {tracebacks} tracebacks, ended in {seconds:.1f} s")
    return not any(outcome.wrong for outcome in every) and after <= 1.1 * before


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", nargs="?", choices=("gradio", "http", "batching"), help="by default all of them")
    parser.add_argument("--quick", action="store_true", help="a tenth of the requests")
    parser.add_argument("--requests", type=int, default=60, help="for each number of clients in each of three rounds")
    parser.add_argument("--growth", type=int, default=3000, help="mixed requests with small photos, after which memory is compared")
    parser.add_argument("--seconds", type=float, default=60, help="of http; of batching a tenth for each arm in each of six rounds")
    parser.add_argument("--bundle", type=Path, help="a bundle's folder; by default an EfficientNet-Lite0 at 352 px with random weights")
    parser.add_argument("--note", default="", help="words for the rows' note")
    parser.add_argument("--dry", action="store_true", help="write no rows")
    args = parser.parse_args()
    args.seconds = min(args.seconds, 6) if args.quick else args.seconds
    record: Callable = (lambda *values, **named: print(values[:2], np.round([np.mean(values[2]), np.std(values[2])], 3), named)) if args.dry else __import__("common").record
    parts = {"http": measure_http, "batching": measure_batching, "gradio": measure_gradio}
    right = True
    for name in [args.part] if args.part else parts:
        with scratch_folder() as folder:
            right &= parts[name](folder, record, args)
    return int(not right)


if __name__ == "__main__":
    sys.exit(main())
