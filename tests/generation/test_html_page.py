"""The page of a generation run: its figures."""

import pytest
from matplotlib.figure import Figure

from swift_kd_plugin.generation.html_page import _draw_bars


@pytest.mark.parametrize("share", [0.0, 12.5, 100.0])
def test_shares_stand_on_an_axis_of_the_whole(share):
    axes = Figure().add_subplot()
    _draw_bars(axes, {"rows.jsonl": share}, "red", "{:.1f}", 100)
    assert axes.get_xlim() == pytest.approx((0, 115))


def test_counts_stand_on_an_axis_from_zero():
    axes = Figure().add_subplot()
    _draw_bars(axes, {"empty": 4, "long": 20}, "red", "{:,.0f}")
    assert axes.get_xlim() == pytest.approx((0, 23))
