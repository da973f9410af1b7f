"""Mixes of datasets in given shares: exact to the row, seeded, with or without using a row twice."""

from dataclasses import dataclass

import numpy as np
from datasets import Dataset, concatenate_datasets

from swift_kd_plugin.errors import KDError


@dataclass(frozen=True)
class Part:
    """A source of a mix.

    Args:
        weight: its share of the mix, relative to the others'.
        fraction: the share of its own rows that the mix takes.
        lost: place and reason of the first row that was left out of it.
    """

    rows: Dataset
    weight: float | None = None
    fraction: float | None = None
    lost: str = ""


def mix(
    parts: dict[str, Part],
    *,
    total: int | None = None,
    replacement: bool = False,
    seed: int = 42,
    name: str = "the mix",
) -> tuple[Dataset, dict]:
    """Shuffled rows of all parts, and what was taken of each.

    Args:
        parts: by label; all have a weight, or all have a fraction.
        total: rows of the mix. Default: without replacement as many as the weights allow, with replacement as few as
            use every row, with fractions their sum.
        replacement: rows of a part may come again, each once more only after all others of it.
        seed: of the choice and the order.

    Raises:
        KDError: a part is empty, or has too few rows without replacement.
    """
    sizes = {label: len(part.rows) for label, part in parts.items()}
    if empty := [label for label, size in sizes.items() if not size]:
        why = f"; the first that was left out is {lost}" if (lost := parts[empty[0]].lost) else ""
        raise KDError(f"{name}: its source {empty[0]!r} has no rows left{why}.")
    counts = _count_rows(parts, sizes, total, replacement)
    short = [label for label, count in counts.items() if count > sizes[label]]
    if short and not replacement:
        label = short[0]
        raise KDError(
            f"{name} needs {counts[label]:,} rows of {label!r}, which has {sizes[label]:,}; lower `total`, change the "
            "weights, or allow `replacement: true`."
        )
    random = np.random.default_rng(seed)
    chosen = [part.rows.select(_draw(sizes[label], counts[label], random)) for label, part in parts.items()]
    mixed = concatenate_datasets(chosen)
    rows = len(mixed)
    facts = {
        "rows": rows,
        "available": sizes,
        "taken": counts,
        "shares": {label: count / rows if rows else 0.0 for label, count in counts.items()},
        "most_often_used": {label: -(-count // sizes[label]) for label, count in counts.items()},
    }
    return mixed.select(random.permutation(rows)), facts


def _count_rows(parts: dict[str, Part], sizes: dict[str, int], total: int | None, replacement: bool) -> dict[str, int]:
    if all(part.fraction is not None for part in parts.values()):
        wanted = {label: part.fraction * sizes[label] for label, part in parts.items()}
        total = round(sum(wanted.values())) if total is None else total
        return _round_to(total, wanted)
    weight_sum = sum(part.weight for part in parts.values())
    shares = {label: part.weight / weight_sum for label, part in parts.items()}
    if total is None:
        reach = [sizes[label] / share for label, share in shares.items() if share]
        # The small amount keeps 7 / 0.7 at 10.
        total = int(np.ceil(max(reach) - 1e-6)) if replacement else int(min(reach) + 1e-6)
    return _round_to(total, shares)


def _round_to(total: int, sizes: dict[str, float]) -> dict[str, int]:
    """Whole numbers that add up to `total` and are proportional to `sizes` (largest remainders get the rest)."""
    size_sum = sum(sizes.values())
    exact = {label: total * size / size_sum for label, size in sizes.items()}
    counts = {label: int(value + 1e-9) for label, value in exact.items()}
    by_remainder = sorted(exact, key=lambda label: counts[label] - exact[label])
    for label in by_remainder[: total - sum(counts.values())]:
        counts[label] += 1
    return counts


def _draw(size: int, count: int, random: np.random.Generator) -> np.ndarray:
    rounds = [random.permutation(size) for _ in range(-(-count // size))]
    return np.concatenate(rounds)[:count] if rounds else np.zeros(0, np.int64)
