"""From what was measured to figures: of each cell, and of each value of a column."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from tqdm import tqdm

from swift_kd_plugin.data.row_report import Report
from swift_kd_plugin.data.rows import Place, Row, text_of
from swift_kd_plugin.data.think_block import answer_of
from swift_kd_plugin.errors import KDError
from swift_kd_plugin.evaluation.cells import Cell
from swift_kd_plugin.evaluation.eval_metrics import RIGHT, Figure, Item, Metric
from swift_kd_plugin.evaluation.likelihood import Likelihood
from swift_kd_plugin.evaluation.run_cells import CellResult
from swift_kd_plugin.generation.judging import Sample
from swift_kd_plugin.generation.verifiers import Gold


@dataclass(frozen=True)
class ScoreEntry:
    """Figures of a cell, or of its rows with one tag.

    Args:
        tag: None for all rows.
        rows: how many there are.
        answered: how many of them have an answer.
        mean_tokens: of the answers, thoughts and end tokens included.
        truncated: share of the answers that were cut off.
        seconds: of the whole cell; None for a tag.
    """

    cell: Cell
    tag: str | None
    rows: int
    answered: int
    figures: dict[str, Figure | None]
    mean_tokens: float | None
    truncated: float | None
    seconds: float | None = None
    tokens_per_second: float | None = None


@dataclass
class Scored:
    """A cell with its items, by number of the row, and what each adds to the sums of each metric."""

    measured: CellResult
    items: dict[int, Item]
    samples: dict[int, Sample]
    added: dict[str, dict[int, dict[str, Sequence[float]]]] = field(default_factory=dict)

    @property
    def cell(self) -> Cell:
        return self.measured.cell

    def is_right(self, metric: Metric | None, number: int) -> bool | None:
        """Whether a row is answered rightly; None if that is not known."""
        values = None if metric is None else self.added[metric.name].get(number)
        return None if values is None else values[metric.name][0] >= RIGHT

    def entry(self, metrics: Sequence[Metric], seed: int, tag: str | None, numbers: set[int]) -> ScoreEntry:
        """The figures of some rows."""
        samples = [sample for number, sample in self.samples.items() if number in numbers]
        figures: dict[str, Figure | None] = {}
        for metric in metrics:
            rows = [added for number, added in self.added[metric.name].items() if number in numbers]
            for name, quantity in metric.quantities.items():
                figures[name] = quantity.figure([added[name] for added in rows], seed)
        tokens = sum(sample.tokens for sample in samples)
        cut = sum(sample.finish_reason == "length" for sample in samples)
        count, seconds = len(samples), self.measured.seconds if tag is None else None
        return ScoreEntry(
            cell=self.cell,
            tag=tag,
            rows=len(numbers & self.items.keys()),
            answered=count,
            figures=figures,
            mean_tokens=tokens / count if count else None,
            truncated=cut / count if count else None,
            seconds=seconds,
            tokens_per_second=tokens / seconds if seconds else None,
        )


def check_gold(rows: Sequence[Row], metrics: Sequence[Metric], gold: Gold, notes: Report) -> list[str | None]:
    """The gold answers; rows without one, or with one that a metric cannot use, are noted.

    Raises:
        KDError: a metric has no row that it can measure.
    """
    golds = [gold.of(row) for row in rows]
    pairs = [(row, answer) for row, answer in zip(rows, golds, strict=True) if answer is not None]
    needing = [metric for metric in metrics if metric.needs_gold]
    if needing:
        missing = "response" if gold.column is None else f"column {gold.column!r}"
        if not pairs:
            raise KDError(
                f"--metric {needing[0].name} compares with a gold answer, and the rows have no {missing}; give --gold "
                "COLUMN with the column that has it."
            )
        for row, answer in zip(rows, golds, strict=True):
            if answer is None:
                notes.note("no gold answer", f"it has no {missing}", Place.of(row))
    for metric in needing:
        strange = [row for row, answer in pairs if not metric.can_use(answer)]
        if len(strange) == len(pairs):
            raise KDError(f"--metric {metric.name}: no gold answer has a number; leave the metric out.")
        for row in strange:
            notes.note("gold answer without a number", f"--metric {metric.name} leaves it out", Place.of(row))
    for metric in metrics:
        metric.prepare([answer for _, answer in pairs])
    return golds


def score(
    measured: CellResult, rows: Sequence[Row], golds: Sequence[str | None], metrics: Sequence[Metric], notes: Report
) -> Scored:
    """Scores every row of a cell. Raises KDError if a user's function fails."""
    items, samples = {}, {}
    for number, record in zip(measured.numbers, measured.records, strict=True):
        result = measured.likelihoods.get(number)
        likelihood = result if isinstance(result, Likelihood) else None
        if isinstance(result, str):
            notes.note("gold response is not measured", f"{measured.cell}: {result}", Place.of(rows[number]))
        if record.samples:
            (sample,) = record.samples
            samples[number] = sample
            items[number] = Item(number, rows[number], golds[number], sample.text, answer_of(sample.text), likelihood)
        else:
            notes.note("prompt is not answered", f"{measured.cell}: {record.refused}", Place.of(rows[number]))
            items[number] = Item(number, rows[number], golds[number], likelihood=likelihood)
    scored = Scored(measured, items, samples)
    for metric in metrics:
        shown = tqdm(items.values(), f"{measured.cell}: {metric.name}", unit="row", disable=None, leave=False)
        scored.added[metric.name] = {item.number: added for item in shown if (added := metric.rows(item)) is not None}
    return scored


def tags_of(rows: Sequence[Row], column: str | None) -> dict[str, set[int]]:
    """Numbers of the rows by the value that they have in a column. Raises KDError if no row has the column."""
    tags: dict[str, set[int]] = {}
    for number, row in enumerate(rows):
        value = None if column is None else row.get("columns", {}).get(column)
        if value is not None:
            tags.setdefault(text_of(value), set()).add(number)
    if column is not None and not tags:
        raise KDError(f"--tag_column {column}: no row has such a column.")
    return tags


def table(
    scored: Sequence[Scored], metrics: Sequence[Metric], seed: int, tags: dict[str, set[int]]
) -> list[ScoreEntry]:
    """The entries of all cells, and behind each cell those of its tags."""
    entries = []
    for one in scored:
        entries.append(one.entry(metrics, seed, None, set(one.items)))
        entries += [one.entry(metrics, seed, tag, numbers) for tag, numbers in tags.items()]
    return entries


def answers(scored: Sequence[Scored], metrics: Sequence[Metric], rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Lines of answers.jsonl: the rows of each cell with response and scores."""
    lines = []
    for one in scored:
        for number, item in one.items.items():
            place, sample = Place.of(rows[number]), one.samples.get(number)
            scores = {}
            for metric in metrics:
                if (added := one.added[metric.name].get(number)) is not None:
                    scores |= metric.scores(added)
            lines.append(
                {
                    **{"source": place.source, "row": place.row, "id": place.id},
                    **{"model": one.cell.model, "view": one.cell.view, "thinking": one.cell.mode},
                    **{"gold": item.gold, "response": item.response},
                    **({} if sample is None else {"tokens": sample.tokens, "finish_reason": sample.finish_reason}),
                    "scores": scores,
                }
            )
    return lines
