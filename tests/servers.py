"""Real teacher servers on the CPU: `swift deploy` and vLLM's own OpenAI server, started at once, ended on leaving."""

import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from tests.launching.commands import environment, flags_to_argv, free_port

# What a CPU needs, as the README says.
CPU = {"VLLM_PLUGINS": "none", "VLLM_CPU_KVCACHE_SPACE": "1", "TORCHDYNAMO_DISABLE": "1"}


@contextmanager
def swift_deploy(model: Path, folder: Path, **changes) -> Iterator[str]:
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
    with run_server(["swift", "deploy", *flags_to_argv(flags)], folder):
        yield f"http://127.0.0.1:{flags['port']}"


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
    with run_server(argv, folder):
        yield f"http://127.0.0.1:{flags['port']}"


@contextmanager
def run_server(argv: list[str], folder: Path) -> Iterator[None]:
    env = environment(None, **CPU)
    # The server is not the plugin's: vLLM knows the CPU by itself.
    env.pop("SWIFT_KD_DEVICE", None)
    folder.mkdir(parents=True, exist_ok=True)
    with (
        (folder / "server.txt").open("w") as log,
        subprocess.Popen(argv, cwd=folder, env=env, stdout=log, stderr=log, start_new_session=True) as process,
    ):
        try:
            yield
        finally:
            end_group(process)


def end_group(process: subprocess.Popen) -> None:
    os.killpg(process.pid, signal.SIGTERM)
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)


def kill_server(url: str) -> None:
    """Ends the server and its workers at once, as a machine that goes down does."""
    port = url.rpartition(":")[2]
    for process in psutil.process_iter(["cmdline"]):
        if port in (process.info["cmdline"] or []):
            os.killpg(os.getpgid(process.pid), signal.SIGKILL)
            return
    raise ProcessLookupError(f"no server at {url}")


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
