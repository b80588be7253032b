"""Photos from addresses: what is fetched, and everything else that an address or a server may try.

The internet is a server of this process: `_Net` says at which public address a name is, and whoever connects there gets it. The
rules about addresses are those of the library; nothing but loopback is reached."""
import gzip
import io
import json
import re
import shutil
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from conftest import do_without, draw_snake
from snakecls.core import UserError
from snakecls.data import fetch
from snakecls.data.fetch import FetchError, _Net, fetch_photo, is_public, photo_file
from snakecls.data.given import given_photos
from snakecls.data.photos import PhotoError, open_photo
from test_faults_folders import heic

PUBLIC = "93.184.215.14"


def jpeg() -> bytes:
    draw_snake(3).save(stream := io.BytesIO(), "JPEG", quality=90)
    return stream.getvalue()


JPEG = jpeg()


class Site(ThreadingHTTPServer):
    "A server whose pages are functions of the request's handler."

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.pages, self.asked, self.sent, self.looked_up = {}, [], 0, []
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()

    def net(self, find=None, **more) -> _Net:
        "The network in which this is the only server; `find` says where names are."

        def look_up(host: str, port: int) -> list[str]:
            self.looked_up.append((host, port))
            return find(host) if find else [PUBLIC]

        def reach(place: tuple[str, int], seconds: float) -> socket.socket:
            assert is_public(place[0]), place  # the library's own check let it through
            return socket.create_connection(self.server_address, seconds)

        return _Net(look_up, reach, **more)

    def handle_error(self, request, client_address):
        pass  # clients that hang up are what is tested


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.server.asked.append((self.path, dict(self.headers)))
        self.server.pages[self.path.partition("?")[0]](self)

    def log_message(self, *words):
        pass

    def give(self, body: bytes = JPEG, status: int = 200, **headers: str) -> None:
        "Answer; names of headers are written with _ for -."
        self.send_response(status)
        for key, value in ({"Content_Type": "image/jpeg", "Content_Length": str(len(body))} | headers).items():
            if value:
                self.send_header(key.replace("_", "-"), value)
        self.end_headers()
        self.pour(body)

    def pour(self, *pieces: bytes, pause_s: float = 0) -> None:
        "Send, until the client hangs up."
        for piece in pieces:
            try:
                self.wfile.write(piece)
            except OSError:
                return
            self.server.sent += len(piece)
            time.sleep(pause_s)


@pytest.fixture
def site(monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    server = Site()
    server.pages["/a.jpg"] = Handler.give
    yield server
    server.shutdown(), server.server_close()
    assert not list((tmp_path / "temporary").iterdir())  # whatever happened, nothing is left


def fetched(url: str, net: _Net, **more) -> Image.Image:
    with fetch_photo(url, _net=net, **more) as file:
        assert file.name == "photo" and file.parent.name.startswith("snakecls-")
        return open_photo(file)


def why(url: str, net: _Net, **more) -> str:
    "The sentence with which an address is refused."
    with pytest.raises(PhotoError) as caught:
        fetched(url, net, **more)
    said = str(caught.value)
    assert said.startswith(caught.value.source) and said.endswith(".") and "\n" not in said and "/temporary/" not in said, said
    return said


# What is fetched


def test_a_photo_is_the_one_of_its_file_and_no_more_is_told_than_needed(site, tmp_path):
    (tmp_path / "a.jpg").write_bytes(JPEG)
    assert fetched("http://photos.example/a.jpg?size=large#top", site.net()).tobytes() == open_photo(tmp_path / "a.jpg").tobytes()
    (path, headers), = site.asked
    assert path == "/a.jpg?size=large" and headers.pop("User-Agent").startswith("snakecls/")
    assert headers == {"Host": "photos.example", "Accept": "image/*", "Accept-Encoding": "identity", "Connection": "close"}


@pytest.mark.parametrize("kind", ["image/jpeg", "image/heic", "IMAGE/JPEG; charset=x", "application/octet-stream", "binary/octet-stream", ""])
def test_what_the_server_calls_a_photo_is_a_hint(site, kind):
    site.pages["/a.jpg"] = lambda talk: talk.give(Content_Type=kind)
    assert fetched("http://photos.example/a.jpg", site.net()).size == (120, 90)


def test_heic_pieces_and_answers_without_a_length(site, tmp_path):
    site.pages["/a.heic"] = lambda talk: talk.give(heic(tmp_path / "a.heic", draw_snake(3)).read_bytes(), Content_Type="image/heic")
    site.pages["/pieces"] = lambda talk: (talk.give(b"", Content_Length="", Transfer_Encoding="chunked"), talk.pour(b"%x\r\n" % len(JPEG) + JPEG + b"\r\n0\r\n\r\n"))
    site.pages["/open"] = lambda talk: (talk.give(JPEG, Content_Length="", Connection="close"), setattr(talk, "close_connection", True))
    for path in ("/a.heic", "/pieces", "/open"):
        assert fetched(f"http://photos.example{path}", site.net()).size == (120, 90)


def test_redirects_are_followed_and_each_is_looked_up_anew(site):
    site.pages["/1"] = lambda talk: talk.give(b"", 301, Location="http://other.example/2")
    site.pages["/2"] = lambda talk: talk.give(b"", 302, Location="3?x=sch%C3%B6n")
    site.pages["/3"] = lambda talk: talk.give(b"", 307, Location="//third.example/größe/a.jpg".encode().decode("latin-1"))
    site.pages["/gr%C3%B6%C3%9Fe/a.jpg"] = Handler.give
    assert fetched("http://photos.example/1", site.net()).size == (120, 90)
    assert [host for host, _ in site.looked_up] == ["photos.example", "other.example", "other.example", "third.example"]
    assert [path for path, _ in site.asked] == ["/1", "/2", "/3?x=sch%C3%B6n", "/gr%C3%B6%C3%9Fe/a.jpg"]


def test_proxies_of_the_environment_are_not_used(site, monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    assert fetched("http://photos.example/a.jpg", site.net()).size == (120, 90)


def test_names_in_other_scripts_are_asked_for_in_ascii(site):
    assert fetched("http://schlangen-für-alle.example/a.jpg", site.net()).size == (120, 90)
    assert site.looked_up == [("xn--schlangen-fr-alle-d3b.example", 80)] and site.asked[0][1]["Host"] == "xn--schlangen-fr-alle-d3b.example"


def test_the_next_address_is_tried_where_the_first_does_not_answer(site):
    tried, there = [], site.net()

    def reach(place, seconds):
        tried.append(place[0])
        if len(tried) == 1:
            raise OSError(101, "Network is unreachable")
        return there.reach(place, seconds)

    assert fetched("http://photos.example/a.jpg", _Net(lambda *_: ["2606:2800:21f:cb07::1", PUBLIC], reach)).size == (120, 90)
    assert tried == ["2606:2800:21f:cb07::1", PUBLIC]


# Where an address leads

INSIDE = ["127.0.0.1", "127.9.9.9", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1", "0.0.0.0", "0.1.2.3", "224.0.0.1", "239.1.1.1", "240.0.0.1", "255.255.255.255",
          "192.0.0.170", "192.88.99.1", "198.18.0.1", "192.0.2.1", "203.0.113.5", "::1", "::", "fe80::1", "fec0::1", "fd00:ec2::254", "ff02::1", "2001:db8::1", "::127.0.0.1",
          "::ffff:127.0.0.1", "::ffff:10.0.0.1", "64:ff9b::127.0.0.1", "64:ff9b::a00:1", "64:ff9b:1::a00:1", "2002:7f00:1::", "2002:5db8:d70e::", "2001:0:5ef5:79fd:380f:1b57:a247:28f1"]


@pytest.mark.parametrize("address", INSIDE)
def test_no_address_within_is_reached_by_name_by_number_or_by_redirect(site, address):
    number = f"[{address}]" if ":" in address else address
    site.pages["/on"] = lambda talk: talk.give(b"", 302, Location=f"http://{number}/a.jpg")
    for url, find in ((f"http://{number}/a.jpg", None), ("http://photos.example/a.jpg", lambda host: [address]), ("http://photos.example/a.jpg", lambda host: [PUBLIC, address]), ("http://photos.example/on", None)):
        said = why(url, site.net(find))
        assert "which is this machine, a private network or nowhere" in said and ("leads on to" in said) == url.endswith("on"), said
    assert [path for path, _ in site.asked] == ["/on"]  # the server that leads on is public; no other was asked


@given(st.ip_addresses(v=4))
@settings(max_examples=300, deadline=None)
def test_what_holds_an_address_is_as_public_as_that(address):
    for holder in (f"::ffff:{address}", f"64:ff9b::{address}"):
        assert is_public(holder) == is_public(str(address))
    assert not any(is_public(holder) for holder in (f"::{address}", f"2002:{int(address) >> 16:x}:{int(address) & 0xffff:x}::1"))
    if address.is_private or address.is_loopback or address.is_link_local or address.is_multicast:
        assert not is_public(str(address))


@given(st.ip_addresses(v=6))
@settings(max_examples=300, deadline=None)
def test_of_ipv6_only_what_is_given_out_is_public(address):
    assert not is_public(str(address)) or str(address).startswith(("2", "3", "64:ff9b::", "::ffff:"))


def test_a_name_is_looked_up_once_for_each_place(site):
    "A name that is public when it is checked and this machine when it is reached is what rebinding is."
    answers = [[PUBLIC], ["127.0.0.1"]]
    assert fetched("http://photos.example/a.jpg", site.net(lambda host: answers[len(site.looked_up) - 1])).size == (120, 90)
    assert len(site.looked_up) == 1
    site.pages["/on"] = lambda talk: talk.give(b"", 302, Location="/a.jpg")
    site.looked_up.clear()
    assert "leads on to http://photos.example/a.jpg: it is at 127.0.0.1" in why("http://photos.example/on", site.net(lambda host: answers[len(site.looked_up) - 1]))


@pytest.mark.parametrize("url, sentence", [
    ("http://0x7f.1/", "no name"), ("http://2130706433/", "no name"), ("http://017700000001/", "no name"), ("http://127.1/", "no name"), ("http://0177.0.0.1/", "no name"), ("http://1.2.3.4.5/", "no name"),
    ("http://127.0.0.1./", "is at 127.0.0.1"), ("http://①②⑦.⓪.⓪.①/", "is at 127.0.0.1"), ("http://127。0。0。1/", "is at 127.0.0.1"), ("http://[::1]/", "is at ::1"), ("http://[::ffff:7f00:1]/", "is at ::ffff:"), ("http://[fe80::1%25eth0]/", "is no name|is at"),
    ("http://localhost./", "within one's own network"), ("http://LOCALHOST/", "within one's own network"), ("http://printer/", "within one's own network"), ("http://nas.local/", "within one's own network"), ("http://metadata.google.internal/", "within one's own network"),
    ("http://good.example@127.0.0.1/", "before '@'"), ("http://me:secret@photos.example/", "before '@'"), ("http://@photos.example/", "before '@'"), ("http://photos.example\\@127.0.0.1/", "one that no address has"),
    ("http://photos.example:22/", "port 22"), ("http://photos.example:99999/", "no address"), ("http://photos.example:0/", "port 0"), ("https://photos.example:6379/", "port 6379"),
    ("ftp://photos.example/a.jpg", "not by ftp"), ("file:///etc/passwd", "not by file"), ("gopher://photos.example/", "not by gopher"), ("data:image/png;base64,AAAA", "not by data"), ("/etc/passwd", "not by nothing"), ("javascript:alert(1)", "not by javascript"),
    ("http://", "is no name"), ("http:///a.jpg", "is no name"), ("http://[::1", "no address"), ("http://a..b/", "no name"), ("http://%31%32%37.example/", "is no name"), ("http://-a.example/", "is no name"), ("http://" + "a" * 64 + ".example/", "no name"),
    ("http://" + "a." * 130 + "example/", "no name"), ("http://photos.example/a\r\nX-Evil: 1", "one that no address has"), ("http://photos.example/\0", "one that no address has"), ("http://photos.example/" + "a" * 5000, "longer than 4,000"),
])  # fmt: skip
def test_addresses_that_are_not_asked(site, url, sentence):
    said = why(url, site.net())
    assert any(one in said for one in sentence.split("|")) and "secret" not in said and len(said) < 700, said
    assert not site.asked and not site.looked_up


@pytest.mark.parametrize("location, sentence", [
    ("http://127.0.0.1/admin", "leads on to http://127.0.0.1/admin: it is at 127.0.0.1"), ("http://[::1]/", "is at ::1"), ("http://0x7f000001/", "no name"), ("//localhost/x", "own network"), ("http://me:secret@photos.example/a.jpg", "before '@'"),
    ("file:///etc/passwd", "not by file"), ("ftp://photos.example/a.jpg", "not by ftp"), ("http://photos.example:22/", "port 22"), ("", "does not say where"), ("http://[", "no address"), ("/on", "more than 5 times"),
])  # fmt: skip
def test_redirects_that_are_not_followed(site, location, sentence):
    site.pages["/on"] = lambda talk: talk.give(b"", 302, Location=location)
    said = why("http://photos.example/on", site.net())
    assert sentence in said and "secret" not in said, said
    assert len(site.asked) == (6 if location == "/on" else 1)


# What a server sends


def test_a_server_that_drips_is_cut_off(site):
    "A byte, and again a byte: no wait is long, and the whole has an end; of a body, of headers, of a status."
    site.pages["/body"] = lambda talk: (talk.give(b"", Content_Length="100000"), talk.pour(*[b"x"] * 200, pause_s=0.05))
    site.pages["/headers"] = lambda talk: talk.pour(b"HTTP/1.1 200 OK\r\n", *[b"X-A: b\r\n"] * 200, pause_s=0.05)
    site.pages["/status"] = lambda talk: talk.pour(*[b"H"] * 200, pause_s=0.05)
    site.pages["/silent"] = lambda talk: time.sleep(2)
    site.pages["/pieces"] = lambda talk: (talk.give(b"", Content_Length="", Transfer_Encoding="chunked"), talk.pour(*[b"1\r\nx\r\n"] * 200, pause_s=0.05))
    site.pages["/round"] = lambda talk: (time.sleep(0.2), talk.give(b"", 302, Location="/round"))
    for path in ("/body", "/headers", "/status", "/silent", "/pieces", "/round"):
        start = time.monotonic()
        assert "takes longer than 0.5 s" in why(f"http://photos.example{path}", site.net(), max_s=0.5), path
        assert 0.4 < time.monotonic() - start < 1.5, path


def test_a_name_that_is_looked_up_without_end_is_cut_off(site):
    start = time.monotonic()
    assert "takes longer than 0.3 s" in why("http://photos.example/a.jpg", site.net(lambda host: time.sleep(3) or [PUBLIC]), max_s=0.3)
    assert time.monotonic() - start < 1.5


MEGABYTE = bytes(1_000_000)


def test_a_body_of_200_megabytes_is_cut_off_whatever_it_says_of_itself(site):
    site.pages["/said"] = lambda talk: (talk.give(b"", Content_Length="200000000"), talk.pour(*[MEGABYTE] * 200))
    site.pages["/unsaid"] = lambda talk: (talk.give(b"", Content_Length="", Connection="close"), talk.pour(*[MEGABYTE] * 200), setattr(talk, "close_connection", True))
    site.pages["/pieces"] = lambda talk: (talk.give(b"", Content_Length="", Transfer_Encoding="chunked"), talk.pour(*[b"f4240\r\n" + MEGABYTE + b"\r\n"] * 200))
    site.pages["/minus"] = lambda talk: (talk.give(b"", Content_Length="-1", Connection="close"), talk.pour(*[MEGABYTE] * 200))
    site.pages["/minus-piece"] = lambda talk: (talk.give(b"", Content_Length="", Transfer_Encoding="chunked"), talk.pour(b"-1\r\n", *[MEGABYTE] * 200))  # http.client would read on to the end
    site.pages["/headers"] = lambda talk: talk.pour(b"HTTP/1.1 200 OK\r\n", *[b"X: " + b"a" * 60_000 + b"\r\n"] * 3000)
    site.pages["/waits"] = lambda talk: talk.pour(*[b"HTTP/1.1 100 Continue\r\nX: " + b"a" * 60_000 + b"\r\n\r\n"] * 3000)
    for path in site.pages.keys() - {"/a.jpg"}:
        site.sent = 0
        said = why(f"http://photos.example{path}", site.net(), max_bytes=2_000_000)
        assert "larger than the 2 MB that are taken" in said or (path == "/headers" and "no HTTP" in said), (path, said)
        assert site.sent < 20_000_000, path  # what lies in the buffers of this machine's loopback, at most


def test_a_length_that_lies_makes_no_photo(site):
    site.pages["/less"] = lambda talk: talk.give(JPEG, Content_Length="2000")
    site.pages["/more"] = lambda talk: (talk.give(JPEG, Content_Length=str(len(JPEG) + 10)), setattr(talk, "close_connection", True))
    site.pages["/pieces"] = lambda talk: (talk.give(b"", Content_Length="", Transfer_Encoding="chunked"), talk.pour(b"ffff\r\n" + JPEG[:3000]), setattr(talk, "close_connection", True))
    site.pages["/half"] = lambda talk: (talk.give(JPEG[:3000], Content_Length="", Connection="close"), setattr(talk, "close_connection", True))
    assert "cannot be read as a photo" in why("http://photos.example/less", site.net())
    assert f"ended in its middle, after {len(JPEG):,} of {len(JPEG) + 10:,} bytes" in why("http://photos.example/more", site.net())
    assert "ended in its middle" in why("http://photos.example/pieces", site.net())
    assert "cannot be read as a photo" in why("http://photos.example/half", site.net())


def test_what_is_packed_for_the_way_is_not_unpacked(site):
    bomb = gzip.compress(bytes(10_000_000))
    site.pages["/bomb"] = lambda talk: talk.give(bomb, Content_Encoding="gzip")
    site.pages["/br"] = lambda talk: talk.give(JPEG, Content_Encoding="br")
    site.pages["/unsaid"] = lambda talk: talk.give(bomb)
    for path in ("/bomb", "/br"):
        assert "packs it for the way" in why(f"http://photos.example{path}", site.net())
    assert "none of the known formats" in why("http://photos.example/unsaid", site.net())


SVG = b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>'


@pytest.mark.parametrize("body, kind, sentence", [
    (SVG, "image/svg+xml", "no photo"), (SVG, "image/jpeg", "none of the known formats"), (SVG, "application/octet-stream", "none of the known formats"),
    (b"<!DOCTYPE html><html>", "text/html; charset=utf-8", "a page and not a photo"), (b"<!DOCTYPE html><html>", "image/jpeg", "none of the known formats"), (b"<html>", "application/xhtml+xml", "a page and not a photo"),
    (b"%PDF-1.4", "application/pdf", "no photo"), (b"cos\nsystem\n(S'touch here'\ntR.", "image/jpeg", "none of the known formats"), (JPEG, "text/plain", "'text/plain' and no photo"), (b"", "image/jpeg", "is empty"),
    (JPEG, "\x1b[31mred", "no photo"),
])  # fmt: skip
def test_what_is_no_photo_is_told(site, body, kind, sentence):
    site.pages["/photo.jpg"] = lambda talk: talk.give(body, Content_Type=kind)
    said = why("http://photos.example/photo.jpg", site.net())
    assert sentence in said and "\x1b" not in said, said


def test_a_photo_of_too_many_pixels_does_not_unfold(site):
    Image.new("1", (12_000, 13_000)).save(stream := io.BytesIO(), "PNG")
    site.pages["/bomb.png"] = lambda talk: talk.give(stream.getvalue(), Content_Type="image/png")
    assert len(stream.getvalue()) < 100_000 and "12000 x 13000 pixels are more than the 150,000,000 allowed" in why("http://photos.example/bomb.png", site.net())
    assert "more than the 1,000 allowed" in why("http://photos.example/a.jpg", site.net(), max_pixels=1000)


@pytest.mark.parametrize("answer, sentence", [
    (b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n", "answered 404 Not Found"), (b"HTTP/1.1 500 \x1b[31m\r\nContent-Length: 0\r\n\r\n", "answered 500"), (b"HTTP/1.1 204 No Content\r\n\r\n", "answered 204"), (b"HTTP/1.1 304 Not Modified\r\n\r\n", "answered 304"),
    (b"HTTP/1.1 206 Partial Content\r\nContent-Length: 3\r\n\r\nabc", "answered 206"), (b"SSH-2.0-OpenSSH_9\r\n", "no HTTP"), (b"", "no HTTP"), (JPEG, "no HTTP"), (b"HTTP/9.9 200 OK\r\n\r\n", "no HTTP"), (b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 200 + b"\r\n", "no HTTP"),
    (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Type: image/jpeg\r\n\r\nxyz\r\n", "middle"),
])  # fmt: skip
def test_other_answers_are_one_sentence(site, answer, sentence):
    site.pages["/odd"] = lambda talk: (talk.pour(answer), setattr(talk, "close_connection", True))
    said = why("http://photos.example/odd", site.net())
    assert sentence in said and "\x1b" not in said, said


def test_errors_within_name_the_address_and_others_stay(site, tmp_path):
    with pytest.raises(PhotoError, match="^http://photos.example/a.jpg cannot be read as a photo: .*max_pixels"), fetch_photo("http://photos.example/a.jpg", _net=site.net()) as file:
        open_photo(file, max_pixels=10)
    with pytest.raises(PhotoError, match="gone.jpg cannot be read"), fetch_photo("http://photos.example/a.jpg", _net=site.net()):
        open_photo(tmp_path / "gone.jpg")
    with pytest.raises(ZeroDivisionError), fetch_photo("http://photos.example/a.jpg", _net=site.net()):
        raise ZeroDivisionError


# Over https


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    "A certificate of photos.example that nobody but its owner believes."
    if not shutil.which("openssl"):
        do_without("openssl makes the certificate")
    folder = tmp_path_factory.mktemp("certificate")
    made = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", folder / "key.pem", "-out", folder / "cert.pem", "-days", "2", "-subj", "/CN=photos.example", "-addext", "subjectAltName=DNS:photos.example"]
    subprocess.run(made, check=True, capture_output=True)
    return folder


@pytest.fixture
def safe(site, certificate):
    "The server over TLS, and the names that were asked for before anything was encrypted."
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate / "cert.pem", certificate / "key.pem")
    site.names = []
    context.sni_callback = lambda sock, name, context: site.names.append(name)
    site.socket = context.wrap_socket(site.socket, server_side=True)
    site.trust = lambda: ssl.create_default_context(cafile=certificate / "cert.pem")
    return site


def test_https_proves_the_name(safe):
    assert fetched("https://photos.example/a.jpg", safe.net(trust=safe.trust)).size == (120, 90) and safe.names == ["photos.example"]
    assert "cannot prove" in why("https://other.example/a.jpg", safe.net(trust=safe.trust)) and "not valid for 'other.example'" in why("https://other.example/a.jpg", safe.net(trust=safe.trust))
    assert "cannot prove" in why("https://photos.example/a.jpg", safe.net())  # who believes nobody's own certificates
    assert "cannot prove" in why(f"https://{PUBLIC}/a.jpg", safe.net(trust=safe.trust))  # the name is no number
    assert len(safe.asked) == 1


def test_https_does_not_lead_to_http(safe):
    safe.pages["/on"] = lambda talk: talk.give(b"", 302, Location="http://photos.example/a.jpg")
    assert "leads on from https to http://photos.example/a.jpg" in why("https://photos.example/on", safe.net(trust=safe.trust)) and len(safe.asked) == 1


def test_a_server_that_speaks_no_tls_or_says_nothing_is_one_sentence(site):
    assert "was not fetched" in why("https://photos.example/a.jpg", site.net())
    with socket.create_server(("127.0.0.1", 0)) as silent:
        start = time.monotonic()
        net = _Net(lambda *_: [PUBLIC], lambda place, seconds: socket.create_connection(silent.getsockname(), seconds))
        assert "takes longer than 0.4 s" in why("https://photos.example/a.jpg", net, max_s=0.4) and time.monotonic() - start < 1.5


def test_without_a_network_there_is_one_sentence(site):
    def offline(*_):
        raise socket.gaierror(-3, "Temporary failure in name resolution")

    assert "was not found; is there a network" in why("https://photos.example/a.jpg", _Net(find=offline))
    assert "cannot be reached (Connection refused)" in why("http://photos.example/a.jpg", _Net(lambda *_: [PUBLIC], lambda place, seconds: socket.create_connection(("127.0.0.1", 1), seconds)))
    assert _Net() == fetch._NET and fetch._NET.reach is socket.create_connection  # what commands use is the system's own
    with pytest.raises(FetchError, match="is at 127.0.0.1"), fetch_photo(f"http://127.0.0.1:{80}/a.jpg"):
        pass


# Among what is given


def test_addresses_stand_among_files_and_in_tables(tmp_path):
    draw_snake(1).save(tmp_path / "1.jpg")
    web = "https://photos.example/1.jpg?a=*&b=[1]"
    assert given_photos([web, str(tmp_path / "1.jpg")]) == [(web, web), (str(tmp_path / "1.jpg"), str(tmp_path / "1.jpg"))]
    assert given_photos(["https://photos.example/" + "a" * 3000]) == [("https://photos.example/" + "a" * 3000,) * 2]
    (tmp_path / "mixed.csv").write_text(f"path,note\n1.jpg,here\n{web},there\nhttps://photos.example/1.jpg,there\n")
    assert given_photos([str(tmp_path / "mixed.csv")]) == [("1.jpg", str(tmp_path / "1.jpg")), (web, web), ("https://photos.example/1.jpg",) * 2]
    (tmp_path / "web.csv").write_text(f"id,url\n1,{web}\n2,\n")
    assert given_photos([str(tmp_path / "web.csv")]) == [(web, web)]
    (tmp_path / "two.csv").write_text(f"a,b\n{web},{web}\n")
    with pytest.raises(UserError, match="no column that looks like paths"):
        given_photos([str(tmp_path / "two.csv")])
    for other in ("ftp://photos.example/a.jpg", "s3://bucket/a.jpg"):
        with pytest.raises(UserError, match="photos are read from this machine alone .snakecls predict fetches https:// and http://."):
            given_photos([other])
    with photo_file(tmp_path / "1.jpg") as file:
        assert file == tmp_path / "1.jpg"


def test_predict_answers_addresses_like_files(site, tmp_path, tiny_bundle, monkeypatch, capsys):
    "Several, mixed with files and in a table; each has its answer or its reason, and what is temporary is named nowhere."
    from snakecls.cli import app
    from typer.testing import CliRunner

    monkeypatch.setattr(fetch, "_NET", site.net())
    monkeypatch.chdir(tmp_path)
    Path("a.jpg").write_bytes(JPEG)
    Image.new("RGB", (64, 48), "white").save(stream := io.BytesIO(), "JPEG")
    site.pages["/plain.jpg"] = lambda talk: talk.give(stream.getvalue())
    site.pages["/page"] = lambda talk: talk.give(b"<html>", Content_Type="text/html")
    Path("more.csv").write_text("url\nhttp://photos.example/a.jpg?2\n")
    good = ["http://photos.example/a.jpg", "a.jpg", "more.csv"]
    bad = ["http://photos.example/plain.jpg", "http://photos.example/page", "http://127.0.0.1/a.jpg"]
    done = CliRunner().invoke(app, ["predict", *good, *bad, "--model", str(tiny_bundle), "--json", "--csv", "out.csv"])
    rows = {row["path"]: row for row in json.loads(done.stdout)}
    assert list(rows) == ["http://photos.example/a.jpg", "a.jpg", "http://photos.example/a.jpg?2", *bad]
    assert rows["http://photos.example/a.jpg"]["top"] == rows["a.jpg"]["top"] == rows["http://photos.example/a.jpg?2"]["top"]
    assert rows[bad[0]]["error"].startswith(f"there is nothing to see on {bad[0]}") and rows[bad[1]]["error"].startswith(f"{bad[1]} was not fetched: it is a page") and "is at 127.0.0.1" in rows[bad[2]]["error"]
    assert done.exception is not None and "3 of 6 photos got no answer" in str(done.exception)
    assert "snakecls-" not in done.stdout and Path("out.csv").read_text().count("http://photos.example/") == 6  # two errors name it again
    again = CliRunner().invoke(app, ["predict", "https://photos.example/" + "a" * 3000, "--model", str(tiny_bundle), "--json", "--csv", "out.csv"])
    assert "error" in json.loads(again.stdout)[0]


def test_evaluate_and_training_fetch_nothing(site, tmp_path, tiny_bundle, monkeypatch):
    from snakecls.data.tables import load_table
    from snakecls.workflow.answers import evaluate_given

    monkeypatch.setattr(fetch, "_NET", site.net())
    with pytest.raises(UserError, match="is an address, and photos are read from this machine alone"):
        evaluate_given(tiny_bundle, data="http://photos.example/a.jpg")
    (tmp_path / "t.csv").write_text("image,label\nhttp://photos.example/a.jpg,x\nhttp://photos.example/b.jpg,y\n")
    with pytest.raises(UserError, match="addresses on the web .*; download the photos"):
        load_table(tmp_path / "t.csv")
    assert not site.asked and not site.looked_up


def test_importing_the_library_asks_no_network():
    code = "import socket\ndef refuse(*a, **k): raise AssertionError('network')\nsocket.getaddrinfo = socket.create_connection = socket.socket.connect = refuse\nimport snakecls.data.fetch, snakecls.workflow.answers, snakecls.cli"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_what_answers_strangers_fetches_nothing():
    "Neither the app nor its HTTP interface: a server that fetches for others can be sent into its own network. What an address as input gets is in test_hardening_http."
    import snakecls

    folder = Path(snakecls.__file__).parent / "deploy"
    assert len(list(folder.glob("*.py"))) > 20 and not [file.name for file in folder.glob("*.py") if re.search(r"data\.fetch|fetch_photo|photo_file|given_photos", file.read_text())]
