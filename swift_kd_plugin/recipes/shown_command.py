"""A command that a run has kept, as it can be typed where a person stands now."""

import os
import re
import shlex
from pathlib import Path
from typing import Any

ASSIGNMENT = re.compile(r"[A-Z_]+=")


def shown_command(command: str, record: dict[str, Any], folder: Path) -> str:
    """The command from the folder that it was typed in, which its relative paths are of.

    Args:
        record: the page of run.json.
        folder: the run's, which may have been moved or copied: paths in it are named where they are now.
    """
    home, written = record.get("folder"), record.get("output_dir")
    now = os.path.abspath(folder)
    if written and os.path.realpath(written) != os.path.realpath(now):
        command = _moved(command, home or "", written, now)
    return command if not home or os.path.realpath(home) == os.getcwd() else f"cd {shlex.quote(home)} && {command}"


def place_of_log(log: str, folder: Path) -> str:
    """A log's place: in the run's folder if it lies there, else where it was written."""
    inside = folder / os.path.basename(log)
    return str(inside) if inside.is_file() else log


def _moved(command: str, home: str, old: str, new: str) -> str:
    try:
        words = shlex.split(command)
    except ValueError:
        return command
    return " ".join(_quoted(_moved_word(word, home, old, new)) for word in words)


def _moved_word(word: str, home: str, old: str, new: str) -> str:
    """A path in the old folder, alone or behind NAME=, in the new one."""
    name, equals, value = word.rpartition("=")
    path = os.path.normpath(os.path.join(home, value))
    if path != old and not path.startswith(old + os.sep):
        return word
    return name + equals + new + path.removeprefix(old)


def _quoted(word: str) -> str:
    assignment = ASSIGNMENT.match(word)
    head = assignment[0] if assignment else ""
    return head + shlex.quote(word.removeprefix(head))
