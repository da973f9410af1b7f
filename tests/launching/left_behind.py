"""What a test of a command's end starts and looks for."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from tests.launching.commands import BIN
from tests.launching.warm_process import end_family

# Starts a process of its own session and stops there. Each line is one write: ranks share an unbuffered output.
HANG = """
import os, subprocess, time
sleeper = subprocess.Popen(["sleep", "3600"], start_new_session=True)
os.write(1, b"process %d\\nprocess %d\\n" % (os.getpid(), sleeper.pid))
time.sleep(3600)
"""


def processes_in(log: str) -> list[int]:
    """Each that hangs and what it has started, one after the other."""
    return [int(line.split()[1]) for line in log.splitlines() if line.startswith("process ")]


def wait_until_gone(processes: list[int], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while alive := [one for one in processes if psutil.pid_exists(one)]:
        assert time.monotonic() < end, alive
        time.sleep(0.05)


@contextmanager
def unsupervised(argv: list[str], folder: Path, env: dict[str, str], log: Path) -> Iterator[psutil.Popen]:
    """A command that ends its own processes, or is seen not to; after a failure all are killed."""
    with log.open("wb") as output:
        process = psutil.Popen([str(BIN / argv[0]), *argv[1:]], cwd=folder, env=env, stdout=output, stderr=output)
    try:
        yield process
    finally:
        end_family(process.pid)


def wait_for_moment(process, moment: Callable[[], bool], log: Path) -> None:
    end = time.monotonic() + 180
    while not moment():
        assert process.poll() is None, log.read_text()[-3000:]
        assert time.monotonic() < end, log.read_text()[-3000:]
        time.sleep(0.002)
