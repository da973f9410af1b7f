"""Starts the real `megatron rlhf` as a user does, and reads what it wrote."""

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

BIN = Path(sys.executable).parent
HAS_GPU = os.path.exists("/dev/nvidiactl")


def free_port() -> int:
    """A port below those that the system hands out by itself, so that none of its connections takes it meanwhile."""
    while True:
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port := random.randrange(20_000, 32_768)))
            except OSError:
                continue
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
    """Runs `argv` in `folder`; on a timeout the whole process group is killed and the exit code is -9."""
    start = time.monotonic()
    with subprocess.Popen(
        argv, cwd=folder, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True
    ) as process:
        try:
            log, _ = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            log, _ = process.communicate()
            return -9, log, time.monotonic() - start
    return process.returncode, log, time.monotonic() - start


def megatron_rlhf(
    folder: Path,
    flags: dict[str, object],
    processes: int | None = 1,
    env: dict[str, str] | None = None,
    timeout: float = 240,
) -> Run:
    """Runs `megatron rlhf` with `flags` in `folder`; its output goes to `folder/output`."""
    folder.mkdir(parents=True, exist_ok=True)
    output = folder / "output"
    argv = ["megatron", "rlhf", *flags_to_argv({**flags, "output_dir": output, "add_version": False})]
    code, log, seconds = run_command(argv, folder, environment(processes, **(env or {})), timeout)
    (folder / "log.txt").write_text(log, encoding="utf-8")
    return Run(code, log, output, seconds, read_steps(output / "logging.jsonl"))


def read_steps(file: Path) -> list[dict]:
    if not file.exists():
        return []
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    return [row for row in rows if "loss" in row]
