"""A run's output in two places: all of it in a log file beside the run, and what a person needs on the console.

A rank's file descriptors 1 and 2 lead to the log, so that nothing is lost of libraries in C, of processes that a rank
starts, or of one that is killed. On the console stand what the plugin says, warnings of ms-swift, every error, and the
steps. `--kd_console full` leaves everything where it was.
"""

import atexit
import fcntl
import io
import logging
import os
import re
import socket
import sys
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TextIO

FLAG, FULL = "kd_console", "full"
VARIABLE = "SWIFT_KD_LOG"  # where the ranks of a machine write, until the run's folder is known
NAME_VARIABLE = "SWIFT_KD_LOG_NAME"  # what it is called there
LOG = "train.log"
LAUNCH = ".swift-kd-launch"  # in a run's folder, locked by the launcher that is about to start it or has
PACKAGE = os.path.dirname(os.path.abspath(__file__)) + os.sep
# Loggers whose warnings are about the user's run.
HOSTS = ("swift", "mcore_bridge")
# Warnings of theirs that every run has and nobody can act on.
KNOWN = ("with trust_remote_code=True", "forcing True", "FusedAdam")
SENTENCE = re.compile(r"^swift_kd_plugin(?: \[rank \d+\])?: error: ", re.MULTILINE)
FINISHED = "End time of running main"  # ms-swift's last line
TAIL_LINES, TAIL_CHARACTERS, TAIL_BYTES = 8, 160, 64 << 10


class Console:
    """Where a process's lines for a person go. Until `split` they go where all output goes.

    Args:
        out, err: the console's streams, which raise no OSError; None where output is not split.
        log: the file that all output goes to.
        warnings: those that were met, with how often.
        launch: in a launcher, the log of the ranks that it starts.
    """

    def __init__(self):
        self.out: TextIO | None = None
        self.err: TextIO | None = None
        self.log: Path | None = None
        self.warnings: Counter[str] = Counter()
        self.launch: LaunchLog | None = None

    @property
    def is_split(self) -> bool:
        return self.err is not None

    def say(self, line: str) -> None:
        """A line on the console and in the log."""
        print(line, flush=True)
        if self.out:
            _write(self.out, line)

    def say_error(self, line: str) -> None:
        """As `say`, on the error stream. One write, as ranks share a pipe."""
        # torch.distributed puts a buffer in the place of sys.stderr while an exception hook runs.
        _write(sys.__stderr__, line)
        if self.err:
            _write(self.err, line)

    def split(self, log: Path) -> None:
        """Sends descriptors 1 and 2 to a file and keeps the console; changes nothing where it cannot be written, or
        where one of them leads there already."""
        try:
            log.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        except OSError:
            return
        try:
            if any(os.path.sameopenfile(descriptor, stream) for stream in (1, 2)):
                return
            for stream in (sys.stdout, sys.stderr):
                stream.flush()
            self.out, self.err = _Lenient(os.dup(1)), _Lenient(os.dup(2))
            self.log = log
            for number in (1, 2):
                os.dup2(descriptor, number)
            sys.stdout, sys.stderr = _Lenient(1), _Lenient(2)
        finally:
            os.close(descriptor)

    def move(self, folder: Path) -> None:
        """Gives the log its final place in the run's folder; open descriptors follow it. Every rank calls it."""
        if self.log is None:
            return
        log = folder / name_of_log()
        if self.log != log and os.environ.get("LOCAL_RANK", "0") == "0":
            os.rename(self.log, log)
        self.log = log
        os.environ[VARIABLE] = str(log)

    def watch_records(self) -> None:
        """Reads all log records of this process, whatever their loggers do with them."""
        make = logging.getLogRecordFactory()

        def factory(*args, **kwargs) -> logging.LogRecord:
            record = make(*args, **kwargs)
            self.take(record)
            return record

        logging.setLogRecordFactory(factory)

    def take(self, record: logging.LogRecord) -> None:
        """Counts a warning, and puts a record that is for a person on the console."""
        level, own = record.levelno or 0, str(record.pathname).startswith(PACKAGE)
        if not own and (level < logging.WARNING or (level < logging.ERROR and record.name not in HOSTS)):
            return
        try:
            text = record.getMessage()
        except Exception:  # a record that its own handlers cannot format, either
            return
        again = False
        if level == logging.WARNING:
            if any(known in text for known in KNOWN):
                return
            again = text in self.warnings
            self.warnings[text] += 1
        if self.err and level >= logging.INFO and not again:
            name = f"{record.levelname.lower()}: " if level >= logging.WARNING else ""
            _write(self.err, f"{name}{text}")


CONSOLE = Console()


class _Lenient(io.TextIOWrapper):
    """A stream to the log or the console. Where the disk is full or a reader has gone, the run goes on without it."""

    def __init__(self, descriptor: int):
        super().__init__(io.FileIO(descriptor, "wb", closefd=False), "utf-8", "replace", write_through=True)

    def write(self, text: str) -> int:
        with suppress(OSError):
            return super().write(text)
        return len(text)

    def flush(self) -> None:
        with suppress(OSError):
            super().flush()


def _write(stream: TextIO, line: str) -> None:
    with suppress(OSError, ValueError):  # a reader that has gone; the log has it
        stream.write(f"{line}\n")
        stream.flush()


def flag_of(words: Sequence[str], name: str) -> str | None:
    """The value of a flag on a command line, the last one if it is given twice; '' where none follows."""
    spellings, value = (f"--{name}", f"--{name.replace('_', '-')}"), None
    for index, word in enumerate(words):
        flag, equals, rest = word.partition("=")
        if flag in spellings:
            value = rest if equals else words[index + 1] if index + 1 < len(words) else ""
    return value


def is_short(words: Sequence[str]) -> bool:
    """Whether a command line is a distillation whose console is to be short."""
    if {"-h", "--help"} & set(words):
        return False
    return flag_of(words, "rlhf_type") == "gkd" and flag_of(words, FLAG) != FULL


def first_place(words: Sequence[str]) -> Path:
    """Where a run's log lies before its folder is known: in --output_dir, by its final name if that is the folder."""
    given = flag_of(words, "output_dir")
    folder = Path(given or "megatron_output").expanduser().absolute()
    if given and (flag_of(words, "add_version") or "").lower() in ("false", "0", "no", "f", "n"):
        return folder / name_of_log(words)
    return folder / f"train-{time.strftime('%Y%m%d-%H%M%S')}-{socket.gethostname()}-{os.getpid()}.log"


def name_of_log(words: Sequence[str] = ()) -> str:
    """`train.log`; of further machines `train.node1.log` (or `train.HOST.log`, where none has a number yet), of ranks
    that no launcher has started `train.rank1.log`."""
    if NAME_VARIABLE in os.environ:
        return os.environ[NAME_VARIABLE]
    node, rank = os.environ.get("NODE_RANK") or flag_of(words, "node_rank"), os.environ.get("RANK", "0")
    if not node and flag_of(words, "nnodes") not in (None, "1", "1:1"):
        return f"train.{socket.gethostname()}.log"
    if node not in (None, "", "0"):
        return f"train.node{node}.log"
    return LOG if rank == "0" else f"train.rank{rank}.log"


def split_rank(argv: Sequence[str]) -> None:
    """In a rank, before it has said anything."""
    CONSOLE.watch_records()
    if is_short(argv):
        os.environ.setdefault(VARIABLE, str(first_place(argv)))
        CONSOLE.split(Path(os.environ[VARIABLE]))


def open_log(words: Sequence[str]) -> None:
    """In a launcher, before it starts ranks whose console is short.

    Args:
        words: the flags, and those of torchrun, without a config file.
    """
    if is_short(words):
        with suppress(OSError):  # a rank says what is wrong with the folder
            CONSOLE.launch = LaunchLog(words)


class LaunchLog:
    """The ranks' log as their launcher reads it, which holds it open wherever it is moved.

    Raises:
        OSError: it cannot be made.
    """

    def __init__(self, words: Sequence[str]):
        os.environ.setdefault(NAME_VARIABLE, name_of_log(words))
        os.environ.setdefault(VARIABLE, str(first_place(words)))
        path = Path(os.environ[VARIABLE])
        path.parent.mkdir(parents=True, exist_ok=True)
        self.began = time.time()
        self.file = path.open("a+b")
        self.start = self.file.seek(0, os.SEEK_END)
        if path.name == os.environ[NAME_VARIABLE]:
            with suppress(OSError):  # held by a launcher around this one, or a file system without locks
                self.hold = _held(path.parent / LAUNCH)

    @property
    def path(self) -> str:
        place = Path(f"/proc/self/fd/{self.file.fileno()}")
        return os.readlink(place) if place.exists() else self.file.name

    def what_failed(self) -> str:
        """Where the whole log is, behind its end if no rank has said what is wrong."""
        self.file.seek(self.start)
        text = self.file.read().decode("utf-8", "replace")
        said = "" if SENTENCE.search(text) else last_lines(text) + "\n"
        return f"{said}The whole log: {self.path}"

    def has_finished(self) -> bool:
        self.file.seek(max(self.start, os.fstat(self.file.fileno()).st_size - TAIL_BYTES))
        return FINISHED in self.file.read().decode("utf-8", "replace")


def _held(file: Path) -> TextIO:
    """A new, locked file until this process ends; its time says when the launch was begun."""
    hold = file.open("w")
    fcntl.flock(hold, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.utime(file)
    atexit.register(file.unlink, missing_ok=True)
    return hold


def last_lines(text: str) -> str:
    """The end of an output, in a few lines of bounded length; of a progress bar its last state."""
    lines = [line.rpartition("\r")[2].rstrip() for line in text[-TAIL_BYTES:].split("\n")]
    return "\n".join(_shortened(line) for line in [line for line in lines if line][-TAIL_LINES:])


def _shortened(line: str) -> str:
    return line if len(line) <= TAIL_CHARACTERS else line[:TAIL_CHARACTERS] + " ..."
