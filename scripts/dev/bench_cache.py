"""Step time and size of a run that reads its teacher from a cache, against the same run with the teacher loaded.

python -m scripts.dev.bench_cache [--steps N] [--rounds N] [--features] [--check]

The teacher is twice as wide as the student; both have random weights. Seconds are those of `tokens_per_second` in the
log, without the first two steps; runs take turns, and compared is the median of the shares of neighbours.
"""

import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer

ROOT = Path(__file__).resolve().parents[2]
MOST_SHARE = 0.6
WIDTH, TOKENS, ROWS = 256, 150, 16
WARM_UP = 2  # steps


def make_material(folder: Path) -> dict[str, Any]:
    """The flags of both runs."""
    from transformers import AutoTokenizer

    from examples.tiny_models import make_dense

    tokenizer = AutoTokenizer.from_pretrained(ROOT / "examples" / "base_model")
    for seed, (name, width) in enumerate({"student": WIDTH, "teacher": 2 * WIDTH}.items()):
        make_dense(folder / name, tokenizer, width, seed, vocab_size=2048)
    draw = random.Random(0)
    with (folder / "rows.jsonl").open("w", encoding="utf-8") as file:
        for number in range(ROWS):
            answer = " ".join(str(draw.randrange(100)) for _ in range(TOKENS))
            turns = [{"role": "user", "content": f"say {number}"}, {"role": "assistant", "content": answer}]
            file.write(json.dumps({"messages": turns}) + "\n")
    flags = {"model": folder / "student", "teacher_model": folder / "teacher", "dataset": folder / "rows.jsonl"}
    flags |= {"model_type": "qwen3", "teacher_model_type": "qwen3", "template": "qwen3", "torch_dtype": "bfloat16"}
    flags |= {"micro_batch_size": 2, "global_batch_size": 8, "max_length": 1024, "lmbda": 0, "lr": 1e-5}
    flags |= {"recompute_granularity": "none", "logging_steps": 1, "dataset_num_proc": 1, "no_save_optim": "true"}
    return flags | {"add_version": "false", "kd_metrics": "false"}


def train(folder: Path, flags: dict[str, Any]) -> tuple[float, str]:
    """Seconds a token of the later steps' median, and what was printed."""
    words = [word for name, value in flags.items() for word in (f"--{name}", str(value))]
    command = [str(Path(sys.executable).with_name("megatron")), "rlhf", "--rlhf_type", "gkd"]
    command += ["--external_plugins", "swift_kd_plugin", *words, "--output_dir", str(folder)]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    if not os.path.exists("/dev/nvidiactl"):
        env["SWIFT_KD_DEVICE"] = "cpu"
    run = subprocess.run(command, capture_output=True, text=True, env=env, check=False)
    if run.returncode:
        raise SystemExit(f"{' '.join(command)}\n{(run.stdout + run.stderr)[-3000:]}")
    rows = [json.loads(line) for line in (folder / "logging.jsonl").read_text(encoding="utf-8").splitlines()]
    steps = [row["tokens_per_second"] for row in rows if "tokens_per_second" in row]
    return statistics.median(1 / speed for speed in steps[WARM_UP:]), run.stdout + run.stderr


def main(
    steps: Annotated[int, typer.Option(min=WARM_UP + 1)] = 12,
    rounds: Annotated[int, typer.Option(min=1)] = 3,
    features: Annotated[bool, typer.Option("--features", help="Match the inner layers, too.")] = False,
    check: Annotated[bool, typer.Option("--check", help="Fail where a target is not held.")] = False,
    output: Annotated[Path | None, typer.Option(help="Also write the figures here, as JSON.")] = None,
) -> None:
    from swift_kd_plugin.teacher.cache_contents import read_contents

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        flags = make_material(folder) | {"train_iters": steps, "kd_feature_weight": float(features)}
        cached = flags | {"kd_teacher_cache": folder / "cache"}
        train(folder / "fill", cached | {"train_iters": ROWS // flags["global_batch_size"] + WARM_UP})
        pairs = []
        for number in range(rounds):
            online, _ = train(folder / f"online{number}", flags)
            read, _ = train(folder / f"read{number}", cached | {"kd_teacher_cache_mode": "read"})
            pairs.append((online, read))
        parts = read_contents(folder / "cache")
    share = statistics.median(read / online for online, read in pairs)
    size, most = sum(part.bytes / part.tokens for part in parts), len(parts) * (2 * 2 * WIDTH + 16)
    typer.echo(f"A step that reads takes {share:.3f} of one with the teacher (at most {MOST_SHARE}).")
    typer.echo(f"A token takes {size:,.1f} bytes of the disk (at most {most:,}).")
    if output:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(
            json.dumps({"share": share, "bytes": size, "microseconds": [[1e6 * s for s in p] for p in pairs]})
        )
    if check and (share > MOST_SHARE or size > most):
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
