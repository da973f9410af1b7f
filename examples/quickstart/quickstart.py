"""Internalises an experience: a small model learns a code book that stood in its teacher's system prompt.

python -m examples.quickstart.quickstart    # about 2 minutes on two CPU cores; GPUs are used if there are any

It asks the held-out questions, runs `swift-kd train examples/quickstart/run.yaml` (off-policy, then on-policy), asks
again, and leaves summary.json and the checkpoints in its output folder.
"""

import json
import os
import shutil
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from omegaconf import DictConfig
from transformers import AutoTokenizer

from examples.quickstart.evaluate import TEST_FILE, accuracy, load_checkpoint, read_rows
from examples.quickstart.summary import Accuracy, Page, accuracy_table, cost_table, last_line, with_costs
from swift_kd_plugin.data.build import Builder
from swift_kd_plugin.data.data_yaml import read_data_yaml
from swift_kd_plugin.data.row_store import to_rows
from swift_kd_plugin.errors import KDError
from swift_kd_plugin.recipes.process import run_process
from swift_kd_plugin.recipes.shell_command import NPROC, Command
from swift_kd_plugin.recipes.source import read_recipe
from swift_kd_plugin.recipes.summary import SUMMARY, write_summary

HERE = Path(__file__).resolve().parent
REPO = HERE.parents[1]
RECIPE = HERE / "run.yaml"
DATA_FILE = HERE.parent / "data" / "data.yaml"
BASE_MODEL = HERE.parent / "base_model"
MARKER = ".quickstart"
REQUIRED_ACCURACY = 0.9
MANY_GPUS = 8
MANY_GPU_KEYS = {"micro_batch_size": 8}  # TP=2 leaves four data-parallel ranks, and 4 x 8 is the batch


@dataclass(frozen=True)
class Machine:
    """Where the stages run: on `processes` GPUs, or in as many CPU processes."""

    on_gpu: bool
    processes: int

    @classmethod
    def detect(cls) -> "Machine":
        """Up to two GPUs if there are any and SWIFT_KD_DEVICE does not say cpu; two CPU processes otherwise."""
        if os.environ.get("SWIFT_KD_DEVICE") != "cpu" and torch.cuda.is_available():
            return cls(on_gpu=True, processes=min(2, torch.cuda.device_count()))
        return cls(on_gpu=False, processes=2)

    def __str__(self) -> str:
        return f"{self.processes} {'GPU(s)' if self.on_gpu else 'CPU processes'}"


def recipe() -> DictConfig:
    """What the recipe says about both stages."""
    return read_recipe(RECIPE).config


def prepare_folder(folder: Path) -> None:
    """Empties the output folder of an earlier quickstart; any other folder with files in it is refused."""
    if folder.exists() and any(folder.iterdir()):
        if not (folder / MARKER).is_file():
            raise KDError(f"{folder} holds files that are not a quickstart's; choose another --output_dir.")
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MARKER).touch()


def read_pairs() -> list[dict[str, Any]]:
    """The training rows with the two views, as the training commands will see them."""
    with tempfile.TemporaryDirectory() as folder:
        dataset, _ = Builder(Path(folder), strict=True).dataset(read_data_yaml(DATA_FILE)[recipe().dataset])
        return list(to_rows(dataset))


def training_command(machine: Machine, folder: Path, **keys: object) -> Command:
    """`swift-kd train` on the recipe, with no more tensor parallelism than there are processes."""
    if recipe().tensor_model_parallel_size > machine.processes:
        keys["tensor_model_parallel_size"] = machine.processes
    words = [f"{key}={value}" for key, value in {**keys, "output_dir": folder}.items()]
    tiny = () if machine.on_gpu else ("--tiny",)
    return Command(("swift-kd", "train", str(RECIPE), *words, *tiny), {NPROC: str(machine.processes)})


def train(machine: Machine, folder: Path) -> Page:
    """Runs both stages; returns what they came to. If one fails, the quickstart ends with its exit code."""
    command = training_command(machine, folder)
    print(f"\non {machine}: {command.shell()}", flush=True)
    if code := run_process(command):  # it has said why
        raise typer.Exit(code)
    return json.loads((folder / SUMMARY).read_text(encoding="utf-8"))


def measure(checkpoint: str | Path, *, with_experience: bool = False) -> Accuracy:
    """Held-out accuracy of a checkpoint, each task rounded to four digits."""
    model, tokenizer = load_checkpoint(Path(checkpoint))
    result = accuracy(model, tokenizer, read_rows(TEST_FILE), with_experience=with_experience)
    return {task: round(share, 4) for task, share in result.items()}


def count_tokens_per_step(rows: list[dict[str, Any]]) -> float:
    """Tokens that the student trains through in a step: its prompts and the responses given in the data."""
    tokenizer = AutoTokenizer.from_pretrained(BASE_MODEL)
    texts = tokenizer.apply_chat_template([row["messages"] for row in rows], tokenize=False)
    tokens = sum(map(len, tokenizer(texts)["input_ids"]))
    return tokens / len(rows) * recipe().global_batch_size


def distil(folder: Path) -> None:
    """The whole quickstart; raises KDError if it cannot begin or the experience was not internalised."""
    started = time.monotonic()
    prepare_folder(folder)
    rows = read_pairs()
    machine = Machine.detect()
    accuracies: dict[str, Accuracy] = {}

    def ask(moment: str, checkpoint: str | Path, **view: bool) -> None:
        accuracies[moment] = measure(checkpoint, **view)
        print(last_line(accuracies), flush=True)

    print(f"{len(rows)} training pairs; work folder {folder}", flush=True)
    ask("before, with the book (the teacher)", BASE_MODEL, with_experience=True)
    ask("before, without the book", BASE_MODEL)
    page = train(machine, folder)
    for stage in page["stages"]:
        after = f"after {stage['stage'].replace('_', '-')}"
        ask(f"{after}, without the book", stage["best"]["folder"])
    learned = accuracies[f"{after}, without the book"]
    ask(f"{after}, with the book again", page["best"], with_experience=True)

    page = with_costs(page, folder, count_tokens_per_step(rows))
    page |= {"accuracy": accuracies, "machine": str(machine), "seconds": round(time.monotonic() - started, 1)}
    write_summary(page, folder)
    print(f"\naccuracy on held-out questions\n{accuracy_table(accuracies)}\n\n{cost_table(page['stages'])}\n")
    print(f"done in {page['seconds']:.0f} s; figures: {folder / SUMMARY}")
    print(f"checkpoint: {page['best']}")
    print(f"on {MANY_GPUS} GPUs:\n  {many_gpu_command(folder).shell()}")
    check_learned(learned)


def many_gpu_command(folder: Path) -> Command:
    """The same for a machine with more GPUs."""
    output = folder.with_name(f"{folder.name}_{MANY_GPUS}_gpus")
    return training_command(Machine(on_gpu=True, processes=MANY_GPUS), output, **MANY_GPU_KEYS)


def check_learned(after: Accuracy) -> None:
    """Raises KDError if a task is answered too rarely."""
    for task, share in after.items():
        if share < REQUIRED_ACCURACY:
            raise KDError(
                f"the experience was not internalised: {share:.2f} of the held-out {task!r} questions are right "
                f"without it, and {REQUIRED_ACCURACY} are required."
            )


def main(
    output_dir: Annotated[
        Path, typer.Option("--output_dir", help="Work folder; an earlier quickstart's is emptied.")
    ] = REPO / "output" / "quickstart",
) -> None:
    """Distil a code book into a small model, off-policy and then on-policy, and measure it."""
    try:
        distil(output_dir.resolve())
    except KDError as error:
        print(f"quickstart: error: {error}", file=sys.stderr)
        raise typer.Exit(1) from error


if __name__ == "__main__":
    typer.run(main)
