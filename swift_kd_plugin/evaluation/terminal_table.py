"""The figures of an evaluation for a terminal: in blocks of as many columns as its width has room for."""

from collections.abc import Sequence

from rich.cells import cell_len

from swift_kd_plugin.evaluation.markdown_page import shown_figure, shown_mode
from swift_kd_plugin.evaluation.scoring import ScoreEntry

GAP = "  "
Column = list[str]  # its head, and a cell of each entry


def terminal_table(entries: Sequence[ScoreEntry], width: int) -> str:
    """The table, whose lines are not longer than `width` characters where one figure has room.

    What is alike in every cell, a mode that each row says itself and answers of which none was cut off, is left out.
    """
    names = _names(entries)
    blocks: list[list[Column]] = []
    for column in _figures(entries):
        if not blocks or _width([*names, *blocks[-1], column]) > width:
            blocks.append([])
        blocks[-1].append(column)
    return "\n\n".join(_lines([*names, *block]) for block in blocks)


def _names(entries: Sequence[ScoreEntry]) -> list[Column]:
    """The columns that say which cell a line is."""
    cells = [entry.cell for entry in entries]
    columns = [["model", *(cell.model for cell in cells)], ["experience", *(cell.view for cell in cells)]]
    if any(cell.mode != "row" for cell in cells):
        columns.append(["mode", *(shown_mode(cell.mode) for cell in cells)])
    if any(entry.tag is not None for entry in entries):
        columns.append(["tag", *("all" if entry.tag is None else " ".join(entry.tag.split()) for entry in entries)])
    return [*columns, ["rows", *(f"{entry.rows:,}" for entry in entries)]]


def _figures(entries: Sequence[ScoreEntry]) -> list[Column]:
    columns = [
        [name, *(shown_figure(entry.figures[name], entry.rows) for entry in entries)] for name in entries[0].figures
    ]
    if any(entry.truncated for entry in entries):
        columns.append(["cut off", *(f"{entry.truncated or 0:.1%}" for entry in entries)])
    return columns


def _width(columns: Sequence[Column]) -> int:
    return sum(max(map(cell_len, column)) for column in columns) + len(GAP) * (len(columns) - 1)


def _lines(columns: Sequence[Column]) -> str:
    widths = [max(map(cell_len, column)) for column in columns]
    lines = zip(*columns, strict=True)
    return "\n".join(
        GAP.join(cell + " " * (width - cell_len(cell)) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )
