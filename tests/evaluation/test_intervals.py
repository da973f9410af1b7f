"""Intervals against published values and against the theory that they approximate."""

import numpy as np
import pytest

from swift_kd_plugin.evaluation.eval_metrics import Quantity
from swift_kd_plugin.evaluation.intervals import bootstrap, wilson


@pytest.mark.parametrize(
    ("hits", "count", "low", "high"),
    # Newcombe 1998, table I, method 3, to four digits.
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_is_the_published_one(hits, count, low, high):
    assert wilson(hits, count) == pytest.approx((low, high), abs=5e-5)


def test_bootstrap_of_a_mean_is_near_the_normal_interval():
    values = np.random.default_rng(0).normal(3, 2, 400)
    rows = np.stack([values, np.ones(400)], 1)
    low, high = bootstrap(rows, lambda sums: sums[0] / sums[1], seed=1)
    reach = 1.96 * values.std() / 20
    assert (low, high) == pytest.approx((values.mean() - reach, values.mean() + reach), abs=0.05)
    assert bootstrap(rows, lambda sums: sums[0] / sums[1], seed=1) == (low, high)
    assert bootstrap(rows, lambda sums: sums[0] / sums[1], seed=2) != (low, high)


def test_a_share_has_wilsons_interval_and_a_score_has_not():
    share = Quantity(lambda sums: sums[0] / sums[1], is_share=True)
    figure = share.figure([(1, 1)] * 15 + [(0, 1)] * 133, seed=0)
    assert (figure.low, figure.high) == pytest.approx((0.0624, 0.1605), abs=5e-5)
    assert (figure.value, figure.n) == (pytest.approx(15 / 148), 148)
    scores = share.figure([(0.5, 1), (1, 1), (0, 1)] * 50, seed=0)
    assert (scores.low, scores.high) != wilson(75, 150)
    assert scores.low < 0.5 < scores.high
    assert share.figure([], seed=0) is None
