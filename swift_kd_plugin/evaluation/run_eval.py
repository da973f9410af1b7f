"""What `swift-kd eval` does: asks every model, scores what it answers, and writes the report."""

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from datasets import Dataset

from swift_kd_plugin.data.export import write_jsonl
from swift_kd_plugin.data.files import locked, write_atomically
from swift_kd_plugin.data.row_report import Report
from swift_kd_plugin.data.row_store import to_rows
from swift_kd_plugin.data.rows import Row
from swift_kd_plugin.evaluation.cells import EvalView, open_views
from swift_kd_plugin.evaluation.eval_metrics import Metric, Perplexity, find_metrics
from swift_kd_plugin.evaluation.eval_report import as_csv, report_as_json
from swift_kd_plugin.evaluation.markdown_page import as_markdown, choose_samples
from swift_kd_plugin.evaluation.models import read_models
from swift_kd_plugin.evaluation.run_cells import CELLS, CellResult, EvalModel, Measurement
from swift_kd_plugin.evaluation.scoring import answers, check_gold, score, table, tags_of
from swift_kd_plugin.evaluation.terminal_table import terminal_table
from swift_kd_plugin.generation.engines import Sampling
from swift_kd_plugin.generation.model_folder import check_model_folder
from swift_kd_plugin.generation.model_setup import ModelOptions, describe_rows, open_rows, say_mode
from swift_kd_plugin.generation.shard_store import MANIFEST, put_aside, read_manifest, refuse_another, refuse_unknown
from swift_kd_plugin.generation.verifiers import Gold

JSON, CSV, MARKDOWN, ANSWERS = "report.json", "report.csv", "report.md", "answers.jsonl"
SCREEN = 120  # characters of a line where there is no terminal
REPORT_FILES = (CELLS, MANIFEST, JSON, CSV, MARKDOWN, ANSWERS)


@dataclass(frozen=True)
class Asked:
    """What is asked, read and checked before a model is loaded."""

    dataset: Dataset
    digest: str
    rows: list[Row]
    golds: list[str | None]
    views: list[EvalView]
    tags: dict[str, set[int]]
    metrics: list[Metric]


def run_evaluation(options: ModelOptions, opener: Callable[[str], Any]) -> tuple[str, Report]:
    """The whole command.

    Args:
        options: the flags of the command by name; `swift_kd_plugin.cli.eval` says what they mean.
        opener: loads a dataset by an id that is no file.

    Returns:
        The table for a terminal; and what became of the input rows, and which were not measured.

    Raises:
        KDError: anything that the user can mend.
    """
    models = read_models(options)
    for model_options in models.values():
        check_model_folder(model_options.model)
    gold = Gold(options.gold, options.pattern)
    metrics = find_metrics(options, gold)
    sampling = Sampling(
        temperature=options.temperature,
        top_p=options.top_p,
        top_k=options.top_k,
        max_new_tokens=options.max_new_tokens,
        stop=tuple(options.stop_words or ()),
    )
    dataset, digest, notes = open_rows(options, opener)
    inputs = check(options, dataset, digest, gold, metrics, notes)
    subjects = [EvalModel.find(name, model_options) for name, model_options in models.items()]
    any(say_mode(subject.template, dataset, options.thinking, notes) for subject in subjects)  # once
    with locked(options.output):
        claim(options, {"command": "swift-kd eval", **describe_rows(dataset, digest)})
        likelihoods = any(isinstance(metric, Perplexity) for metric in metrics)
        measurement = Measurement(
            options.output, inputs.views, digest, options.thinking, options.seed, sampling, gold, likelihoods
        )
        cells = [cell for subject in subjects for cell in measurement.measure(subject)]
        return write_report(options, inputs, cells, notes), notes


def check(
    options: ModelOptions, dataset: Dataset, digest: str, gold: Gold, metrics: list[Metric], notes: Report
) -> Asked:
    """Everything that can be refused without a model. Raises KDError."""
    rows = list(to_rows(dataset))
    golds = check_gold(rows, metrics, gold, notes)
    views = open_views(dataset, rows, options.view or (), notes)
    return Asked(dataset, digest, rows, golds, views, tags_of(rows, options.tag_column), metrics)


def claim(options: ModelOptions, identity: dict[str, Any]) -> None:
    """Makes a folder this run's. Raises KDError if it holds another run."""
    folder, manifest = options.output, options.output / MANIFEST
    if options.overwrite:
        put_aside(folder, REPORT_FILES)
    if manifest.exists():
        refuse_another(folder, read_manifest(manifest), identity)
    else:
        refuse_unknown(folder, REPORT_FILES)
    write_atomically(manifest, json.dumps(identity, ensure_ascii=False, indent=2) + "\n")


def write_report(options: ModelOptions, asked: Asked, cells: Sequence[CellResult], notes: Report) -> str:
    """Scores the cells and writes the report's files; returns the table for a terminal."""
    scored = [score(cell, asked.rows, asked.golds, asked.metrics, notes) for cell in cells]
    entries = table(scored, asked.metrics, options.seed, asked.tags)
    samples = choose_samples(scored, asked.rows, asked.metrics, options.samples)
    description = describe_rows(asked.dataset, asked.digest)["dataset"]
    page = report_as_json(vars(options), description, scored, asked.metrics, entries, samples, notes)
    folder = options.output
    write_jsonl(folder / ANSWERS, answers(scored, asked.metrics, asked.rows))
    write_atomically(folder / CSV, as_csv(entries))
    write_atomically(folder / MARKDOWN, as_markdown(page, entries, notes))
    write_atomically(folder / JSON, json.dumps(page, ensure_ascii=False, indent=2) + "\n")
    return terminal_table(entries, shutil.get_terminal_size((SCREEN, 0)).columns)
