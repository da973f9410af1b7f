"""Runs a command to its end: signals go to all of its processes, and none of them outlives it."""

import ctypes
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from swift_kd_plugin.errors import KDError
from swift_kd_plugin.recipes.shell_command import Command

FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
POLL_SECONDS = 0.3
GRACE_SECONDS = 40.0  # torchrun itself gives its ranks 30
STRAGGLER_SECONDS = 10.0  # after the command itself has ended
PR_SET_CHILD_SUBREAPER = 36


def find_program(name: str) -> str:
    """The program beside this interpreter or on PATH. Raises KDError if there is none."""
    beside = Path(sys.executable).with_name(name)
    program = str(beside) if beside.is_file() else shutil.which(name)
    if program is None:
        raise KDError(f"the command {name} is not installed; run `pip install swift-kd-plugin`.")
    return program


def run_process(
    command: Command, log: Path | None = None, watch: Callable[[], None] | None = None, lock: int = -1
) -> int:
    """Runs a command and returns its exit code, 128 + n after signal n.

    The first SIGINT, SIGTERM or SIGHUP ends all of its processes in order, the second one at once.

    Args:
        log: a file that its output is appended to; None: the output goes where ours goes.
        watch: called about three times a second.
        lock: a file descriptor that the child keeps open as long as it lives.

    Raises:
        KDError: the program is not installed, or the log cannot be written.
    """
    _adopt_orphans()
    others = set(psutil.Process().children(recursive=True))
    with _output(log) as output, _Signals() as signals:
        child = subprocess.Popen(
            [find_program(command.argv[0]), *command.argv[1:]],
            env={**os.environ, **command.env},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output and subprocess.STDOUT,
            start_new_session=True,
            pass_fds=() if lock < 0 else (lock,),
        )
        signals.family = _Family(child, others)
        try:
            while child.poll() is None and not signals.received:
                if watch:
                    watch()
                time.sleep(POLL_SECONDS)
            if watch:
                watch()
        finally:
            signals.family.end(told=signals.told)
    code = child.wait()
    if signals.received:
        return 128 + signals.received
    return 128 - code if code < 0 else code


@dataclass(frozen=True)
class _Family:
    """A child and all that descends from it. `others` are processes that were there before."""

    child: subprocess.Popen
    others: set[psutil.Process]

    def members(self) -> set[psutil.Process]:
        """Those that live. One that has died and is ours is reaped, the child itself by Popen alone."""
        ended = self.child.poll() is not None
        children = {p for p in psutil.Process().children(recursive=True) if p.pid != self.child.pid} - self.others
        _, alive = psutil.wait_procs(children, timeout=0)
        return set(alive) | (set() if ended else {psutil.Process(self.child.pid)})

    def send(self, number: int) -> None:
        for process in self.members():
            with suppress(psutil.NoSuchProcess):
                process.send_signal(number)

    def end(self, told: bool) -> None:
        """Returns when none is left. Unless they were told, they are told to end; what does not end is killed."""
        if not told:
            if self.child.poll() is not None and self._are_gone(within=STRAGGLER_SECONDS):
                return
            self.send(signal.SIGTERM)
        if not self._are_gone(within=GRACE_SECONDS):
            self.send(signal.SIGKILL)
            self._are_gone(within=GRACE_SECONDS)

    def _are_gone(self, within: float) -> bool:
        end = time.monotonic() + within
        while self.members():
            if time.monotonic() > end:
                return False
            time.sleep(POLL_SECONDS)
        return True


class _Signals:
    """Passes signals on to a family while it lives."""

    family: _Family | None = None
    received = 0
    told = False

    def __enter__(self) -> "_Signals":
        self._before = {number: signal.signal(number, self._receive) for number in FORWARDED}
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _receive(self, number: int, _) -> None:
        if self.family is None:
            self.received = number
            return
        if self.told:
            self.family.send(signal.SIGKILL)
            return
        self.received, self.told = number, True
        name = signal.Signals(number).name
        print(f"\nswift-kd train: {name}: the run is being ended; once more ends it at once", file=sys.stderr)
        # Not the signal itself: at a SIGINT `megatron` kills torchrun before that has ended its ranks.
        self.family.send(signal.SIGTERM)


def _adopt_orphans() -> None:
    """Makes processes whose parent has died our children, so that they are found and ended (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


@contextmanager
def _output(log: Path | None) -> Iterator[object]:
    if log is None:
        yield None
        return
    try:
        log.parent.mkdir(parents=True, exist_ok=True)
        file = log.open("ab")
    except OSError as error:
        raise KDError(f"{log} cannot be written: {error.strerror}.") from error
    with file:
        yield file
