"""A stand-in for the Hub's HTTP API on this machine: repositories are made, files of both kinds uploaded, committed, listed and read."""
import base64
import hashlib
import json
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from urllib.parse import unquote, urlsplit

TOKEN = "hf_stand_in"


class Hub(ThreadingHTTPServer):
    "What it was asked, and the files of its repositories."

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Answers)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.repos: dict[str, dict[str, bytes]] = {}  # 'models/user/name' -> name -> content
        self.made: dict[str, dict] = {}  # the same -> what it was asked to be
        self.objects: dict[str, bytes] = {}  # SHA-256 -> content
        self.refuse = 0  # a status that every commit gets
        self.requests: list[str] = []
        Thread(target=self.serve_forever, daemon=True).start()


class _Answers(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub

    def log_message(self, *words):
        self.server.requests.append(f"{self.command} {self.path}")

    def body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def say(self, value, status: int = 200, headers: dict[str, str] | None = None, content: bytes | None = None):
        content = json.dumps(value).encode() if content is None else content
        self.send_response(status)
        for key, text in {"Content-Type": "application/json", "Content-Length": str(len(content)), **(headers or {})}.items():
            self.send_header(key, text)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def known(self) -> bool:
        "Tell whether the token is right; answers where it is not."
        if self.headers.get("Authorization") == f"Bearer {TOKEN}":
            return True
        self.say({"error": "Invalid credentials"}, 401)
        return False

    def do_PUT(self):  # an object, at the address that the batch named; without a token, as at the store behind the Hub
        content = self.body()
        self.server.objects[hashlib.sha256(content).hexdigest()] = content
        self.say({})

    def do_POST(self):
        words, content = unquote(urlsplit(self.path).path).strip("/").split("/"), self.body()
        if not self.known():
            return None
        if words == ["api", "repos", "create"]:
            return self.create(json.loads(content))
        if words[-1] == "batch":  # user/name.git/info/lfs/objects/batch
            objects = [one | {"actions": {"upload": {"href": f"{self.server.url}/store/{one['oid']}"}}} for one in json.loads(content)["objects"]]
            return self.say({"transfer": "basic", "objects": objects}, headers={"Content-Type": "application/vnd.git-lfs+json"})
        if words[1] == "validate-yaml" or words[-1] == "validate-yaml":
            return self.say({"errors": [], "warnings": []})
        key = "/".join(words[1:4])
        if words[4] == "preupload":
            files = [{"path": one["path"], "uploadMode": "lfs" if one["path"].endswith((".safetensors", ".onnx")) else "regular", "shouldIgnore": False}
                     for one in json.loads(content)["files"]]
            return self.say({"files": files})
        if words[4] == "commit":
            return self.commit(key, [json.loads(line) for line in content.splitlines() if line])
        self.say({"error": "unknown"}, 404)

    def create(self, asked: dict):
        key = f"{asked.get('type') or 'model'}s/{asked['organization']}/{asked['name']}"
        there = key in self.server.repos
        self.server.repos.setdefault(key, {})
        self.server.made.setdefault(key, asked)
        place = key.removeprefix("models/")
        self.say({"url": f"{self.server.url}/{place}", "error": "it is there"} if there else {"url": f"{self.server.url}/{place}"}, 409 if there else 200)

    def commit(self, key: str, lines: list[dict]):
        if self.server.refuse:
            return self.say({"error": "You may not write here"}, self.server.refuse)
        files = dict(self.server.repos[key])
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.server.objects[value["oid"]]  # fails where it was never uploaded
            elif line["key"] == "deletedFile":
                files.pop(value["path"])
        self.server.repos[key] = files
        self.say({"success": True, "commitOid": "1" * 40, "commitUrl": f"{self.server.url}/{key}/commit/{'1' * 40}", "hookOutput": ""})

    def do_GET(self):
        words = unquote(urlsplit(self.path).path).strip("/").split("/")
        if not self.known():
            return None
        if words[0] == "api":
            key = "/".join(words[1:4])
            files = self.server.repos.get(key)
            if files is None:
                return self.say({"error": "not found"}, 404)
            if "tree" in words:
                return self.say([{"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()} for name, content in files.items()])
            made = self.server.made[key]
            hidden = made.get("private") is True or made.get("visibility") == "private"
            return self.say({"id": "/".join(words[2:4]), "sha": "1" * 40, "private": hidden, "tags": [], "siblings": [{"rfilename": name} for name in files]})
        if "resolve" in words:  # user/name/resolve/revision/file
            content = self.server.repos["models/" + "/".join(words[:2])].get("/".join(words[4:]))
            if content is None:
                return self.say({"error": "no such file"}, 404, {"X-Error-Code": "EntryNotFound"})
            return self.say({}, 200, {"ETag": f'"{hashlib.sha256(content).hexdigest()}"', "X-Repo-Commit": "1" * 40, "Content-Type": "application/octet-stream"}, content)
        self.say({"error": "unknown"}, 404)

    do_HEAD = do_GET


if __name__ == "__main__":
    print(Hub().url)
    sys.stdin.read()
