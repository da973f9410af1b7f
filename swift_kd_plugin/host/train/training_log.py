"""The figures of a run by step, from the log that ms-swift writes."""

import json
import re
from math import isfinite
from pathlib import Path
from typing import Any

LOG = "logging.jsonl"
ITERATION = re.compile(r"[0-9]+/[0-9]+")


def read_log(folder: Path, start: int = 0) -> list[dict[str, Any]]:
    """The rows of a run's log so far, whole lines only.

    Args:
        start: the byte where they begin; a log that is shorter has been begun anew.
    """
    file = folder / LOG
    if not file.is_file():
        return []
    content = file.read_bytes()
    *lines, _ = content[start if 0 <= start <= len(content) else 0 :].decode("utf-8", "replace").split("\n")
    return [row for line in lines if (row := _parsed(line)) is not None]


def _parsed(line: str) -> dict[str, Any] | None:
    """A row without damaged values; None for what is none: where the disk was full, a line has lost its end."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(row, dict):
        return None
    return {name: value for name, value in row.items() if _is_sound(name, value)}


def _is_sound(name: str, value: Any) -> bool:
    if name == "iteration":
        return isinstance(value, str) and ITERATION.fullmatch(value) is not None
    return isinstance(value, (int, float)) or (isinstance(value, str) and not name.endswith("loss"))


def step_of_row(row: dict[str, Any]) -> tuple[int, int] | None:
    """Step and number of steps of a log row; None for the row at the end of a run."""
    if "iteration" not in row:
        return None
    step, _, steps = row["iteration"].partition("/")
    return int(step), int(steps)


def read_evaluations(folder: Path, metric: str) -> dict[int, float]:
    """A metric of the evaluations by step, without what is no finite number; of a step that was run twice, what the
    later run says."""
    name = f"eval_{metric}"
    values = {step_of_row(row)[0]: row[name] for row in read_log(folder) if name in row and step_of_row(row)}
    return {step: value for step, value in values.items() if isfinite(value)}


def cut_half_row(folder: Path) -> None:
    """Removes the row that a killed run was writing: the next one would be appended to it."""
    file = folder / LOG
    if file.is_file():
        content = file.read_bytes()
        with file.open("rb+") as log:
            log.truncate(content.rfind(b"\n") + 1)


def best_step(values: dict[int, float], greater: bool = False) -> int:
    """The step with the least value, or the greatest; the later one of equals, as ms-swift chooses."""
    return max(values, key=lambda step: (values[step] if greater else -values[step], step))
