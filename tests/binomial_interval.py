"""Whether a count is what a probability leads to expect."""

import math

QUANTILE_99 = 2.576


def is_within(count: int, total: int, share: float) -> bool:
    """Whether a count lies in the 99 % interval of the binomial distribution (normal approximation, half a count)."""
    return abs(count - total * share) <= QUANTILE_99 * math.sqrt(total * share * (1 - share)) + 0.5
