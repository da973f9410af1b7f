"""The checkpoints of a training stage: which are whole, which is the best, and what is in a resumed run's way."""

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from swift_kd_plugin.data.files import move_aside
from swift_kd_plugin.errors import KDError
from swift_kd_plugin.host.train.checkpoint_manifest import (
    LAST,
    MERGED,
    State,
    describe_damage,
    linked,
    merged_folder,
    state_of,
    step_of,
)
from swift_kd_plugin.host.train.training_log import best_step, read_evaluations

PREFIX = "checkpoint-"
KEPT, ASIDE = "kept", "aside"


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint: its step, its validation divergence if it was evaluated, and the folder that a model loads from."""

    step: int
    divergence: float | None
    folder: Path


def last_whole_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint that is whole by its own files, or that ms-swift's link names; None if there is none yet.

    Raises:
        KDError: there are checkpoints, and nothing tells whether one of them is whole.
    """
    states = {path: state_of(path) for path in _checkpoints(folder)}
    candidates = [path for path, state in states.items() if state is State.WHOLE]
    if states.get(named := linked(folder)) is State.UNKNOWN:
        candidates.append(named)  # ms-swift links what it has written whole
    if candidates:
        return max(candidates, key=step_of)
    for path in sorted(states, key=step_of, reverse=True):
        if states[path] is State.DAMAGED:
            raise KDError(
                f"{path} is damaged ({describe_damage(path)}), and no other checkpoint is whole; copy it again, or "
                "move the checkpoints away to begin anew."
            )
        if states[path] is State.UNKNOWN:
            raise KDError(
                f"nothing tells whether {path} is whole, as {folder / LAST} is no link to a checkpoint; if it is, put "
                "such a link there, otherwise move the checkpoints away to begin anew."
            )
    return None


def make_way(folder: Path, whole: Path | None, keep: tuple[str, ...] = ()) -> Path | None:
    """Moves aside what a run that goes on from a checkpoint would mix with its own; None if nothing is in its way.

    Args:
        whole: the checkpoint, whose successors are in the way; without it all that an attempt has written is.
        keep: names that stay.
    """
    there = [path for path in folder.iterdir() if path.name not in keep and not path.name.startswith(f"{ASIDE}-")]
    if whole is not None:
        there = [path for path in there if _is_in_the_way(path, step_of(whole))]
    return move_aside(folder, there, ASIDE) if there else None


def keep_best(folder: Path, metric: str) -> None:
    """Keeps the best checkpoint so far from --save_total_limit: a resumed run does not know that it is the best."""
    checkpoint = last_whole_checkpoint(folder)
    if checkpoint is None:
        return
    divergences = {
        step: value for step, value in read_evaluations(folder, metric).items() if step <= step_of(checkpoint)
    }
    if not divergences:
        return
    source = folder / f"{PREFIX}{best_step(divergences)}"
    for place in (source, merged_folder(source)):
        target = folder / KEPT / place.name
        if place.is_dir() and not target.exists():
            part = target.with_name(f".{place.name}")
            shutil.rmtree(part, ignore_errors=True)  # of a process that was killed while it copied
            shutil.copytree(place, part, copy_function=_link)
            part.rename(target)


def read_result(folder: Path, metric: str, adapter: bool) -> tuple[Checkpoint, Checkpoint]:
    """Best and final checkpoint of a finished stage; without an evaluation the final one is the best.

    Args:
        adapter: the stage trains one, so that a model is what it was merged into.

    Raises:
        KDError: the stage left no checkpoint that a model can be loaded from.
    """
    final = last_whole_checkpoint(folder)
    if final is None:
        raise KDError(f"the training in {folder} ended without a whole checkpoint.")
    divergences = read_evaluations(folder, metric)
    last = step_of(final)
    best = best_step(divergences) if divergences else last
    return tuple(Checkpoint(step, divergences.get(step), _model_folder(folder, step, adapter)) for step in (best, last))


def _model_folder(folder: Path, step: int, adapter: bool) -> Path:
    name = f"{PREFIX}{step}{MERGED if adapter else ''}"
    for place in (folder / name, folder / KEPT / name):
        if any(place.glob("*.safetensors")) and state_of(place) is not State.DAMAGED:
            return place
    raise KDError(
        f"{folder / name} with a model in safetensors is missing or damaged; leave save_safetensors (and merge_lora) "
        "at true, and do not delete checkpoints of an unfinished run."
    )


def is_full(keys: dict[str, Any]) -> bool:
    """Whether flags train the whole model, not an adapter."""
    return keys.get("tuner_type") in (None, "full") and not keys.get("adapters")


def damaged_checkpoints(folder: Path) -> dict[Path, str]:
    """Checkpoints that a run cannot go on from, by what is wrong with each."""
    return {path: describe_damage(path) for path in _checkpoints(folder) if state_of(path) is State.DAMAGED}


def _checkpoints(folder: Path) -> list[Path]:
    return [path for path in folder.glob(f"{PREFIX}*") if step_of(path) is not None and os.path.isdir(path)]


def _is_in_the_way(path: Path, step: int) -> bool:
    """Whether it is a later checkpoint than a step's, a model that was merged of one, or a link that names one."""
    if path.name == LAST:
        named = linked(path.parent)
        return named is None or (step_of(named) or 0) > step
    path_step = step_of(path.with_name(path.name.removesuffix(MERGED)))
    return path_step is not None and path_step > step and os.path.isdir(path)


def _link(source: str, target: str) -> str:
    try:
        os.link(source, target)
    except OSError:  # a file system without hard links
        shutil.copy2(source, target)
    return target
