"""The join against a naive one over lists."""

from collections import defaultdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from swift_kd_plugin.data.joining import JoinKeys, join
from swift_kd_plugin.data.rows import digest

# A row is a key and a content; few of either, so that all fates are met.
ROWS = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 1)), max_size=12)
RULES = ("refuse", "first", "all")


def keys_of(rows) -> JoinKeys:
    keys = b"".join(digest(str(key)) for key, _ in rows)
    return JoinKeys.of(keys, lambda repeated: [digest(str(rows[number][1])) for number in repeated])


def groups_of(rows):
    groups = defaultdict(list)
    for number, (key, _) in enumerate(rows):
        groups[key].append(number)
    return groups


def naive(left, right, rule):
    """Pairs and the fate of each row, by the words of the docstring."""
    groups = (groups_of(left), groups_of(right))
    sides = (left, right)
    fates = [["" for _ in side] for side in sides]
    pairs = []
    chosen = []
    for number, side in enumerate(sides):
        mine = {}
        for key, rows in groups[number].items():
            same = len({side[row] for row in rows}) == 1
            if rule == "all" and number == 0:
                mine[key] = rows
            elif same or rule == "first":
                mine[key] = rows[:1]
            for row in rows:
                fates[number][row] = "repeated" if same else "conflicting"
            for row in mine.get(key, []):
                fates[number][row] = "lonely"
            if key not in groups[1 - number]:
                for row in rows:
                    fates[number][row] = "lonely"
        chosen.append(mine)
    for key in chosen[0].keys() & chosen[1].keys():
        for row in chosen[0][key]:
            pairs.append((row, chosen[1][key][0]))
            fates[0][row] = fates[1][chosen[1][key][0]] = "paired"
    return sorted(pairs, key=lambda pair: pair[::-1]), fates


@settings(deadline=None, max_examples=300)
@given(ROWS, ROWS, st.sampled_from(RULES))
def test_pairs_and_fates_are_those_of_the_naive_join(left, right, rule):
    pairs, fates = naive(left, right, rule)
    made = join(keys_of(left), keys_of(right), rule)
    assert [tuple(pair) for pair in made.pairs.tolist()] == pairs
    for side in (0, 1):
        for kind in ("lonely", "repeated", "conflicting"):
            expected = [row for row, fate in enumerate(fates[side]) if fate == kind]
            assert getattr(made, kind)[side].tolist() == expected


@settings(deadline=None, max_examples=100)
@given(ROWS, ROWS, st.randoms())
def test_the_pairs_do_not_depend_on_the_order(left, right, random):
    def contents(left, right):
        pairs = join(keys_of(left), keys_of(right)).pairs.tolist()
        return sorted((left[a], right[b]) for a, b in pairs)

    before = contents(left, right)
    random.shuffle(left)
    random.shuffle(right)
    assert contents(left, right) == before


@pytest.mark.parametrize("rule", RULES)
def test_one_side_may_be_empty(rule):
    made = join(keys_of([]), keys_of([(1, 1)]), rule)
    assert made.pairs.shape == (0, 2)
    assert made.lonely[1].tolist() == [0]


def test_many_rows_are_few_bytes():
    keys = keys_of([(number, "x") for number in range(1000)])
    assert keys.keys.dtype.itemsize + keys.contents.dtype.itemsize == 32
    assert len(join(keys, keys).pairs) == 1000
    assert np.array_equal(join(keys, keys).pairs[:, 0], np.arange(1000))
