"""What a test of a command's end starts and looks for."""

import time

import psutil

# Starts a process of its own session and stops there.
HANG = """
import os, subprocess, time
sleeper = subprocess.Popen(["sleep", "3600"], start_new_session=True)
print("process", os.getpid(), flush=True)
print("process", sleeper.pid, flush=True)
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
