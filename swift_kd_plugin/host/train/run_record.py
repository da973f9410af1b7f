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
from swift_kd_plugin.host.train.training_log import LOG

RUN, SUMMARY = "run.json", "summary.json"
STAGE = "stage.json"  # of a recipe's stage, whether it trains or not
FINISHED, FAILED = "finished", "failed"
ENVIRONMENT = ("SWIFT_KD_DEVICE", "CUDA_VISIBLE_DEVICES", "USE_HF", "NPROC_PER_NODE")
OF_SEVERAL = ("NNODES", "NODE_RANK", "MASTER_ADDR", "MASTER_PORT")
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
    if "state" in (read_page(folder / SUMMARY) or {}):  # of an attempt before this one
        (folder / SUMMARY).unlink()
    page = {
        "command": own_command(),
        "folder": os.getcwd(),
        "output_dir": str(folder.absolute()),
        "machines": machines(),
        "host": socket.gethostname(),
        "process": os.getpid(),
        "started": time.time(),
        "log": str(CONSOLE.log or ""),
        "log_bytes": (folder / LOG).stat().st_size if (folder / LOG).is_file() else 0,  # of runs before this one
    }
    write_atomically(folder / RUN, _as_json(page))
    descriptor = os.open(folder / RUN, os.O_RDONLY)
    with suppress(OSError):  # a file system without locks
        fcntl.flock(descriptor, fcntl.LOCK_EX)
    _held.append(descriptor)


def own_command() -> str:
    """The command line that started this rank's run, as a person would type it."""
    script = os.path.basename(sys.argv[0])
    given = [os.path.basename(word) for word in sys.orig_argv]
    # What the CPU backend has added to sys.argv is left out.
    words = sys.orig_argv[given.index(script) + 1 :] if script in given else sys.argv[1:]
    by_torchrun = {}
    if "TORCHELASTIC_RUN_ID" in os.environ:
        by_torchrun["NPROC_PER_NODE"] = os.environ["LOCAL_WORLD_SIZE"]
    if machines() > 1:
        by_torchrun |= {"NNODES": str(machines()), "NODE_RANK": os.environ["GROUP_RANK"]}
    names = (*ENVIRONMENT, *OF_SEVERAL) if machines() > 1 else ENVIRONMENT
    known = by_torchrun | os.environ
    variables = {name: known[name] for name in names if name in known}
    assignments = [f"{name}={shlex.quote(value)}" for name, value in variables.items()]
    return " ".join([*assignments, "megatron rlhf", shlex.join(words)])


def machines() -> int:
    """How many torchrun has started this run on."""
    return int(os.environ.get("GROUP_WORLD_SIZE", "1"))


def write_summary(folder: Path, page: dict[str, Any]) -> None:
    """Raises KDError if it cannot be written."""
    write_atomically(folder / SUMMARY, _as_json(page))


def write_failure(folder: Path, sentence: str) -> None:
    """The first rank that fails says why; what follows from that, and what comes after the end, says nothing."""
    if not (folder / SUMMARY).exists() and "that rank's own message" not in sentence:
        with suppress(KDError):
            log = str(CONSOLE.log or (CONSOLE.launch.path if CONSOLE.launch else ""))
            write_summary(folder, {"state": FAILED, "error": sentence, "log": log})


def write_failure_of_launch(sentence: str) -> None:
    """As `write_failure`, by the launcher of a run whose rank was killed; nothing of a run that had not begun."""
    if CONSOLE.launch:
        folder = Path(CONSOLE.launch.path).parent
        with suppress(FileNotFoundError):
            if (folder / RUN).stat().st_mtime >= CONSOLE.launch.began:
                write_failure(folder, sentence)


def read_page(file: Path) -> dict[str, Any] | None:
    """A file of this module; None where there is none, or another program's."""
    try:
        page = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return page if isinstance(page, dict) else None


def _as_json(page: dict[str, Any]) -> str:
    return json.dumps(page, ensure_ascii=False, indent=2) + "\n"
