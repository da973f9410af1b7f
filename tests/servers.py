"""Real teacher servers on the CPU: `swift deploy` and vLLM's own OpenAI server, started at once, ended on leaving."""

import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from tests.launching.commands import HAS_GPU, environment, flags_to_argv, free_port
from tests.launching.supervisor import supervised
from tests.launching.warm_client import WarmCommand

# What a CPU needs, as docs/en/guides/teachers.md says.
CPU = {
    "VLLM_PLUGINS": "none",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "TORCHDYNAMO_DISABLE": "1",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
}
KILLS: dict[str, Callable[[], None]] = {}  # of the servers that were started, by their URL


@contextmanager
def swift_deploy(model: Path | None, folder: Path, **changes) -> Iterator[str]:
    """Yields the URL of `swift deploy` with vLLM; it gets ready meanwhile (see `wait_for`)."""
    flags = {
        "model": model,
        "model_type": "qwen3",
        "template": "qwen3",
        "infer_backend": "vllm",
        "host": "127.0.0.1",
        "port": free_port(),
        "torch_dtype": "bfloat16",
        "vllm_enforce_eager": True,
        "vllm_gpu_memory_utilization": 0.1,
        "vllm_max_model_len": 256,
        **changes,
    }
    url = f"http://127.0.0.1:{flags['port']}"
    with run_server(["swift", "deploy", *flags_to_argv(flags)], folder) as KILLS[url]:
        yield url


@contextmanager
def vllm_server(model: Path, folder: Path, **changes) -> Iterator[str]:
    """Yields the URL of vLLM's own server.

    `vllm serve` is the same; it asks for the metadata of a package named vllm, which vllm-cpu has not.
    """
    flags = {
        "model": model,
        "served-model-name": "teacher",
        "host": "127.0.0.1",
        "port": free_port(),
        "gpu-memory-utilization": 0.1,
        "max-model-len": 256,
        **changes,
    }
    argv = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--enforce-eager", *flags_to_argv(flags)]
    url = f"http://127.0.0.1:{flags['port']}"
    with run_server(argv, folder) as KILLS[url]:
        yield url


@contextmanager
def run_server(argv: list[str], folder: Path, literal: bool = False) -> Iterator[Callable[[], None]]:
    """Yields what ends the server and its workers at once, as a machine does that goes down.

    Args:
        literal: start the command itself instead of forking a warm process; a machine with a GPU always does.
    """
    env = environment(None, **CPU)
    # The server is not the plugin's: vLLM knows the CPU by itself.
    env.pop("SWIFT_KD_DEVICE", None)
    folder.mkdir(parents=True, exist_ok=True)
    start = start_literally if literal or HAS_GPU else start_warm
    with (folder / "server.txt").open("w") as log, start(argv, folder, env, log) as kill:
        yield kill


@contextmanager
def start_warm(argv: list[str], folder: Path, env: dict[str, str], log: IO) -> Iterator[Callable[[], None]]:
    command = WarmCommand(argv, folder, env, log.fileno())
    try:
        yield command.close
    finally:
        command.close()


@contextmanager
def start_literally(argv: list[str], folder: Path, env: dict[str, str], log: IO) -> Iterator[Callable[[], None]]:
    with supervised(argv, folder, env, log) as process:

        def kill() -> None:
            process.stdin.close()
            process.wait(20)

        yield kill
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                process.wait(20)


def kill_server(url: str) -> None:
    """Ends the server behind `url` at once."""
    KILLS[url]()


def wait_for(url: str, seconds: float = 300) -> str:
    """Returns `url` when the server behind it is ready."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            with urllib.request.urlopen(f"{url}/health", timeout=5):
                return url
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            time.sleep(0.5)
    raise TimeoutError(f"{url} did not answer within {seconds} s")
