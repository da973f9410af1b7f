"""Starts commands in this worker's warm processes (see warm_process.py)."""

import atexit
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from tests.launching import warm_command
from tests.launching.warm_process import CODE, MODULES
from tests.paths import ROOT

NAMES = ("megatron", "swift-kd", "swift", "python")


class WarmProcess:
    """This worker's warm process, which ends when this one does, and `bin` with commands that run in it."""

    def __init__(self, env: dict[str, str]):
        self.folder = Path(tempfile.mkdtemp(prefix="warm-"))
        self.bin = self.folder / "bin"
        self._fill_bin()
        argv = [sys.executable, "-c", CODE, str(self.folder)]
        with (self.folder / "root.log").open("wb") as log:
            self.process = subprocess.Popen(
                argv, cwd=ROOT, env=env, stdin=subprocess.PIPE, stdout=log, stderr=log, start_new_session=True
            )
        atexit.register(self.end)
        self._wait_for_sockets()

    def _fill_bin(self) -> None:
        self.bin.mkdir()
        (self.bin / "real").symlink_to(sys.executable)
        code = Path(warm_command.__file__).read_text(encoding="utf-8")
        for name in NAMES:
            (self.bin / name).write_text(f"#!{sys.executable} -IS\n{code}", encoding="utf-8")
            (self.bin / name).chmod(0o755)

    def _wait_for_sockets(self) -> None:
        """Raises RuntimeError with the end of the log if the process does not start."""
        while not all((self.folder / kind).exists() for kind in MODULES):
            if self.process.poll() is not None:
                raise RuntimeError(f"the warm process does not start:\n{self.said('root')}")
            time.sleep(0.02)

    def connect(self, kind: str) -> socket.socket:
        connection = socket.socket(socket.AF_UNIX)
        connection.connect(str(self.folder / kind))
        return connection

    def said(self, kind: str) -> str:
        """The end of its log, from the last traceback on."""
        file = self.folder / f"{kind}.log"
        log = file.read_text(errors="replace") if file.exists() else ""
        return log[log.rfind("Traceback") :][:3000] if "Traceback" in log else log[-3000:]

    def end(self) -> None:
        self.process.stdin.close()
        self.process.wait(30)
        shutil.rmtree(self.folder, ignore_errors=True)


class WarmCommand:
    """A command in a fork of a warm process. Closing this kills it with all of its processes, if it still runs."""

    def __init__(self, argv: list[str], folder: Path, env: dict[str, str], output: int):
        self.process = warm_process(env)
        self.kind = warm_command.kind_of(os.path.basename(argv[0]), argv[1:])
        self.connection = self.process.connect(self.kind)
        data = json.dumps({"argv": argv, "cwd": str(folder), "env": env}).encode() + b"\n"
        sent = socket.send_fds(self.connection, [data[:1024]], [output, output])
        self.connection.sendall(data[sent:])

    def wait(self, timeout: float | None = None) -> int:
        """The exit code. Raises TimeoutError, and RuntimeError if it was refused or its warm process has died."""
        self.connection.settimeout(timeout)
        said = b""
        while not said.endswith(b"\n"):
            part = self.connection.recv(4096)
            if not part:
                raise RuntimeError(f"the warm process died:\n{self.process.said(self.kind)}")
            said += part
        page = json.loads(said)
        if "error" in page:
            raise RuntimeError(page["error"])
        return page["code"]

    def close(self) -> None:
        self.connection.close()


# What a test sets for itself must not be what every later command of this worker has been started with.
CACHES = ("HF_HOME", "HF_DATASETS_CACHE", "MODELSCOPE_CACHE")
AT_START = {name: os.environ[name] for name in CACHES if name in os.environ}
RUNNING: list[WarmProcess] = []
STARTING = threading.Lock()


def warm_process(env: dict[str, str]) -> WarmProcess:
    """This worker's process, started at the first call and again if it has died."""
    with STARTING:
        if not RUNNING or RUNNING[-1].process.poll() is not None:
            RUNNING.append(WarmProcess({name: env[name] for name in env if name not in CACHES} | AT_START))
        return RUNNING[-1]


def run_warm(argv: list[str], folder: Path, env: dict[str, str], timeout: float = 240) -> tuple[int, str, float]:
    """Runs `argv` in `folder`; after the timeout all of its processes are killed and the exit code is -9."""
    with tempfile.TemporaryFile() as output:
        start = time.monotonic()
        command = WarmCommand(argv, folder, env, output.fileno())
        try:
            code = command.wait(timeout)
        except TimeoutError:
            code = -9
        finally:
            command.close()
        seconds = time.monotonic() - start
        output.seek(0)
        return code, output.read().decode(errors="replace"), seconds
