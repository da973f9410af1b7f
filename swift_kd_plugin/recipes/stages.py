"""Runs the stages of a recipe in order: finished ones are skipped, interrupted ones resumed, changed ones refused."""

import re
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from swift_kd_plugin.data.files import first_free
from swift_kd_plugin.errors import KDError
from swift_kd_plugin.host.train.training_log import cut_half_row, read_log, step_of_row
from swift_kd_plugin.recipes.checkpoints import (
    damaged_checkpoints,
    is_full,
    keep_best,
    last_whole_checkpoint,
    make_way,
    read_result,
)
from swift_kd_plugin.recipes.plan import GENERATE, Stage
from swift_kd_plugin.recipes.process import run_process
from swift_kd_plugin.recipes.shell_command import Command, megatron_command, program_command
from swift_kd_plugin.recipes.stage_record import MARKER, StageRecord, find_change, new_record, read_record

TRAIN_LOG = "train.log"
PROGRESS_LINES = 10  # of a stage, where there is no terminal
RANK_ERROR = re.compile(r"swift_kd_plugin(?: \[rank \d+\])?: error: (.*)")
CONSEQUENCE = re.compile(r"ended first(?: on this machine)?, with exit code|the connection to another rank is gone")
ANY_ERROR = re.compile(r"\b\w*(?:Error|Exception)(?:: .*)?$", re.MULTILINE)
Say = Callable[[str], None]


class StageFailed(KDError):
    """A stage's command ended with another exit code than 0."""

    def __init__(self, message: str, code: int):
        super().__init__(message)
        self.code = code


@dataclass(frozen=True)
class StageRunner:
    """What all stages of one run share.

    Args:
        say: prints a line.
        rerun: move a changed stage's folder aside and run it anew, instead of refusing.
        lock: a file descriptor that each command keeps open as long as it lives.
    """

    say: Say
    rerun: bool = False
    lock: int = -1

    def command(self, stage: Stage, keys: dict[str, Any]) -> Command:
        """The command of a stage whose keys are complete."""
        if stage.kind == GENERATE:
            return program_command(("swift-kd", "generate"), {**keys, "output": str(stage.folder)})
        return megatron_command(training_keys(stage, keys))

    def finish(self, stage: Stage) -> StageRecord:
        """Brings a stage to its end, from wherever it is. Raises KDError if it has changed or fails."""
        keys = complete_keys(stage, best_of)
        old, marker = read_record(stage.folder), new_record(keys, stage.root)
        if old is not None and (change := find_change(old, marker)) and (self.rerun or _has_result(stage, old)):
            old = self._put_aside(stage, change)
        if old is not None and old.finished:
            self.say(f"{stage.name}: finished before, in {old.seconds:.0f} s")
            return old
        if old is not None:
            marker.seconds = old.seconds + _time_of_killed(old, stage.folder)
        marker.write(stage.folder)
        resumed = self._resume(stage, keys) if old is not None and stage.kind != GENERATE else {}
        try:
            self.run(stage, self.command(stage, keys | resumed))
            marker.result = result_of(stage)
        except KDError:
            self._close(stage, marker)
            raise
        self._close(stage, marker, finished=True)
        self.say(f"{stage.name}: done in {marker.seconds:.0f} s")
        return marker

    def _close(self, stage: Stage, marker: StageRecord, finished: bool = False) -> None:
        """Notes how long an attempt took. If it failed and that cannot be written, its own error is still the one."""
        marker.seconds += time.time() - marker.started
        marker.started, marker.finished = 0.0, finished
        try:
            marker.write(stage.folder)
        except KDError as error:
            if finished:
                raise
            self.say(str(error))

    def run(self, stage: Stage, command: Command) -> None:
        """Runs a stage's command. Raises StageFailed with its own last sentence if it fails."""
        self.say(f"{stage.name}:\n{command.shell()}")
        if stage.kind == GENERATE:
            # It shows its own progress, and says itself what is wrong.
            if code := run_process(command, lock=self.lock):
                raise StageFailed(f"{stage.name} ended with exit code {code}; its own message stands above.", code)
            return
        log = stage.folder / TRAIN_LOG
        self.say(f"{stage.name}: all output goes to {log}")
        said_before = log.stat().st_size if log.is_file() else 0
        with _Progress(stage, self.say) as progress:
            code = run_process(command, log, progress.update, self.lock)
        if code:
            reason = "it was ended by a signal" if code > 128 else find_reason(log, said_before)
            raise StageFailed(f"{stage.name} ended with exit code {code}: {reason} (the whole log: {log})", code)

    def _put_aside(self, stage: Stage, change: str) -> None:
        if not self.rerun:
            raise KDError(
                f"{stage.name} in {stage.folder} is of another run: {change}; undo the change, choose another "
                "output_dir, or add --rerun, which moves the old stage aside and runs it anew."
            )
        aside = first_free(stage.folder.parent, f"{stage.folder.name}.old")
        stage.folder.rename(aside)
        self.say(f"{stage.name}: {change}; the old stage is now {aside}")

    def _resume(self, stage: Stage, keys: dict[str, Any]) -> dict[str, Any]:
        """The flags that make a run go on from the stage's last whole checkpoint."""
        checkpoint = last_whole_checkpoint(stage.folder)
        if checkpoint is None or keys.get("no_save_optim"):
            why = (
                "its checkpoints have no optimizer (no_save_optim)" if checkpoint else "it has no whole checkpoint yet"
            )
            aside = make_way(stage.folder, None, keep=(TRAIN_LOG, MARKER))
            self.say(f"{stage.name}: begins anew, because {why}{_is_in(aside)}")
            return {}
        for damaged, why in damaged_checkpoints(stage.folder).items():
            self.say(f"{stage.name}: {damaged.name} is damaged: {why}")
        cut_half_row(stage.folder)
        aside = make_way(stage.folder, checkpoint)
        if keys.get("save_total_limit"):
            keep_best(stage.folder, metric_of(keys))
        self.say(f"{stage.name}: goes on from {checkpoint}{_is_in(aside)}")
        where = "mcore_model" if is_full(keys) else "mcore_adapter"
        return {where: str(checkpoint), "finetune": False}


def complete_keys(stage: Stage, best: Callable[[Stage], str]) -> dict[str, Any]:
    """A stage's keys with the models that it takes from other stages.

    Args:
        best: the folder of a finished stage's best checkpoint.
    """
    taken = {}
    if stage.teacher is not None:
        taken["model" if stage.kind == GENERATE else "teacher_model"] = best(stage.teacher)
    if stage.start is not None:
        taken["model"] = best(stage.start)
    if stage.rows is not None:
        best(stage.rows)
    return stage.keys | taken


def best_of(stage: Stage) -> str:
    """The folder of a finished stage's best checkpoint, or its rows. Raises KDError if it has not finished."""
    marker = read_record(stage.folder)
    if marker is None or not marker.finished:
        raise KDError(
            f"{stage.name} has not finished in {stage.folder}, and what comes next needs its result; run "
            f"--stage {stage.kind} or --stage all first."
        )
    return str(stage.folder / marker.result["best"]["folder"])


def training_keys(stage: Stage, keys: dict[str, Any]) -> dict[str, Any]:
    """The flags of a training stage: what it needs to be handed over and resumed is added."""
    added = {
        "output_dir": str(stage.folder),
        "add_version": False,
        "metric_for_best_model": metric_of(keys),
        "greater_is_better": False,
    }
    if keys.get("eval_steps") and not keys.get("save_steps"):
        added["save_steps"] = keys["eval_steps"]
    return keys | added


def metric_of(keys: dict[str, Any]) -> str:
    """The name of the validation figure that chooses the best checkpoint; less is better."""
    default = "loss" if keys.get("kd_divergence") == "stock" else "divergence"
    return (keys.get("metric_for_best_model") or default).removeprefix("eval_")


def result_of(stage: Stage) -> dict[str, Any]:
    """What a finished stage hands over: best and final checkpoint, or the generated rows; relative to its folder."""
    if stage.kind == GENERATE:
        if not stage.rows_file.is_file():
            raise KDError(f"{stage.name} ended without {stage.rows_file}.")
        return {"best": {"folder": stage.rows_file.name}}
    best, final = read_result(stage.folder, metric_of(stage.keys), adapter=not is_full(stage.keys))
    points = {"best": best, "final": final}
    relative = {name: {"folder": str(point.folder.relative_to(stage.folder))} for name, point in points.items()}
    return {"steps": final.step, **{name: asdict(point) | relative[name] for name, point in points.items()}}


def find_reason(log: Path, start: int) -> str:
    """The first sentence of a rank in a log from a byte on, or the last line that looks like an error."""
    with log.open("rb") as file:
        file.seek(start)
        text = file.read().decode("utf-8", "replace")
    sentences = [sentence for sentence in RANK_ERROR.findall(text) if not CONSEQUENCE.search(sentence)]
    if sentences:
        return sentences[0].strip()
    errors = ANY_ERROR.findall(text)
    return errors[-1].strip() if errors else "it gave no reason"


def _has_result(stage: Stage, marker: StageRecord) -> bool:
    """Whether a stage has made what a change of its keys would lose; an unfinished generate stage looks itself."""
    return marker.finished or (stage.kind != GENERATE and last_whole_checkpoint(stage.folder) is not None)


def _time_of_killed(old: StageRecord, folder: Path) -> float:
    """Seconds that an attempt took which could not say so: until its last word in the log."""
    log = folder / TRAIN_LOG
    return max(0.0, log.stat().st_mtime - old.started) if old.started and log.is_file() else 0.0


def _is_in(aside: Path | None) -> str:
    return f"; what was there behind it is now in {aside}" if aside else ""


class _Progress:
    """The progress of a training stage, read from its log: a bar on a terminal, a few lines elsewhere."""

    def __init__(self, stage: Stage, say: Say):
        self._stage, self._say = stage, say
        self._bar = tqdm(desc=stage.name, unit="step", disable=None)
        self._shown: dict[str, str] = {}
        self._lines = 0
        self._old_rows = len(read_log(stage.folder))  # of an earlier attempt

    def __enter__(self) -> "_Progress":
        return self

    def __exit__(self, *_) -> None:
        self._bar.close()

    def update(self) -> None:
        for row in read_log(self._stage.folder)[self._old_rows :]:
            if (at := step_of_row(row)) is not None:
                self._bar.n, self._bar.total = at
                names = {"loss": "loss", "eval_divergence": "validation divergence"}
                self._shown |= {names[key]: f"{row[key]:.4g}" for key in names if key in row}
        if self._bar.disable:
            self._say_line()
        else:
            self._bar.set_postfix(self._shown, refresh=False)
            self._bar.refresh()

    def _say_line(self) -> None:
        """Says where the stage is, once in each tenth of its steps."""
        step, steps = self._bar.n, self._bar.total
        if steps and step * PROGRESS_LINES // steps > self._lines:
            self._lines = step * PROGRESS_LINES // steps
            figures = "".join(f", {name} {value}" for name, value in self._shown.items())
            self._say(f"{self._stage.name}: step {step}/{steps}{figures}")
