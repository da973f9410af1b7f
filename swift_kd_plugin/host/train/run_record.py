"""What a run leaves of itself in its folder: run.json while it lives, summary.json once it has ended. No torch."""

import fcntl
import json
import os
import shlex
import socket
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from swift_kd_plugin.console import CONSOLE
from swift_kd_plugin.data.files import write_atomically
from swift_kd_plugin.errors import KDError, on_failure

RUN, SUMMARY = "run.json", "summary.json"
STAGE = "stage.json"  # of a recipe's stage, whether it trains or not
FINISHED, FAILED = "finished", "failed"
ENVIRONMENT = ("SWIFT_KD_DEVICE", "NNODES", "NODE_RANK", "NPROC_PER_NODE")
_held: list[int] = []  # descriptors whose locks say that the run lives


def begin_run(folder: Path, owns: bool) -> None:
    """Gives the log its place in the run's folder, and says it. Every rank calls it.

    Args:
        folder: the run's, which exists.
        owns: this rank writes run.json, whose lock it holds as long as its process lives.
    """
    from swift.utils import get_logger

    CONSOLE.move(folder)
    if CONSOLE.log:
        get_logger().info(f"All output is in {CONSOLE.log}")
    on_failure.append(lambda sentence: write_failure(folder, sentence))
    if not owns:
        return
    with suppress(FileNotFoundError):  # of an attempt before this one
        if "state" in json.loads((folder / SUMMARY).read_text(encoding="utf-8")):
            (folder / SUMMARY).unlink()
    page = {"command": own_command(), "folder": os.getcwd(), "host": socket.gethostname(), "process": os.getpid()}
    write_atomically(folder / RUN, _as_json(page | {"started": time.time(), "log": str(CONSOLE.log or "")}))
    descriptor = os.open(folder / RUN, os.O_RDONLY)
    with suppress(OSError):  # a file system without locks
        fcntl.flock(descriptor, fcntl.LOCK_EX)
    _held.append(descriptor)


def own_command() -> str:
    """The command line that started this rank's run, as a person would type it."""
    script = os.path.basename(sys.argv[0])
    names = [os.path.basename(word) for word in sys.orig_argv]
    # What the CPU backend has added to sys.argv is left out.
    words = sys.orig_argv[names.index(script) + 1 :] if script in names else sys.argv[1:]
    variables = {name: os.environ[name] for name in ENVIRONMENT if name in os.environ}
    if "NPROC_PER_NODE" not in variables and "TORCHELASTIC_RUN_ID" in os.environ:
        variables["NPROC_PER_NODE"] = os.environ["LOCAL_WORLD_SIZE"]
    assignments = [f"{name}={shlex.quote(value)}" for name, value in variables.items()]
    return " ".join([*assignments, "megatron rlhf", shlex.join(words)])


def write_summary(folder: Path, page: dict[str, Any]) -> None:
    """Raises KDError if it cannot be written."""
    write_atomically(folder / SUMMARY, _as_json(page))


def write_failure(folder: Path, sentence: str) -> None:
    """The first rank that fails says why; what follows from that, and what comes after the end, says nothing."""
    if not (folder / SUMMARY).exists() and "that rank's own message" not in sentence:
        with suppress(KDError):
            write_summary(folder, {"state": FAILED, "error": sentence, "log": str(CONSOLE.log or "")})


def read_page(file: Path) -> dict[str, Any] | None:
    """A file of this module; None where there is none, or another program's."""
    try:
        page = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return page if isinstance(page, dict) else None


def _as_json(page: dict[str, Any]) -> str:
    return json.dumps(page, ensure_ascii=False, indent=2) + "\n"
