"""Internalises an experience: a small model learns a code book that stood in its teacher's system prompt.

python -m examples.quickstart.quickstart    # about 2 minutes on two CPU cores; GPUs are used if there are any

It distils the pairs of examples/data/data.yaml with `megatron rlhf`, off-policy and then on-policy, measures the
held-out questions before and after, and leaves summary.json and the checkpoint in its output folder.
"""

import json
import shutil
import signal
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml
from transformers import AutoTokenizer

from examples.quickstart.evaluate import TEST_FILE, accuracy, load_checkpoint, read_rows
from examples.quickstart.stages import Machine, QuickstartError, Stage, StageResult, run_stage
from examples.quickstart.summary import Accuracy, accuracy_table, as_json, cost_table, last_line

HERE = Path(__file__).resolve().parent
REPO = HERE.parents[1]
DATA_FILE = HERE.parent / "data" / "data.yaml"
DATASET = "pairs"
BASE_MODEL = HERE.parent / "base_model"
MARKER = ".quickstart"
REQUIRED_ACCURACY = 0.9
MANY_GPUS = 8
MANY_GPU_FLAGS = ("--micro_batch_size", "8")  # TP=2 leaves four data-parallel ranks, and 4 x 8 is the batch


def prepare_folder(folder: Path) -> None:
    """Empties the output folder of an earlier quickstart; any other folder with files in it is refused."""
    if folder.exists() and any(folder.iterdir()):
        if not (folder / MARKER).is_file():
            raise QuickstartError(f"{folder} holds files that are not a quickstart's; choose another --output_dir.")
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MARKER).touch()


def read_pairs() -> list[dict[str, Any]]:
    """The training rows with the two views, as the training commands will see them."""
    try:
        from swift_kd_plugin.data.build import Builder
        from swift_kd_plugin.data.config import read_config
        from swift_kd_plugin.data.store import to_rows
        from swift_kd_plugin.errors import KDError
    except ImportError as error:
        raise QuickstartError("swift_kd_plugin is not installed in this Python; run `make install` first.") from error
    try:
        with tempfile.TemporaryDirectory() as folder:
            dataset, _ = Builder(Path(folder), strict=True).dataset(read_config(DATA_FILE)[DATASET])
            return list(to_rows(dataset))
    except KDError as error:
        raise QuickstartError(str(error)) from error


def make_stage(name: str, model: Path, folder: Path, machine: Machine) -> Stage:
    """A stage whose paths hold from any current folder, with no more tensor parallelism than there are processes."""
    paths = {"model": model, "teacher_model": BASE_MODEL, "kd_datasets": DATA_FILE}
    flags = tuple(part for flag, path in paths.items() for part in (f"--{flag}", str(path)))
    stage = Stage(name, HERE / f"{name.replace('-', '_')}.yaml", folder / name.replace("-", "_"), flags)
    if read_config(stage)["tensor_model_parallel_size"] > machine.processes:
        return stage.with_flags("--tensor_model_parallel_size", str(machine.processes))
    return stage


def read_config(stage: Stage) -> dict[str, Any]:
    return yaml.safe_load(stage.config.read_text(encoding="utf-8"))


def measure(checkpoint: Path, *, with_experience: bool = False) -> Accuracy:
    """Held-out accuracy of a checkpoint, each task rounded to four digits."""
    model, tokenizer = load_checkpoint(checkpoint)
    result = accuracy(model, tokenizer, read_rows(TEST_FILE), with_experience=with_experience)
    return {task: round(share, 4) for task, share in result.items()}


def count_tokens_per_step(rows: list[dict[str, Any]], stage: Stage) -> float:
    """Tokens that the student trains through in a step: its prompts and the responses given in the data."""
    tokenizer = AutoTokenizer.from_pretrained(BASE_MODEL)
    texts = tokenizer.apply_chat_template([row["messages"] for row in rows], tokenize=False)
    tokens = sum(map(len, tokenizer(texts)["input_ids"]))
    return tokens / len(rows) * read_config(stage)["global_batch_size"]


def train_and_measure(stage: Stage, machine: Machine, accuracies: dict[str, Accuracy]) -> StageResult:
    """Runs one stage and adds the accuracy of its checkpoint to `accuracies`."""
    print(f"\n{stage.name}: megatron rlhf {stage.config.name} on {machine}", flush=True)
    result = run_stage(stage, machine)
    accuracies[f"after {stage.name}, without the book"] = measure(result.checkpoint)
    print(last_line(accuracies), flush=True)
    return result


def run(folder: Path) -> None:
    """The whole quickstart; raises QuickstartError if a stage fails or the experience was not internalised."""
    started = time.monotonic()
    prepare_folder(folder)
    rows = read_pairs()
    machine = Machine.detect()
    print(f"{len(rows)} training pairs; work folder {folder}", flush=True)
    accuracies = {"before, with the book (the teacher)": measure(BASE_MODEL, with_experience=True)}
    print(last_line(accuracies), flush=True)
    accuracies["before, without the book"] = measure(BASE_MODEL)
    print(last_line(accuracies), flush=True)

    stage = make_stage("off-policy", BASE_MODEL, folder, machine)
    results = {stage.name: train_and_measure(stage, machine, accuracies)}
    tokens = count_tokens_per_step(rows, stage)
    stage = make_stage("on-policy", results[stage.name].checkpoint, folder, machine)
    last = results[stage.name] = train_and_measure(stage, machine, accuracies)
    learned = accuracies[f"after {stage.name}, without the book"]
    accuracies[f"after {stage.name}, with the book again"] = measure(last.checkpoint, with_experience=True)

    page = as_json(results, accuracies, tokens, machine=str(machine), seconds=round(time.monotonic() - started, 1))
    (folder / "summary.json").write_text(json.dumps(page, indent=2) + "\n", encoding="utf-8")
    print(f"\naccuracy on held-out questions\n{accuracy_table(accuracies)}\n\n{cost_table(results, tokens)}\n")
    print(f"done in {page['seconds']:.0f} s; figures: {folder / 'summary.json'}")
    print(f"checkpoint: {last.checkpoint}")
    print(f"off-policy on {MANY_GPUS} GPUs:\n  {many_gpu_command(folder)}")
    check_learned(learned)


def many_gpu_command(folder: Path) -> str:
    """The off-policy stage for a machine with more GPUs."""
    machine = Machine(on_gpu=True, processes=MANY_GPUS)
    stage = make_stage("off-policy", BASE_MODEL, folder, machine).with_flags(*MANY_GPU_FLAGS)
    return replace(stage, output=folder / f"off_policy_{MANY_GPUS}_gpus").shell_command(MANY_GPUS)


def check_learned(after: Accuracy) -> None:
    """Raises QuickstartError if a task is answered too rarely."""
    for task, share in after.items():
        if share < REQUIRED_ACCURACY:
            raise QuickstartError(
                f"the experience was not internalised: {share:.2f} of the held-out {task!r} questions are right "
                f"without it, and {REQUIRED_ACCURACY} are required."
            )


def main(
    output_dir: Annotated[
        Path, typer.Option("--output_dir", help="Work folder; an earlier quickstart's is emptied.")
    ] = REPO / "output" / "quickstart",
) -> None:
    """Distil a code book into a small model, off-policy and then on-policy, and measure it."""
    # A terminated quickstart ends its training run as well.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        run(output_dir.resolve())
    except QuickstartError as error:
        print(f"quickstart: error: {error}", file=sys.stderr)
        raise typer.Exit(1) from error


if __name__ == "__main__":
    typer.run(main)
