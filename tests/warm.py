"""Commands without the seconds that every new process needs for its imports: a process that has loaded the library answers each by a fork.

What is forked has read no file, started no thread and drawn no random number. What only a new process can show (which modules
a command loads, how soon it helps, what a signal does to it) is tested in a new process.
"""
import atexit
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

LOADED = ["snakecls.cli", "snakecls.workflow.run", "snakecls.train.learner", "snakecls.evaluate.report", "snakecls.deploy.predict", "timm"]
_servers: list["Warm"] = []


class Warm:
    "A process that has loaded the library, and a socket to it."

    def __init__(self):
        ours, theirs = socket.socketpair()
        self.socket = ours
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}  # the checkout's package, or the wheel's
        self.process = subprocess.Popen([sys.executable, __file__, str(theirs.fileno())], pass_fds=[theirs.fileno()], env=environment)
        theirs.close()

    def run(self, words: list[str], cwd: Path, environment: dict[str, str], timeout: float) -> subprocess.CompletedProcess:
        "Run one command; both of its outputs are files, as pipes could fill."
        import tempfile

        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
            asked = json.dumps({"words": words, "cwd": str(cwd), "environment": environment}).encode()
            self.socket.settimeout(timeout)
            socket.send_fds(self.socket, [len(asked).to_bytes(4, "big")], [out.fileno(), err.fileno()])
            self.socket.sendall(asked)
            answer = self.socket.recv(64)
            assert answer, "the process that forks commands has ended"
            out.seek(0), err.seek(0)
            return subprocess.CompletedProcess(words, int(answer), out.read().decode(), err.read().decode())


def run_command(*words, cwd: Path, timeout: float = 600, **environment: str) -> subprocess.CompletedProcess:
    "Run `snakecls WORDS…` in a folder, as `subprocess.run` with captured text would; `environment` is added to this process's."
    if not _servers or _servers[0].process.poll() is not None:
        _servers[:] = [Warm()]
        atexit.register(_servers[0].socket.close)
    return _servers[0].run([str(word) for word in words], cwd, {**os.environ, **environment}, timeout)


def serve(asking: socket.socket) -> dict | None:
    "Fork for each command; gives it in its own process, and nothing where the tests have ended."
    while True:
        length, fds, _, _ = socket.recv_fds(asking, 4, 2)
        if not length:
            return None
        asked = b""
        while len(asked) < int.from_bytes(length, "big"):
            asked += asking.recv(1 << 16)
        sys.stdout.flush(), sys.stderr.flush()
        if not (child := os.fork()):
            asking.close()
            nothing = os.open(os.devnull, os.O_RDONLY)
            for stream, fd in enumerate([nothing, *fds]):
                os.dup2(fd, stream)
            for fd in [nothing, *fds]:
                os.close(fd)
            return json.loads(asked)
        for fd in fds:
            os.close(fd)
        asking.sendall(str(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])).encode())


def answer(asked: dict) -> int:
    "Run a command in this process, as a new one would; gives its exit code."
    os.chdir(asked["cwd"])
    os.environ.clear()
    os.environ.update(asked["environment"])
    sys.argv = ["snakecls", *asked["words"]]
    from snakecls.cli import main

    try:
        main()
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 0 if end.code is None else 1
    except BaseException:  # noqa: BLE001  (as the interpreter does with what nobody has caught)
        sys.excepthook(*sys.exc_info())
        return 1
    return 0


if __name__ == "__main__":
    import gc
    import threading
    from importlib import import_module

    for module in LOADED:
        import_module(module)
    assert threading.active_count() == 1, threading.enumerate()
    gc.freeze()
    given = serve(socket.socket(fileno=int(sys.argv[1])))
    if given is not None:
        code = answer(given)
        atexit._run_exitfuncs()
        sys.stdout.flush(), sys.stderr.flush()
        os._exit(code)  # taking PyTorch's modules apart would take 2 s
