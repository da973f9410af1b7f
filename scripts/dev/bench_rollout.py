"""What a step spends from samples to responses, beside engine and weight sync: ours and stock ms-swift's.

python -m scripts.dev.bench_rollout [--samples N] [--steps N] [--check]

Both run the real `megatron rlhf` with a small model and a colocated vLLM in which the student writes every response.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Annotated

import typer

from scripts.dev.bench_tools import ROOT, describe_machine, table, write_json

CLOCK = Path(__file__).with_name("rollout_clock.py")
# Of a step, at 64 samples.
MOST_SHARE = 0.03
COLUMNS = ("step", "engine", "sync", "around")


def flags(samples: int, steps: int, output: Path) -> list[str]:
    model = str(ROOT / "examples" / "base_model")
    given = {
        "rlhf_type": "gkd",
        "external_plugins": f"swift_kd_plugin {CLOCK}",
        "model": model,
        "teacher_model": model,
        "model_type": "qwen3",
        "teacher_model_type": "qwen3",
        "template": "qwen3",
        "dataset": str(ROOT / "examples" / "data" / "exp.jsonl"),
        "torch_dtype": "bfloat16",
        "micro_batch_size": 16,
        "global_batch_size": samples,
        "train_iters": steps,
        "max_length": 256,
        "recompute_granularity": "none",
        "lmbda": 1,
        "use_vllm": "true",
        "vllm_mode": "colocate",
        "vllm_max_model_len": 256,
        "vllm_gpu_memory_utilization": 0.1,
        "vllm_enforce_eager": "true",
        "max_completion_length": 32,
        "log_completions": "true",
        "logging_steps": 1,
        "no_save_optim": "true",
        "output_dir": str(output),
    }
    return [word for name, value in given.items() for word in (f"--{name}", *str(value).split(" "))]


def run(side: str, samples: int, steps: int) -> dict[str, float]:
    """The median seconds of a step and of its parts; the first step, which starts things up, is left out."""
    with tempfile.TemporaryDirectory() as folder:
        clock = Path(folder) / "clock.json"
        argv = ["megatron", "rlhf", *flags(samples, steps, Path(folder) / "output")]
        argv += ["--kd_divergence", "stock"] if side == "stock" else []
        env = {**os.environ, "KD_CLOCK": str(clock), "KD_CLOCK_SIDE": side, "NPROC_PER_NODE": "1"}
        env["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{env['PATH']}"
        if not os.path.exists("/dev/nvidiactl"):
            env["SWIFT_KD_DEVICE"] = "cpu"
        done = subprocess.run(argv, env=env, cwd=folder, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(done.stdout[-2000:] + done.stderr[-2000:])
        measured = json.loads(clock.read_text(encoding="utf-8"))[1:]
    for step in measured:
        step["around"] = step.pop("rollout") - step["engine"] - step["sync"]
    return {name: statistics.median(step[name] for step in measured) for name in COLUMNS}


def main(
    samples: Annotated[int, typer.Option(help="Responses of a step.")] = 64,
    steps: Annotated[int, typer.Option(help="Of each run, the first of which is not counted.")] = 6,
    rounds: Annotated[int, typer.Option(help="Runs of each side, taking turns.")] = 2,
    output: Annotated[Path, typer.Option(help="The JSON file.")] = Path("output/bench_rollout.json"),
    check: Annotated[bool, typer.Option("--check", help="Fail if the target is missed.")] = False,
) -> None:
    """Prints seconds per step, as a table and as JSON."""
    found = {"ours": [], "stock": []}
    for _ in range(rounds):
        for side, runs in found.items():
            runs.append(run(side, samples, steps))
    best = {side: min(runs, key=lambda run: run["around"]) for side, runs in found.items()}
    rows = [{"side": side, **times, "share": times["around"] / times["step"]} for side, times in best.items()]
    columns = {name: f"{name} s:.4f" for name in COLUMNS}
    print(table(rows, {"side": f"{samples} samples", **columns, "share": "around / step:.2%"}))
    holds = rows[0]["share"] < MOST_SHARE
    print(f"target: around / step below {MOST_SHARE:.0%}: {'holds' if holds else 'MISSED'}")
    write_json(output, {"machine": describe_machine(), "samples": samples, "sides": rows, "holds": holds})
    if check and not holds:
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
