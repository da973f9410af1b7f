"""Finds the partners of two sets of rows by key, with 32 bytes a row in memory."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

DIGEST = np.dtype("S16")


@dataclass(frozen=True)
class JoinKeys:
    """Keys of a set of rows, in the rows' order.

    Args:
        keys: digest of each row's key [n].
        contents: digest of each row's content [n], empty where the key is the row's alone; two rows with one key and
            one content are the same row twice.
    """

    keys: np.ndarray
    contents: np.ndarray

    @classmethod
    def of(cls, keys: bytes | bytearray, read_contents: Callable[[np.ndarray], list[bytes]]) -> "JoinKeys":
        """The rows' keys, one behind the other; contents are read for the rows alone that share a key."""
        table = np.frombuffer(keys, DIGEST)
        _, group, sizes = np.unique(table, return_inverse=True, return_counts=True)
        repeated = np.flatnonzero(sizes[group] > 1)
        contents = np.zeros(len(table), DIGEST)
        contents[repeated] = np.array(read_contents(repeated), DIGEST)
        return cls(table, contents)


@dataclass(frozen=True)
class Groups:
    """Rows of equal key.

    Args:
        keys: the different keys, sorted [k].
        rows: row numbers, group after group, in each in the rows' order [n].
        starts: where each group begins in `rows` [k + 1].
        clear: whether all rows of a group have one content [k].
    """

    keys: np.ndarray
    rows: np.ndarray
    starts: np.ndarray
    clear: np.ndarray

    @classmethod
    def of(cls, side: JoinKeys) -> "Groups":
        rows = np.argsort(side.keys, kind="stable")
        keys, starts, sizes = np.unique(side.keys[rows], return_index=True, return_counts=True)
        contents = side.contents[rows]
        differs = contents != np.repeat(contents[starts], sizes)
        clear = np.bincount(np.repeat(np.arange(len(keys)), sizes), differs, len(keys)) == 0
        return cls(keys, rows, np.append(starts, len(rows)), clear)

    def first(self, groups: np.ndarray) -> np.ndarray:
        """The first row of each of these groups."""
        return self.rows[self.starts[:-1][groups]]

    def members(self, groups: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """All rows of these groups, and for each the position of its group in `groups`."""
        sizes = np.diff(self.starts)[groups]
        position = np.repeat(np.arange(len(groups)), sizes)
        offset = np.arange(len(position)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        return self.rows[self.starts[:-1][groups][position] + offset], position


@dataclass(frozen=True)
class Join:
    """What became of the rows of both sides: every row is in exactly one of the arrays of its side.

    Args:
        pairs: row numbers of the partners, left and right [p, 2], in the order of the right rows.
        lonely: rows whose key the other side lacks.
        repeated: rows that are the same as an earlier one.
        conflicting: rows that share a key and differ, so that none of them can be chosen.
    """

    pairs: np.ndarray
    lonely: tuple[np.ndarray, np.ndarray]
    repeated: tuple[np.ndarray, np.ndarray]
    conflicting: tuple[np.ndarray, np.ndarray]


def join(left: JoinKeys, right: JoinKeys, duplicates: str = "refuse") -> Join:
    """Joins two sides by key.

    Args:
        left: the side that may have several rows for one of the right side's.
        duplicates: what becomes of rows that share a key and differ: "refuse" uses none of them, "first" the first,
            "all" joins every left row of a key with the right one. (Rows of equal content count once, but for "all".)
    """
    sides = (Groups.of(left), Groups.of(right))
    _, *common = np.intersect1d(sides[0].keys, sides[1].keys, assume_unique=True, return_indices=True)
    every_left = duplicates == "all"
    # For the right side, "all" can only mean that the key is clear.
    usable = [side.clear | (duplicates == "first") | (every_left and side is sides[0]) for side in sides]
    both = usable[0][common[0]] & usable[1][common[1]]
    groups = [indices[both] for indices in common]
    chosen = [side.first(indices) for side, indices in zip(sides, groups, strict=True)]
    if every_left:
        chosen[0], position = sides[0].members(groups[0])
        chosen[1] = chosen[1][position]
    pairs = np.stack(chosen, axis=1)
    pairs = pairs[np.lexsort((pairs[:, 0], pairs[:, 1]))]
    left_over = [_left_over(*side) for side in zip(sides, chosen, common, usable, (every_left, False), strict=True)]
    return Join(pairs, *zip(*left_over, strict=True))


def _left_over(
    side: Groups, used: np.ndarray, common: np.ndarray, usable: np.ndarray, every: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Lonely, repeated and conflicting rows of a side, of which `every` or the first row of a usable group counts."""
    sizes = np.diff(side.starts)
    partner = np.zeros(len(side.keys), bool)
    partner[common] = True
    counts = np.full(len(side.rows), every)
    counts[side.starts[:-1]] = True
    # A row that counts and was not used has a partner that cannot be chosen.
    lonely = ~np.repeat(partner, sizes) | (np.repeat(usable, sizes) & counts)
    clear = np.repeat(side.clear, sizes)
    free = np.isin(side.rows, used, invert=True)
    kinds = (free & lonely, free & ~lonely & clear, free & ~lonely & ~clear)
    lonely_rows, repeated, conflicting = (np.sort(side.rows[kind]) for kind in kinds)
    return lonely_rows, repeated, conflicting
