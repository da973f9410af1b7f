"""Starts the real commands, in a fork of a warm process or literally as a user does, and reads what they wrote.

Both are the same run (test_warm_launch.py holds them equal bit by bit); a literal one imports the stack anew in each of
its processes, which takes longer than most runs. What is about the command itself is started literally.
"""

import fcntl
import json
import os
import random
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

from tests.launching.supervisor import supervised
from tests.launching.warm_client import run_warm

BIN = Path(sys.executable).parent
HAS_GPU = os.path.exists("/dev/nvidiactl")


RESERVED = []  # files of this process's ports, locked until it ends


def free_port() -> int:
    """A port that no other test of this machine gets while this process lives.

    It lies below those that the system hands out by itself, so that none of its connections takes it meanwhile.
    """
    folder = Path(tempfile.gettempdir()) / "swift_kd_plugin_test_ports"
    folder.mkdir(exist_ok=True)
    while True:
        port = random.randrange(20_000, 32_768)
        file = (folder / str(port)).open("w")
        with socket.socket() as probe:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                probe.bind(("127.0.0.1", port))
            except OSError:
                file.close()
                continue
        RESERVED.append(file)
        return port


@dataclass
class Run:
    """A finished run: its exit code, what it printed, and where it wrote."""

    code: int
    log: str
    output: Path
    seconds: float
    steps: list[dict] = field(default_factory=list)

    @property
    def losses(self) -> list[float]:
        return [step["loss"] for step in self.steps]

    @property
    def grad_norms(self) -> list[float]:
        return [step["grad_norm"] for step in self.steps]

    @property
    def checkpoint(self) -> Path:
        """The last checkpoint folder."""
        folders = self.output.glob("checkpoint-*")
        return max(folders, key=lambda folder: int(folder.name.split("-")[1]))

    def warnings(self, text: str) -> list[str]:
        """The lines of warnings with a text, without the run's end, which says them again."""
        return [line for line in self.log.splitlines() if "[WARNING" in line and text in line]

    def expect_success(self) -> "Run":
        assert self.code == 0, f"exit code {self.code}:\n{self.log[-6000:]}"
        return self


def flags_to_argv(flags: dict[str, object]) -> list[str]:
    """`{"lr": 0.1, "dataset": ["a", "b"], "x": None}` becomes `--lr 0.1 --dataset a b`; None leaves a flag out."""
    argv = []
    for name, value in flags.items():
        if value is None:
            continue
        values = value if isinstance(value, (list, tuple)) else [value]
        argv += [f"--{name}", *(str(v).lower() if isinstance(v, bool) else str(v) for v in values)]
    return argv


def environment(processes: int | None, **changes: str) -> dict[str, str]:
    env = {k: v for k, v in os.environ.items() if k not in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "NPROC_PER_NODE")}
    env["PATH"] = f"{BIN}{os.pathsep}{env['PATH']}"
    env.setdefault("OMP_NUM_THREADS", "1")
    if not HAS_GPU:
        env["SWIFT_KD_DEVICE"] = "cpu"
    if processes is not None:
        env.update(NPROC_PER_NODE=str(processes), MASTER_PORT=str(free_port()))
    return {**env, **changes}


def run_command(argv: list[str], folder: Path, env: dict[str, str], timeout: float = 240) -> tuple[int, str, float]:
    """Runs `argv` in `folder`; after the timeout all of its processes are killed and the exit code is -9."""
    with tempfile.TemporaryFile() as output:
        start = time.monotonic()
        with supervised(argv, folder, env, output) as process:
            try:
                code = process.wait(timeout)
            except subprocess.TimeoutExpired:
                code = -9
        seconds = time.monotonic() - start
        output.seek(0)
        return code, output.read().decode(errors="replace"), seconds


def run_tool(argv: list[str], folder: Path, env: dict[str, str], timeout: float = 240) -> tuple[int, str, float]:
    """Runs `swift-kd …` or `python -m …` as `run_command` does, in a fork of a warm process where there is no GPU."""
    return (run_command if HAS_GPU else run_warm)(argv, folder, env, timeout)


def megatron_rlhf(
    folder: Path,
    flags: dict[str, object],
    processes: int | None = 1,
    env: dict[str, str] | None = None,
    timeout: float = 240,
    literal: bool = False,
) -> Run:
    """Runs `megatron rlhf` with `flags` in `folder`; its output goes to `folder/output`.

    Args:
        literal: start the command itself instead of forking a warm process; a machine with a GPU always does.
    """
    folder.mkdir(parents=True, exist_ok=True)
    output = folder / "output"
    argv = ["megatron", "rlhf", *flags_to_argv({**flags, "output_dir": output, "add_version": False})]
    run = run_command if literal or HAS_GPU else run_warm
    code, log, seconds = run(argv, folder, environment(processes, **(env or {})), timeout)
    (folder / "log.txt").write_text(log, encoding="utf-8")
    return Run(code, log, output, seconds, read_steps(output / "logging.jsonl"))


def read_steps(file: Path) -> list[dict]:
    if not file.exists():
        return []
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    return [row for row in rows if "loss" in row]
