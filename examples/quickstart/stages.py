"""Runs one `megatron rlhf` stage of the quickstart, shows its progress and reads its figures."""

import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

PROGRESS_LINES = 10
POLL_SECONDS = 0.5
RANK_ERROR = re.compile(r"swift_kd_plugin \[rank \d+\]: error: (.*)")
ANY_ERROR = re.compile(r"(?:swift_kd_plugin: error: .*|\b\w*(?:Error|Exception): .*)")


class QuickstartError(Exception):
    """Something that ends the quickstart. The message is one sentence."""


@dataclass(frozen=True)
class Machine:
    """Where the stages run: on `processes` GPUs, or in as many CPU processes."""

    on_gpu: bool
    processes: int

    @classmethod
    def detect(cls) -> "Machine":
        """Up to two GPUs if there are any and SWIFT_KD_DEVICE does not say cpu; two CPU processes otherwise."""
        import torch

        if os.environ.get("SWIFT_KD_DEVICE") != "cpu" and torch.cuda.is_available():
            return cls(on_gpu=True, processes=min(2, torch.cuda.device_count()))
        return cls(on_gpu=False, processes=2)

    def environment(self) -> dict[str, str]:
        """What the launcher needs on top of the current environment."""
        wanted = {"NPROC_PER_NODE": str(self.processes), "MASTER_PORT": str(_free_port())}
        return wanted if self.on_gpu else {**wanted, "SWIFT_KD_DEVICE": "cpu"}

    def __str__(self) -> str:
        return f"{self.processes} {'GPU(s)' if self.on_gpu else 'CPU processes'}"


@dataclass(frozen=True)
class Stage:
    """One training run: a YAML file and the flags that follow it; the last value of a flag wins."""

    name: str
    config: Path
    output: Path
    flags: tuple[str, ...] = ()

    @property
    def arguments(self) -> list[str]:
        return ["rlhf", str(self.config), *self.flags, "--output_dir", str(self.output)]

    def with_flags(self, *flags: str) -> "Stage":
        return replace(self, flags=(*self.flags, *flags))

    def shell_command(self, processes: int) -> str:
        """The stage as one line for a shell."""
        return f"NPROC_PER_NODE={processes} megatron {shlex.join(self.arguments)}"


@dataclass(frozen=True)
class StageResult:
    """What a finished stage says about itself. Memory is the largest of all processes'."""

    checkpoint: Path
    steps: int
    first_loss: float
    last_loss: float
    seconds_per_step: float
    peak_memory_gib: float
    wall_seconds: float


def run_stage(stage: Stage, machine: Machine) -> StageResult:
    """Trains; raises QuickstartError if the command fails or leaves no checkpoint."""
    log = stage.output.with_suffix(".log")
    started = time.monotonic()
    with _launched([_find_megatron(), *stage.arguments], machine.environment(), log) as process:
        _show_progress(stage, process)
    if process.returncode != 0:
        reason = _find_reason(log)
        raise QuickstartError(
            f"the {stage.name} stage ended with exit code {process.returncode}: {reason} (log: {log})"
        )
    return _read_result(stage, time.monotonic() - started)


def read_log(stage: Stage) -> list[dict[str, Any]]:
    """The complete rows of the run's logging.jsonl so far."""
    path = stage.output / "logging.jsonl"
    if not path.is_file():
        return []
    *complete, _ = path.read_text(encoding="utf-8").split("\n")
    return [json.loads(line) for line in complete]


def _find_megatron() -> str:
    beside = Path(sys.executable).with_name("megatron")
    command = str(beside) if beside.is_file() else shutil.which("megatron")
    if command is None:
        raise QuickstartError("the command megatron is missing; run `make install`, or pip install ms-swift.")
    return command


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        return probe.getsockname()[1]


@contextmanager
def _launched(command: Sequence[str], environment: dict[str, str], log: Path) -> Iterator[subprocess.Popen]:
    """Starts `command` in a process group of its own, which is ended if the quickstart is."""
    with log.open("w", encoding="utf-8") as output:
        process = subprocess.Popen(
            command,
            env={**os.environ, **environment},
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM)
            process.wait()


def _show_progress(stage: Stage, process: subprocess.Popen) -> None:
    """Prints about PROGRESS_LINES lines of the growing log until the process ends."""
    shown = 0
    while True:
        ended = process.poll() is not None
        for row in read_log(stage)[shown:]:
            shown += 1
            if "iteration" in row:
                _print_row(row)
        if ended:
            return
        time.sleep(POLL_SECONDS)


def _print_row(row: dict[str, Any]) -> None:
    step, steps = map(int, row["iteration"].split("/"))
    if step == 1 or step % max(1, steps // PROGRESS_LINES) == 0:
        print(f"  step {step:>3}/{steps}  loss {row['loss']:.4f}  {row['train_speed(s/it)']:.2f} s/step", flush=True)


def _find_reason(log: Path) -> str:
    """The plugin's own sentence if a rank printed one, else the last line that looks like an error."""
    text = log.read_text(encoding="utf-8", errors="replace")
    said = RANK_ERROR.findall(text)
    if said:
        return said[0].strip()
    errors = ANY_ERROR.findall(text)
    return errors[-1].strip() if errors else "it gave no reason"


def _read_result(stage: Stage, wall_seconds: float) -> StageResult:
    rows = read_log(stage)
    steps = [row for row in rows if "iteration" in row]
    checkpoint = next(
        (row["last_model_checkpoint"] for row in reversed(rows) if row.get("last_model_checkpoint")), None
    )
    if not steps or checkpoint is None or not list(Path(checkpoint).glob("*.safetensors")):
        raise QuickstartError(f"the {stage.name} stage ended without a checkpoint in {stage.output}.")
    return StageResult(
        checkpoint=Path(checkpoint),
        steps=int(steps[-1]["iteration"].split("/")[0]),
        first_loss=steps[0]["loss"],
        last_loss=steps[-1]["loss"],
        seconds_per_step=steps[-1]["train_speed(s/it)"],
        peak_memory_gib=max(row["memory(GiB)"] for row in steps),
        wall_seconds=round(wall_seconds, 1),
    )
