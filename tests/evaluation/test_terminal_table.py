"""The table of an evaluation on a screen, and names in its page."""

import re

import pytest

from swift_kd_plugin.evaluation.cells import Cell
from swift_kd_plugin.evaluation.eval_metrics import Figure
from swift_kd_plugin.evaluation.markdown_page import _text, markdown_table
from swift_kd_plugin.evaluation.scoring import ScoreEntry
from swift_kd_plugin.evaluation.terminal_table import terminal_table

METRICS = ("exact", "rouge1", "rouge2", "rougeL", "ppl", "nll_per_char")


def entries(mode: str = "row", truncated: float = 0.0) -> list[ScoreEntry]:
    """Two models, two views, three tags."""
    figures = {name: Figure(0.607, 0.52, 0.69, 122) for name in METRICS}
    return [
        ScoreEntry(Cell(model, view, mode), tag, 122, 122, figures, 12.0, truncated, 3.0, 500.0)
        for model in ("base_model", "student")
        for view in ("without", "with")
        for tag in (None, "say", "加法")
    ]


@pytest.mark.parametrize("width", [80, 100, 160, 400])
def test_no_line_is_longer_than_the_screen(width):
    table = terminal_table(entries("thinking", 0.1), width)
    assert max(map(len, table.splitlines())) <= width
    assert sorted(re.findall(r"exact|rouge\w|ppl|nll_per_char|cut off", table)) == sorted([*METRICS, "cut off"])
    blocks = table.split("\n\n")
    assert all(block.startswith("model       experience  mode      tag   rows  ") for block in blocks)
    assert {len(block.splitlines()) for block in blocks} == {13}
    assert len(blocks) == {80: 6, 100: 4, 160: 2, 400: 1}[width]


def test_what_is_alike_everywhere_is_left_out_on_the_screen_and_readable_on_the_page():
    table = terminal_table(entries(), 100)
    assert "mode" not in table.replace("model", "")
    assert "cut off" not in table
    page = markdown_table(entries())
    assert "| as the row says |" in page
    assert "| row " not in page.replace("| rows", "")


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("base_model: nll_per_char", "base_model: nll_per_char"),
        ("_a_ __init__", "&#95;a&#95; &#95;&#95;init&#95;&#95;"),
        ("*a* `b` <i>", "&#42;a&#42; &#96;b&#96; &#60;i&#62;"),
    ],
)
def test_a_name_stays_readable_and_nothing_becomes_markup(text, written):
    assert _text(text) == written
