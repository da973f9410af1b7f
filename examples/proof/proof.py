"""Proves, from rows to table, that distillation internalises an experience (`make proof`, 40 minutes on two cores).

python -m examples.proof.proof [--output_dir output/proof]

Every method trains with `megatron rlhf`, on every teacher and seed. The validation questions choose the learning rate
(on one teacher's first seed) and the checkpoint of each run; the test questions are asked once. A proof
that was interrupted goes on with what is missing.
"""

import json
import multiprocessing
import signal
import sys
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from datetime import date
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from tqdm import tqdm

from examples.proof.measure import Measured, as_taught, asked, mean
from examples.proof.page import missed_targets, write_page
from examples.proof.plain import Settings
from examples.proof.plain import train as train_plainly
from examples.proof.runs import (
    BASE_MODEL,
    BATCH,
    GOLD,
    METHODS,
    SWIFT_KD,
    WRITTEN,
    ProofError,
    Run,
    call,
    measured,
    rows_file,
)
from examples.proof.scenarios import SCENARIOS, SEEDS, Material, Row, Scenario, make_material, to_train_on
from examples.quickstart.evaluate import load_checkpoint, read_rows
from swift_kd_plugin.data.files import write_atomically
from swift_kd_plugin.evaluation.eval_report import versions

REPO = Path(__file__).resolve().parents[2]
RATES = (5e-4, 1e-3)
STEPS = 150
LONGEST_RESPONSE = 32
Page = dict[str, Any]


def write_rows(file: Path, rows: Iterable[Row]) -> None:
    write_atomically(file, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def let_the_teacher_write(folder: Path, materials: dict[tuple[Scenario, int], Material]) -> None:
    """Rows with gold answers and rows with the teacher's, for every scenario and seed; one `swift-kd generate`."""
    prompts = folder / "prompts.jsonl"
    names = {f"{scenario.name} {seed}": (scenario, seed) for scenario, seed in materials}
    asked_rows = []
    for (scenario, seed), material in materials.items():
        write_rows(rows_file(folder, scenario, seed, GOLD), map(to_train_on, material.train))
        asked_rows += [{**to_train_on(row), "material": f"{scenario.name} {seed}"} for row in material.train]
    write_rows(prompts, asked_rows)
    command = [str(SWIFT_KD), "generate", "--model", str(BASE_MODEL), "--model_type", "qwen3", "--template", "qwen3"]
    command += ["--dataset", str(prompts), "--temperature", "0", "--enforce_eager"]
    command += ["--gpu_memory_utilization", "0.1", "--max_model_len", "256", "--max_new_tokens", str(LONGEST_RESPONSE)]
    call([*command, "-o", str(folder / "generated")], folder / "generate.log")
    written: dict[str, list[Row]] = {name: [] for name in names}
    for row in read_rows(folder / "generated" / "responses.jsonl"):
        written[row["material"]].append(to_train_on(row))
    for name, (scenario, seed) in names.items():
        write_rows(rows_file(folder, scenario, seed, WRITTEN), written[name])


def train_all(runs: list[Run], folder: Path, steps: int, lanes: int) -> list[Page]:
    """Results in the order of the runs; `lanes` of them at a time."""
    with ThreadPoolExecutor(lanes) as pool, tqdm(total=len(runs), desc="runs", unit="run") as bar:

        def one(run: Run) -> Page:
            page = measured(run, folder, steps)
            bar.update()
            name = f"{run.method}, {run.scenario.name}, seed {run.seed}, rate {run.rate:g}"
            bar.write(f"{name}: {mean(page['chosen']['test']):.3f} without the book, {page['seconds']:.0f} s")
            return page

        return list(pool.map(one, runs))


def choose_rates(pages: list[Page]) -> dict[str, float]:
    """The rate of each method whose chosen checkpoint has the most merit."""

    def merit(page: Page) -> tuple[bool, float, float, int]:
        return Measured(**page["chosen"]).merit

    methods = dict.fromkeys(page["method"] for page in pages)
    return {name: max((p for p in pages if p["method"] == name), key=merit)["rate"] for name in methods}


def choose_by(scenarios: list[Scenario]) -> Scenario:
    """The rate is chosen where most is to be learned."""
    return max(scenarios, key=lambda scenario: scenario.letters)


def measure_teachers(materials: dict[tuple[Scenario, int], Material]) -> list[Page]:
    """What the base model can do: before, without the book; as the teacher, with its book; and with other books."""
    model, tokenizer = load_checkpoint(BASE_MODEL)
    pages = []
    for (scenario, seed), material in materials.items():
        as_teacher = {"with_experience": True, "thinking": scenario.thinks}
        shares = {
            "before": asked(model, tokenizer, material.test),
            "test": asked(model, tokenizer, material.test, **as_teacher),
            "taught": asked(model, tokenizer, as_taught(material.test), **as_teacher),
            "others": asked(model, tokenizer, material.others_test),
        }
        pages.append({"scenario": scenario.name, "seed": seed, **shares})
    return pages


def check_with_plain_pytorch(runs: list[Run], folder: Path, steps: int, lanes: int) -> list[Page]:
    """The same runs without Megatron, measured after the same number of steps."""
    workers = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(lanes, workers) as pool, tqdm(total=len(runs), desc="plain PyTorch", unit="run") as bar:
        started = [pool.submit(repeat_plainly, run, folder, steps) for run in runs]
        for one in started:
            one.add_done_callback(lambda _: bar.update())
        return [one.result() for one in started]


def repeat_plainly(run: Run, folder: Path, steps: int) -> Page:
    """A run in plain PyTorch, on one thread."""
    torch.set_num_threads(1)
    model, tokenizer = load_checkpoint(BASE_MODEL)
    rows = read_rows(rows_file(folder, run.scenario, run.seed, METHODS[run.method]))
    settings = Settings(BATCH, steps, run.rate, warmup=0.05, least=run.rate / 10, seed=run.seed)
    *_, (_, student) = train_plainly(model, tokenizer, rows, run.method, settings)
    test = asked(student.eval(), tokenizer, make_material(run.scenario, run.seed).test)
    return {"method": run.method, "scenario": run.scenario.name, "seed": run.seed, "test": test}


def prove(
    folder: Path, scenarios: list[Scenario], seeds: list[int], methods: list[str], steps: int, lanes: int
) -> Page:
    """All of it; returns what the page shows."""
    materials = {(scenario, seed): make_material(scenario, seed) for scenario in scenarios for seed in seeds}
    let_the_teacher_write(folder, materials)
    teachers = measure_teachers(materials)
    tries = [Run(method, choose_by(scenarios), seeds[0], rate) for method in methods for rate in RATES]
    tried = train_all(tries, folder, steps, lanes)
    rates = choose_rates(tried)
    runs = [Run(m, scenario, seed, rates[m]) for scenario in scenarios for seed in seeds for m in methods]
    results = train_all(runs, folder, steps, lanes)
    plain = check_with_plain_pytorch([run for run in runs if run.scenario is scenarios[0]], folder, steps, lanes)
    return {
        "steps": steps,
        "rates": rates,
        "tried": tried,
        "teachers": teachers,
        "results": results,
        "plain": plain,
        "date": date.today().isoformat(),
        "versions": versions(),
    }


def main(
    output_dir: Annotated[Path, typer.Option("--output_dir", help="Work folder; started again, it goes on.")] = REPO
    / "output"
    / "proof",
    scenario: Annotated[list[str] | None, typer.Option(help="Only these teachers.")] = None,
    seed: Annotated[list[int] | None, typer.Option(help="Only these seeds.")] = None,
    method: Annotated[list[str] | None, typer.Option(help="Only these methods.")] = None,
    steps: Annotated[int, typer.Option(help="Optimizer steps of a run.")] = STEPS,
    lanes: Annotated[int, typer.Option(help="Runs at a time; each takes one core.")] = 2,
) -> None:
    """Distil books into a small model by every method, and write table and plot."""
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    chosen = [one for one in SCENARIOS if not scenario or one.name in scenario]
    folder = output_dir.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    try:
        page = prove(folder, chosen, seed or list(SEEDS), method or list(METHODS), steps, lanes)
    except ProofError as error:
        print(f"proof: error: {error}", file=sys.stderr)
        raise typer.Exit(1) from error
    print(write_page(page, folder))
    missed = missed_targets(page)
    for sentence in missed:
        print(f"proof: not met: {sentence}", file=sys.stderr)
    raise typer.Exit(1 if missed else 0)


if __name__ == "__main__":
    typer.run(main)
