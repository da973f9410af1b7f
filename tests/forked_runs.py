"""Runs that are forks of this process: they start at once and are killed at any moment."""

import importlib
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


def import_for(run: Callable[[], None]) -> None:
    """Imports what `run` imports, which another process runs: one that ran a model has threads, whose locks its forks
    would find taken for ever."""
    reader, writer = os.pipe()
    process = start(lambda: (run(), os.write(writer, "\n".join(modules_from_files()).encode())))
    os.close(writer)
    with os.fdopen(reader) as names:
        found = names.read().split()
    _, status = os.waitpid(process, 0)
    assert status == 0, status
    for name in found:
        importlib.import_module(name)


def modules_from_files() -> list[str]:
    specs = {name: getattr(module, "__spec__", None) for name, module in sys.modules.items()}
    return [
        name for name, spec in specs.items() if name != "__main__" and spec and spec.name == name and spec.has_location
    ]


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
