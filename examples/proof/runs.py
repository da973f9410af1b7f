"""One run of the proof: `swift-kd train` on the file of a method, and what its checkpoints can do afterwards."""

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections import defaultdict
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from examples.proof.measure import measure_checkpoints
from examples.proof.scenarios import SCENARIOS, Scenario, make_material
from examples.quickstart.evaluate import read_rows
from swift_kd_plugin.data.files import write_atomically

HERE = Path(__file__).resolve().parent
BASE_MODEL = HERE.parent / "base_model"
SWIFT_KD = Path(sys.executable).with_name("swift-kd")
GOLD, WRITTEN = "gold", "teacher"
METHODS = {"sft": GOLD, "seqkd": WRITTEN, "skd": WRITTEN, "gkd_jsd": WRITTEN, "gkd_rkl": WRITTEN}
BATCH = 32
CHECKPOINTS = 3
# One measurement at a time: two would only share the cores that training has.
_measuring = threading.Lock()
_training: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)


class ProofError(Exception):
    """Something that ends the proof. The message is one sentence."""


@dataclass(frozen=True)
class Run:
    """A method on a scenario's rows with a seed and a learning rate."""

    method: str
    scenario: Scenario
    seed: int
    rate: float

    @property
    def trained_as(self) -> str:
        """Its folder. Without a teacher it is the same run in every scenario with the same book."""
        alike = (one for one in SCENARIOS if one.letters == self.scenario.letters)
        scenario = next(alike) if METHODS[self.method] == GOLD else self.scenario
        return f"{scenario.slug}-{self.method}-seed{self.seed}-{self.rate:g}"


def rows_file(folder: Path, scenario: Scenario, seed: int, kind: str) -> Path:
    return folder / "rows" / f"{scenario.slug}-seed{seed}-{kind}.jsonl"


def call(command: list[str], log: Path) -> None:
    """Runs a command without a GPU. Raises ProofError if it fails."""
    with log.open("w", encoding="utf-8") as output:
        environment = {**os.environ, "SWIFT_KD_DEVICE": "cpu", "OMP_NUM_THREADS": "1"}
        code = subprocess.run(command, stdout=output, stderr=subprocess.STDOUT, env=environment).returncode
    if code != 0:
        raise ProofError(f"{' '.join(command[:3])} ended with exit code {code}; its log is {log}.")


def measured(run: Run, folder: Path, steps: int) -> dict[str, Any]:
    """A run's figures; what an earlier proof trained and measured is read."""
    trained = folder / run.trained_as
    result = trained / f"{run.scenario.slug}.json"
    if not result.is_file():
        with _training[run.trained_as]:
            seconds = train(run, folder, steps)
        with _measuring:
            chosen, curve, last = measure_checkpoints(trained, make_material(run.scenario, run.seed))
        page = {
            "method": run.method,
            "scenario": run.scenario.name,
            "seed": run.seed,
            "rate": run.rate,
            "seconds": seconds,
            "tokens": round(count_tokens_per_step(run, folder) * chosen.step),
            "curve": [asdict(point) for point in curve],
            "chosen": asdict(chosen),
            "last": last,
        }
        write_atomically(result, json.dumps(page, indent=1) + "\n")
    return json.loads(result.read_text(encoding="utf-8"))


def train(run: Run, folder: Path, steps: int) -> float:
    """Trains unless it was done; returns the seconds that it took."""
    trained = folder / run.trained_as
    done = trained / "trained.json"
    if not done.is_file():
        shutil.rmtree(trained, ignore_errors=True)
        started = time.monotonic()
        call(command_of(run, folder, steps), folder / f"{run.trained_as}.log")
        write_atomically(done, json.dumps({"seconds": round(time.monotonic() - started, 1)}) + "\n")
    return json.loads(done.read_text(encoding="utf-8"))["seconds"]


def command_of(run: Run, folder: Path, steps: int) -> list[str]:
    """The training command, as it is typed into a shell."""
    keys = {
        "model": BASE_MODEL,
        "teacher_model": BASE_MODEL,
        "dataset": rows_file(folder, run.scenario, run.seed, METHODS[run.method]),
        "lr": f"{run.rate:g}",
        "min_lr": f"{run.rate / 10:g}",
        "seed": run.seed + 1,
        "train_iters": steps,
        "save_steps": max(1, steps // CHECKPOINTS),
        "output_dir": folder / run.trained_as,
    }
    file = HERE / f"{run.method}.yaml"
    return [str(SWIFT_KD), "train", str(file), *(f"{key}={value}" for key, value in keys.items())]


def count_tokens_per_step(run: Run, folder: Path) -> float:
    """Tokens that the student trains through in a step: its prompts and the responses of the rows."""
    rows = read_rows(rows_file(folder, run.scenario, run.seed, METHODS[run.method]))
    tokenizer = AutoTokenizer.from_pretrained(BASE_MODEL)
    texts = tokenizer.apply_chat_template([row["messages"] for row in rows], tokenize=False)
    return sum(map(len, tokenizer(texts)["input_ids"])) / len(rows) * BATCH
