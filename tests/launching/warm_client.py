"""Starts commands in this worker's warm processes (see warm_process.py)."""

import atexit
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.paths import ROOT

START_SECONDS = 300


class WarmProcess:
    """A running warm process. It ends when this one does."""

    def __init__(self, kind: str, env: dict[str, str]):
        self.folder = Path(tempfile.mkdtemp(prefix="warm-"))
        self.path = str(self.folder / "socket")
        self.log = self.folder / "log.txt"
        argv = [sys.executable, "-m", "tests.launching.warm_process", self.path, kind]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                argv, cwd=ROOT, env=env, stdin=subprocess.PIPE, stdout=log, stderr=log, start_new_session=True
            )
        atexit.register(self.end)

    def connect(self) -> socket.socket:
        """Waits for the imports to end. Raises RuntimeError with the end of the log if there is no such process."""
        end = time.monotonic() + START_SECONDS
        while True:
            connection = socket.socket(socket.AF_UNIX)
            try:
                connection.connect(self.path)
                return connection
            except (FileNotFoundError, ConnectionRefusedError):
                connection.close()
                if self.process.poll() is not None or time.monotonic() > end:
                    said = self.log.read_text(errors="replace")[-3000:]
                    raise RuntimeError(f"the warm process ended or does not start:\n{said}") from None
                time.sleep(0.05)

    def end(self) -> None:
        self.process.stdin.close()
        self.process.wait(30)


class WarmCommand:
    """A command in a fork of a warm process. Closing this kills it with all of its processes, if it still runs."""

    def __init__(self, process: WarmProcess, argv: list[str], folder: Path, env: dict[str, str], output: int):
        request = {"argv": argv, "cwd": str(folder), "env": env}
        self.connection = process.connect()
        data = json.dumps(request).encode() + b"\n"
        sent = socket.send_fds(self.connection, [data[:1024]], [output, output])
        self.connection.sendall(data[sent:])

    def wait(self, timeout: float | None = None) -> int:
        """The exit code. Raises TimeoutError, and RuntimeError if it was refused or its warm process has died."""
        self.connection.settimeout(timeout)
        said = b""
        while not said.endswith(b"\n"):
            part = self.connection.recv(4096)
            if not part:
                raise RuntimeError("the warm process died")
            said += part
        page = json.loads(said)
        if "error" in page:
            raise RuntimeError(page["error"])
        return page["code"]

    def close(self) -> None:
        self.connection.close()


PROCESSES: dict[str, WarmProcess] = {}


def warm_process(kind: str, env: dict[str, str]) -> WarmProcess:
    """This worker's process of a kind, started at the first call and again if it has died."""
    found = PROCESSES.get(kind)
    if found is None or found.process.poll() is not None:
        PROCESSES[kind] = found = WarmProcess(kind, env)
    return found


def kind_for(argv: list[str]) -> str:
    if os.path.basename(argv[0]) != "megatron":
        return "tools"
    return "ranks_vllm" if any("vllm" in word for word in argv) else "ranks"


def run_warm(argv: list[str], folder: Path, env: dict[str, str], timeout: float) -> tuple[int, str, float]:
    """Runs `argv` in `folder`; after the timeout all of its processes are killed and the exit code is -9."""
    process = warm_process(kind_for(argv), env)
    with tempfile.TemporaryFile() as output:
        start = time.monotonic()
        command = WarmCommand(process, argv, folder, env, output.fileno())
        try:
            code = command.wait(timeout)
        except TimeoutError:
            code = -9
        finally:
            command.close()
        seconds = time.monotonic() - start
        output.seek(0)
        return code, output.read().decode(errors="replace"), seconds
