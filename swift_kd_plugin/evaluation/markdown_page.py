"""The report as Markdown: the table, how it was measured, and answers side by side."""

import re
from collections.abc import Sequence
from typing import Any

from swift_kd_plugin.data.row_report import Report, shorten
from swift_kd_plugin.data.rows import Place, Row, last_user_text
from swift_kd_plugin.evaluation.eval_metrics import Figure, Metric, Rightness
from swift_kd_plugin.evaluation.scoring import Scored, ScoreEntry
from swift_kd_plugin.generation.verifiers import normalise_answer

SHOWN_TEXT, SHORT = 1000, 12
MARKS = {True: "✓", False: "✗", None: ""}
# What Markdown or HTML would read as more than itself; an underscore within a word is no more than that.
_ESCAPES = str.maketrans({sign: f"&#{ord(sign)};" for sign in "\\`*[]<>|&$~#"} | {"\n": "<br>"})
_UNDERSCORE = re.compile(r"(?<![^\W_])_|_(?![^\W_])")


def as_markdown(page: dict[str, Any], entries: Sequence[ScoreEntry], notes: Report) -> str:
    """The page of a run.

    Args:
        page: the report as JSON.
        notes: its part `input`.
    """
    parts = ["# Evaluation", f"{page['dataset']}", markdown_table(entries), "## How it was measured", _how(page)]
    if lines := notes.lines():
        parts += ["## Rows", "\n".join(f"- {_text(line.strip())}" for line in lines)]
    if page["samples"]:
        parts += ["## Samples", *(_sample(sample) for sample in page["samples"])]
    return "\n\n".join(parts) + "\n"


def markdown_table(entries: Sequence[ScoreEntry]) -> str:
    """The figures of all cells, with their intervals."""
    has_tags = any(entry.tag is not None for entry in entries)
    heads = ["model", "experience", "mode", *(["tag"] if has_tags else []), "rows", *entries[0].figures]
    rows = []
    for entry in entries:
        tag = [_text(entry.tag) if entry.tag is not None else "all"] if has_tags else []
        figures = [shown_figure(figure, entry.rows) for figure in entry.figures.values()]
        cell = [entry.cell.model, entry.cell.view, shown_mode(entry.cell.mode), *tag, f"{entry.rows:,}"]
        rows.append([*cell, *figures, *_running(entry)])
    return _table([*heads, "tokens", "cut off", "seconds", "tokens/s"], rows)


def shown_mode(mode: str) -> str:
    return "as the row says" if mode == "row" else mode.replace("_", "-")


def choose_samples(
    scored: Sequence[Scored], rows: Sequence[Row], metrics: Sequence[Metric], count: int
) -> list[dict[str, Any]]:
    """The rows that are shown: first those on which cells disagree, in the order of the dataset."""
    judge = next((metric for metric in metrics if isinstance(metric, Rightness)), None)

    def agrees(number: int) -> bool:
        items = [(one, one.items[number]) for one in scored if number in one.items]
        outcomes = [one.is_right(judge, number) for one, _ in items]
        if judge is None:
            outcomes = [None if item.answer is None else normalise_answer(item.answer) for _, item in items]
        return len(set(outcomes)) < 2

    chosen = sorted(range(len(rows)), key=lambda number: (agrees(number), number))[:count]
    return [_shown(number, rows[number], scored, judge) for number in chosen]


def _shown(number: int, row: Row, scored: Sequence[Scored], judge: Metric | None) -> dict[str, Any]:
    items = [(one, one.items[number]) for one in scored if number in one.items]
    answers = [
        {
            **{"model": one.cell.model, "view": one.cell.view, "thinking": one.cell.mode},
            **{"right": one.is_right(judge, number), "response": item.response},
        }
        for one, item in items
    ]
    gold = items[0][1].gold if items else None
    return {"place": str(Place.of(row)), "question": last_user_text(row["messages"]), "gold": gold, "answers": answers}


def _sample(sample: dict[str, Any]) -> str:
    rows = [
        [
            *(answer["model"], answer["view"], shown_mode(answer["thinking"]), MARKS[answer["right"]]),
            "(not answered)" if answer["response"] is None else _text(answer["response"]),
        ]
        for answer in sample["answers"]
    ]
    gold = "(none)" if sample["gold"] is None else _text(sample["gold"])
    head = f"**{_text(sample['place'])}**\n\n{_text(sample['question'])}\n\nGold answer: {gold}"
    return f"{head}\n\n{_table(['model', 'experience', 'mode', '', 'response'], rows)}"


def _how(page: dict[str, Any]) -> str:
    lines = []
    for name, who in page["models"].items():
        adapters = f" with {', '.join(who['adapters'])}" if who["adapters"] else ""
        bits = f" in {who['bits']} bits" if who.get("bits") else ""
        lines.append(f"{name}: {who['model']}{adapters}{bits}, by {who['engine']}")
    for name, description in page["metrics"].items():
        lines.append(f"{name}: " + "; ".join(str(v) if k == "what" else f"{k} {v}" for k, v in description.items()))
    flags = page["flags"]
    sampling = ", ".join(
        f"{name} {flags[name]}" for name in ("temperature", "top_p", "top_k", "max_new_tokens", "seed")
    )
    lines += [f"intervals, {page['intervals']}", sampling]
    lines.append(", ".join(f"{name} {version}" for name, version in page["versions"].items()))
    return "\n".join(f"- {_text(line)}" for line in lines)


def _running(entry: ScoreEntry) -> list[str]:
    forms = {"mean_tokens": "{:,.1f}", "truncated": "{:.1%}", "seconds": "{:,.1f}", "tokens_per_second": "{:,.0f}"}
    values = {name: getattr(entry, name) for name in forms}
    return ["" if value is None else forms[name].format(value) for name, value in values.items()]


def shown_figure(figure: Figure | None, rows: int) -> str:
    if figure is None:
        return "-"
    count = "" if figure.n == rows else f", n {figure.n:,}"
    return f"{_number(figure.value)} ({_number(figure.low)} to {_number(figure.high)}{count})"


def _number(value: float) -> str:
    return f"{value:.3f}" if abs(value) < 10 else f"{value:.1f}" if abs(value) < 10_000 else f"{value:.2e}"


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table that can be read as it is, too; the last column may be long."""
    widths = [max(3, *map(len, column)) for column in zip(heads, *rows, strict=True)]
    widths[-1] = widths[-1] if widths[-1] <= SHORT else 3
    lines = [heads, ["-" * width for width in widths], *rows]
    cells = [[cell.ljust(width) for cell, width in zip(line, widths, strict=True)] for line in lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in cells)


def _text(text: str) -> str:
    return _UNDERSCORE.sub("&#95;", shorten(text, SHOWN_TEXT).translate(_ESCAPES))
