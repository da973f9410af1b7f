"""Runs a command, and ends all that descends from it when the command ends, or when stdin does: its caller is gone.

python -IS supervisor.py ARGV...

Ranks that torchrun starts lead sessions of their own, so that no signal to a process group reaches them; orphans become
children of this process. Only the standard library is imported, and no module of the site.
"""

import ctypes
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

PR_SET_CHILD_SUBREAPER = 36


@contextmanager
def supervised(argv: list[str], folder: Path, env: dict[str, str], output: IO) -> Iterator[subprocess.Popen]:
    """A command that has been started; on leaving it is ended, if it still runs, with all that descends from it."""
    command = [sys.executable, "-IS", __file__, *argv]
    with subprocess.Popen(
        command, cwd=folder, env=env, stdin=subprocess.PIPE, stdout=output, stderr=output, start_new_session=True
    ) as process:
        try:
            yield process
        finally:
            process.stdin.close()


def adopt_orphans() -> None:
    """What descends from this process becomes its child when its own parent has ended."""
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def descendants() -> list[int]:
    """Of this process, those that have ended and wait for their parent left out."""
    children: dict[int, list[int]] = {}
    for file in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # it has ended meanwhile
            state, parent = file.read_text().rpartition(")")[2].split()[:2]
            children.setdefault(int(parent), []).append(int(file.parent.name) if state != "Z" else -1)
    found = [os.getpid()]
    for one in found:
        found += [child for child in children.get(one, []) if child > 0]
    return found[1:]


def end_descendants() -> None:
    while alive := descendants():
        for one in alive:
            with suppress(ProcessLookupError):
                os.kill(one, signal.SIGKILL)


def end_with_stdin() -> None:
    sys.stdin.buffer.read()
    end_descendants()


def main() -> None:
    adopt_orphans()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)  # the command has it, too
    command = subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL)
    threading.Thread(target=end_with_stdin, daemon=True).start()
    code = command.wait()
    end_descendants()
    if code < 0:  # ends as the command did
        with suppress(OSError):  # SIGKILL has no other handler
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    os._exit(code)


if __name__ == "__main__":
    main()
