"""How a run stands, by what lies in its folder: no process is asked, so that it works for dead ones, too."""

import os
import shlex
import time
from dataclasses import asdict, dataclass, field
from math import isfinite
from pathlib import Path
from typing import Any

from swift_kd_plugin.console import LAUNCH
from swift_kd_plugin.console import LOG as TRAIN_LOG
from swift_kd_plugin.data.files import LOCK, is_locked
from swift_kd_plugin.errors import KDError
from swift_kd_plugin.host.train.checkpoint_manifest import read_saved_args
from swift_kd_plugin.host.train.run_record import FAILED, FINISHED, RUN, STAGE, SUMMARY, read_page
from swift_kd_plugin.host.train.training_log import LOG, read_log, step_of_row
from swift_kd_plugin.recipes.checkpoints import is_full, last_whole_checkpoint
from swift_kd_plugin.recipes.shown_command import place_of_log, shown_command

STARTING, RUNNING, STOPPED = "starting", "running", "stopped"
STALE_SECONDS, STALE_ROWS = 600.0, 5  # without a row of the log: at least so long, and so many times a row's own time
FEW_ROWS = 4  # of which no trend is said
# The kinds of what is read of the pages; a damaged value is as none.
NUMBER = (int, float)
KINDS = {
    **dict.fromkeys(("command", "folder", "output_dir", "log", "state", "error", "next"), str),
    **dict.fromkeys(("machines", "log_bytes"), int),
    **dict.fromkeys(("seconds", "started"), NUMBER),
    "result": dict,
}
NO_REASON = f"no reason is written in its {SUMMARY}; see the log."


@dataclass
class RunStatus:
    """How one run stands.

    Args:
        state: starting, running, finished, stopped or failed.
        figures: the last row of training in logging.jsonl that this run has written.
        evaluation: the last row of an evaluation.
        remaining: as ms-swift says it.
        silent_seconds: since the log was last written to; of a run that lives.
        falls: whether the loss falls; None of too few rows.
        not_finite: the steps whose loss is no finite number.
        error: the sentence that a failed run ended with.
        go_on: the command that goes on with a run that has stopped, or why there is none.
        machines: on how many it is typed, on each with its own NODE_RANK.
    """

    folder: str
    state: str
    step: int = 0
    steps: int | None = None
    figures: dict[str, Any] = field(default_factory=dict)
    evaluation: dict[str, Any] = field(default_factory=dict)
    remaining: str | None = None
    silent_seconds: float | None = None
    is_stale: bool = False
    falls: bool | None = None
    not_finite: list[int] = field(default_factory=list)
    error: str | None = None
    go_on: str | None = None
    machines: int = 1
    next: str | None = None
    log: str | None = None

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass
class StageStatus:
    """How a stage of a recipe stands; `run` is that of its training, where one has begun."""

    name: str
    state: str
    seconds: float = 0.0
    best: dict[str, Any] | None = None
    run: RunStatus | None = None

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def read_status(folder: Path) -> RunStatus | list[StageStatus]:
    """The status of a run, or of the stages of a recipe in their order.

    Raises:
        KDError: the folder is neither's.
    """
    if not folder.is_dir():
        raise KDError(f"{folder} {'is a file' if folder.exists() else 'does not exist'}; give the folder of a run.")
    if stages := sorted((*folder.glob(f"*/{STAGE}"), *folder.glob(f"*/*/{STAGE}")), key=os.path.getctime):
        alive = is_locked(folder / LOCK)
        return [read_stage(file.parent, folder, alive) for file in stages]
    if is_run(folder):
        return read_run(folder)
    below = [path for path in folder.iterdir() if path.is_dir() and is_run(path)]
    if len(below) == 1:  # --add_version true, once
        return read_run(below[0])
    raise KDError(
        f"{folder} is no folder of a run (it has neither {RUN} nor {LOG} nor {TRAIN_LOG}){_meant(folder, below)}"
    )


def is_run(folder: Path) -> bool:
    return any((folder / name).is_file() for name in (RUN, LOG, TRAIN_LOG))


def is_starting(folder: Path) -> bool:
    """Whether a launcher lives whose run has not written its record yet."""
    if not is_locked(folder / LAUNCH):
        return False
    return not (folder / RUN).is_file() or (folder / RUN).stat().st_mtime < (folder / LAUNCH).stat().st_mtime


def _read_page(file: Path) -> dict[str, Any]:
    """A page without damaged values; empty where there is none."""
    page = read_page(file) or {}
    return {name: value for name, value in page.items() if isinstance(value, KINDS.get(name, object))}


def _meant(folder: Path, below: list[Path]) -> str:
    """The newest run below a folder, or the one that it lies in."""
    if below:
        return f"; did you mean {max(below, key=os.path.getmtime)}?"
    return f"; did you mean {folder.parent}?" if is_run(folder.absolute().parent) else "."


def read_stage(folder: Path, root: Path, recipe_lives: bool) -> StageStatus:
    record, name = _read_page(folder / STAGE), str(folder.relative_to(root))
    run = read_run(folder) if is_run(folder) else None
    if record.get("finished"):
        state = FINISHED
    elif run is not None and run.state in (FAILED, STARTING, RUNNING):
        state = run.state
    else:
        state = RUNNING if recipe_lives and record.get("started") else STOPPED
    return StageStatus(name, state, record.get("seconds", 0.0), _best_of(record), run)


def _best_of(record: dict[str, Any]) -> dict[str, Any] | None:
    best = record.get("result", {}).get("best")
    return best if isinstance(best, dict) else None


def read_run(folder: Path) -> RunStatus:
    if is_starting(folder):
        return RunStatus(str(folder), STARTING, log=_log_of(folder, {}))
    record, summary = _read_page(folder / RUN), _read_page(folder / SUMMARY)
    state = RUNNING if is_locked(folder / RUN) else summary.get("state", STOPPED)
    if state not in (RUNNING, FINISHED, FAILED):  # another program's page
        state = STOPPED
    status = RunStatus(str(folder), state, log=_log_of(folder, record | summary), machines=record.get("machines", 1))
    trained = _add_figures(status, read_log(folder, record.get("log_bytes", 0)))
    if state == RUNNING:
        _add_time(status, folder, trained)
    elif state == FINISHED:
        status.next = shown_command(summary["next"], record, folder) if "next" in summary else None
    else:
        status.go_on = how_to_go_on(folder, record)
        status.error = summary.get("error", NO_REASON) if state == FAILED else None
    return status


def _log_of(folder: Path, page: dict[str, Any]) -> str | None:
    log = page.get("log") or (TRAIN_LOG if (folder / TRAIN_LOG).is_file() else "")
    return place_of_log(log, folder) or None


def _add_figures(status: RunStatus, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows of training among those of a run."""
    trained = [row for row in rows if "loss" in row and step_of_row(row)]
    if trained:
        status.step, status.steps = step_of_row(trained[-1])
        status.figures = {name: value for name, value in trained[-1].items() if isinstance(value, NUMBER)}
        status.not_finite = [step_of_row(row)[0] for row in trained if not isfinite(row["loss"])]
        status.falls = falls([row["loss"] for row in trained])
    evaluated = next((row for row in reversed(rows) if any(name.startswith("eval_") for name in row)), {})
    status.evaluation = {n: value for n, value in evaluated.items() if isinstance(value, NUMBER) or n == "iteration"}
    return trained


def _add_time(status: RunStatus, folder: Path, trained: list[dict[str, Any]]) -> None:
    written = max(file.stat().st_mtime for name in (LOG, RUN) if (file := folder / name).is_file())
    status.silent_seconds = max(0.0, time.time() - written)
    if trained:
        status.remaining = trained[-1].get("remaining_time")
        steps = [step_of_row(row)[0] for row in trained[-2:]]
        speed = trained[-1].get("train_speed(s/it)")
        of_row = (speed if isinstance(speed, NUMBER) else 0.0) * (steps[-1] - steps[0] if len(steps) > 1 else 1)
        status.is_stale = status.silent_seconds > max(STALE_SECONDS, STALE_ROWS * of_row)
    else:
        status.is_stale = status.silent_seconds > STALE_SECONDS


def falls(losses: list[float]) -> bool | None:
    """Whether the last third of the losses is lower than the first, on average; None of too few."""
    finite = [loss for loss in losses if isfinite(loss)]
    if len(finite) < FEW_ROWS:
        return None
    third = len(finite) // 3 or 1
    return sum(finite[-third:]) < sum(finite[:third])


def how_to_go_on(folder: Path, record: dict[str, Any]) -> str:
    """The command that goes on from the last whole checkpoint, or the sentence why it begins anew."""
    try:
        checkpoint = last_whole_checkpoint(folder)
    except KDError as error:
        return str(error)
    command = shown_command(record["command"], record, folder) if "command" in record else None
    if checkpoint is None:
        return f"there is no whole checkpoint yet, so it begins anew{f': {command}' if command else ''}"
    saved = read_saved_args(checkpoint)
    if saved.get("no_save_optim"):
        return f"{checkpoint} has no optimizer (--no_save_optim true); begin with it as --model"
    where = "mcore_model" if is_full(saved) else "mcore_adapter"
    flags = f"--{where} {shlex.quote(str(checkpoint.absolute()))} --finetune false"
    return f"{command} {flags}" if command else f"the command of the run with {flags}"
