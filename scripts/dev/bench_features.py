"""What four pairs of matched layers add to a train step, side by side in one run of the real command.

python -m scripts.dev.bench_features [--steps N] [--hidden H] [--check]

Each step is made twice on the same rows, with features and without. Its time is the processor's, which other programs
change little.
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
from transformers import AutoTokenizer

from examples.tiny_models import make_dense
from scripts.dev.bench_tools import ROOT, describe_machine, table, write_json

CLOCK = Path(__file__).with_name("feature_clock.py")
MOST_SHARE = 0.05
BASE_MODEL = ROOT / "examples" / "base_model"
LAYERS, TEACHER_LAYERS = 28, 36  # of Qwen3-0.6B and Qwen3-8B
NOT_COUNTED = 2  # steps in which things start up


def make_models(folder: Path, hidden: int) -> dict[str, str]:
    """A student, and a teacher of twice its width."""
    tokenizer, models = AutoTokenizer.from_pretrained(BASE_MODEL), {}
    for flag, layers, size in (("model", LAYERS, hidden), ("teacher_model", TEACHER_LAYERS, 2 * hidden)):
        sizes = {"num_hidden_layers": layers, "intermediate_size": 3 * size}
        models[flag] = str(make_dense(folder / flag, tokenizer, size, seed=layers, **sizes))
    return models


def run(steps: int, hidden: int) -> list[tuple[float, float]]:
    """Of each step the seconds with and without features."""
    with tempfile.TemporaryDirectory() as folder:
        given = {
            **{"rlhf_type": "gkd", "external_plugins": f"swift_kd_plugin {CLOCK}", "template": "qwen3"},
            **make_models(Path(folder), hidden),
            **{"model_type": "qwen3", "teacher_model_type": "qwen3", "torch_dtype": "bfloat16", "lmbda": 0},
            **{"dataset": str(ROOT / "examples" / "data" / "conversations.jsonl"), "loss_scale": "default"},
            **{"micro_batch_size": 8, "global_batch_size": 8, "max_length": 256, "recompute_granularity": "none"},
            **{"train_iters": steps + NOT_COUNTED, "kd_feature_weight": 0.1, "save_steps": 10**6},
            **{"no_save_optim": "true", "no_save_rng": "true", "output_dir": f"{folder}/output"},
        }
        argv = ["megatron", "rlhf"]
        argv += [word for name, value in given.items() for word in (f"--{name}", *str(value).split(" "))]
        clock = Path(folder) / "clock.json"
        env = {**os.environ, "KD_CLOCK": str(clock), "NPROC_PER_NODE": "1", "OMP_NUM_THREADS": "1"}
        env["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{env['PATH']}"
        if not os.path.exists("/dev/nvidiactl"):
            env["SWIFT_KD_DEVICE"] = "cpu"
        done = subprocess.run(argv, env=env, cwd=folder, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(done.stdout[-2000:] + done.stderr[-2000:])
        return json.loads(clock.read_text(encoding="utf-8"))[NOT_COUNTED:]


def main(
    steps: Annotated[int, typer.Option(help="Each is made with features and without.")] = 10,
    hidden: Annotated[int, typer.Option(help="The student's hidden size; the teacher's is twice that.")] = 256,
    output: Annotated[Path, typer.Option(help="The JSON file.")] = Path("output/bench_features.json"),
    check: Annotated[bool, typer.Option("--check", help="Fail if the target is missed.")] = False,
) -> None:
    """Prints seconds per step, as a table and as JSON."""
    measured = run(steps, hidden)
    with_features, without = (statistics.median(times) for times in zip(*measured, strict=True))
    share = statistics.median(matched / plain - 1 for matched, plain in measured)
    row = {"pairs": "4 pairs", "without": without, "with": with_features, "share": share}
    print(
        table(
            [row], {"pairs": f"hidden {hidden}", "without": "without s:.4f", "with": "with s:.4f", "share": "more:.2%"}
        )
    )
    holds = share <= MOST_SHARE
    print(f"target: at most {MOST_SHARE:.0%} more: {'holds' if holds else 'MISSED'}")
    write_json(output, {"machine": describe_machine(), "hidden": hidden, "steps": measured, **row, "holds": holds})
    if check and not holds:
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
