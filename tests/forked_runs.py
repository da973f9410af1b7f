"""Runs that are forks of this process: they start at once and are killed at any moment."""

import os
import signal
import sys
import time
from collections.abc import Callable


def start(run: Callable[[], None]) -> int:
    """The process id of a run that has just been started."""
    process = os.fork()
    if process:
        return process
    try:
        run()
        os._exit(0)
    except BaseException as error:
        print(error, file=sys.stderr, flush=True)
        os._exit(1)


def kill(process: int, seconds: float, count: Callable[[], int] | None = None) -> int:
    """Kills a run after some seconds, which begin when `count` counts something new. Returns its status."""
    before = count() if count else None
    while count and count() == before:
        ended, status = os.waitpid(process, os.WNOHANG)
        if ended:
            return status
        time.sleep(0.005)
    time.sleep(seconds)
    os.kill(process, signal.SIGKILL)
    return os.waitpid(process, 0)[1]
