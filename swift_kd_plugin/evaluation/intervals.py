"""95 % intervals."""

from collections.abc import Callable
from math import sqrt
from statistics import NormalDist

import numpy as np

RESAMPLES = 1000
LEVEL = 0.95
_Z = NormalDist().inv_cdf(0.5 + LEVEL / 2)


def wilson(hits: float, count: int) -> tuple[float, float]:
    """Wilson's score interval of a share (Wilson 1927); right also near 0 and 1 and for few rows."""
    share, spread = hits / count, _Z**2 / count
    centre = (share + spread / 2) / (1 + spread)
    reach = _Z / (1 + spread) * sqrt(share * (1 - share) / count + spread / (4 * count))
    return max(0.0, centre - reach), min(1.0, centre + reach)


def bootstrap(rows: np.ndarray, value: Callable[[np.ndarray], float], seed: int) -> tuple[float, float]:
    """The percentile interval of a figure that is made of sums over rows (Efron 1979).

    Args:
        rows: what each row adds to the sums, float64 [n, k].
        value: the figure for sums [k].
        seed: of the resamples; the same rows have the same interval.
    """
    draw, count = np.random.default_rng(seed), len(rows)
    figures = [
        value(np.bincount(draw.integers(count, size=count), minlength=count) @ rows)  # each row as often as it is drawn
        for _ in range(RESAMPLES)
    ]
    low, high = np.percentile(figures, [100 * (1 - LEVEL) / 2, 100 * (1 + LEVEL) / 2])
    return float(low), float(high)
