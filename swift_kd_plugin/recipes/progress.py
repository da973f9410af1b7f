"""What a training stage has written: its log's figures, its whole checkpoints, and the best of them."""

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from swift_kd_plugin.errors import KDError

LOG = "logging.jsonl"
LAST = "last-checkpoint"  # ms-swift's link to the checkpoint that was written whole last
KEPT = "kept"
PREFIX = "checkpoint-"


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint: its step, its validation divergence if it was evaluated, and the folder that a model loads from."""

    step: int
    divergence: float | None
    folder: Path


def read_rows(folder: Path) -> list[dict[str, Any]]:
    """The rows of a stage's log so far, whole lines only."""
    file = folder / LOG
    if not file.is_file():
        return []
    *whole, _ = file.read_text(encoding="utf-8").split("\n")
    return [json.loads(line) for line in whole if line]


def cut_half_row(folder: Path) -> None:
    """Removes the row that a killed run was writing: the next one would be appended to it."""
    file = folder / LOG
    if file.is_file():
        content = file.read_bytes()
        with file.open("rb+") as log:
            log.truncate(content.rfind(b"\n") + 1)


def step_of(row: dict[str, Any]) -> tuple[int, int] | None:
    """Step and number of steps of a log row; None for the row at the end of a run."""
    if "iteration" not in row:
        return None
    step, _, steps = row["iteration"].partition("/")
    return int(step), int(steps)


def last_whole_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint that was written whole. Newer ones, which were not, are removed."""
    link = folder / LAST
    if not link.is_symlink():
        return None
    whole = folder / os.readlink(link)
    for other in folder.glob(f"{PREFIX}*"):
        if _step_in(other) > _step_in(whole):
            shutil.rmtree(other)
    return whole if whole.is_dir() else None


def keep_best(folder: Path, metric: str) -> None:
    """Keeps the best checkpoint so far from --save_total_limit: a resumed run does not know that it is the best."""
    whole = last_whole_checkpoint(folder)
    if whole is None:
        return
    divergences = {step: value for step, value in read_divergences(folder, metric).items() if step <= _step_in(whole)}
    if not divergences:
        return
    best = best_step(divergences)
    for name in (f"{PREFIX}{best}", f"{PREFIX}{best}-merged"):
        source, kept = folder / name, folder / KEPT / name
        if source.is_dir() and not kept.exists():
            part = kept.with_name(f".{name}")
            shutil.rmtree(part, ignore_errors=True)
            shutil.copytree(source, part, copy_function=_link)
            part.rename(kept)


def _link(source: str, target: str) -> str:
    try:
        os.link(source, target)
    except OSError:  # a file system without hard links
        shutil.copy2(source, target)
    return target


def read_divergences(folder: Path, metric: str) -> dict[int, float]:
    """Validation divergence by step; of a step that was run twice, what the later run says."""
    rows = read_rows(folder)
    return {step_of(row)[0]: row[f"eval_{metric}"] for row in rows if f"eval_{metric}" in row and step_of(row)}


def best_step(divergences: dict[int, float]) -> int:
    """The step of the smallest divergence, the later one of equals, as ms-swift chooses."""
    return min(divergences, key=lambda step: (divergences[step], -step))


def read_result(folder: Path, metric: str, merged: bool) -> tuple[Checkpoint, Checkpoint]:
    """Best and final checkpoint of a finished stage; without an evaluation the final one is the best.

    Raises:
        KDError: the stage left no checkpoint that a model can be loaded from.
    """
    final = last_whole_checkpoint(folder)
    if final is None:
        raise KDError(f"the training in {folder} ended without a whole checkpoint.")
    divergences = read_divergences(folder, metric)
    last = _step_in(final)
    best = best_step(divergences) if divergences else last
    return tuple(Checkpoint(step, divergences.get(step), _model_folder(folder, step, merged)) for step in (best, last))


def _model_folder(folder: Path, step: int, merged: bool) -> Path:
    name = f"{PREFIX}{step}-merged" if merged else f"{PREFIX}{step}"
    for place in (folder / name, folder / KEPT / name):
        if any(place.glob("*.safetensors")):
            return place
    raise KDError(
        f"{folder / name} with a model in safetensors is missing; leave save_safetensors (and merge_lora) at true, and "
        "do not delete checkpoints of an unfinished run."
    )


def _step_in(folder: Path) -> int:
    return int(folder.name.removeprefix(PREFIX).removesuffix("-merged"))
