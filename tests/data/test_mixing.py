"""Mixes in given shares."""

import pytest
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from swift_kd_plugin.data.mixing import Part, mix
from swift_kd_plugin.errors import KDError


def part(label: str, size: int, **share) -> Part:
    return Part(Dataset.from_dict({"row": [f"{label}{number}" for number in range(size)]}), **share)


def rows(mixed) -> list[str]:
    return mixed["row"][:]


def test_weights_are_shares_of_the_mix_and_no_row_comes_twice():
    mixed, facts = mix({"a": part("a", 700, weight=0.7), "b": part("b", 900, weight=0.3)})
    assert len(set(rows(mixed))) == len(mixed) == 1000
    assert facts["taken"] == {"a": 700, "b": 300}
    assert facts["shares"] == {"a": 0.7, "b": 0.3}


def test_rows_come_in_a_shuffled_order_that_the_seed_decides():
    parts = {"a": part("a", 70, weight=7), "b": part("b", 30, weight=3)}
    first, again, other = (rows(mix(parts, seed=seed)[0]) for seed in (1, 1, 2))
    assert first == again != other
    assert [row[0] for row in first] != sorted(row[0] for row in first)


def test_with_replacement_every_row_is_used_and_one_comes_again_after_all_others():
    mixed, facts = mix({"a": part("a", 10, weight=0.5), "b": part("b", 25, weight=0.5)}, replacement=True)
    counts = {row: rows(mixed).count(row) for row in set(rows(mixed))}
    assert len(mixed) == 50
    assert {counts[f"b{n}"] for n in range(25)} == {1}
    assert {counts[f"a{n}"] for n in range(10)} == {2, 3}
    assert facts["most_often_used"] == {"a": 3, "b": 1}


def test_fractions_are_shares_of_each_source():
    _, facts = mix({"a": part("a", 10, fraction=0.7), "b": part("b", 100, fraction=0.3)})
    assert facts["taken"] == {"a": 7, "b": 30}


def test_too_few_rows_are_said():
    with pytest.raises(KDError, match=r"the mix needs 70 rows of 'a', which has 10; lower `total`"):
        mix({"a": part("a", 10, weight=0.7), "b": part("b", 100, weight=0.3)}, total=100)
    with pytest.raises(KDError, match="its source 'a' has no rows left"):
        mix({"a": part("a", 0, weight=1.0)})


SHARES = st.lists(st.tuples(st.integers(1, 40), st.integers(0, 9)), min_size=1, max_size=4).filter(
    lambda pairs: any(weight for _, weight in pairs)
)


@settings(deadline=None, max_examples=80)
@given(SHARES, st.one_of(st.none(), st.integers(1, 60)), st.booleans(), st.integers(0, 9))
def test_shares_are_exact_to_the_row(pairs, total, replacement, seed):
    parts = {str(n): part(f"{n}-", size, weight=weight) for n, (size, weight) in enumerate(pairs)}
    try:
        mixed, facts = mix(parts, total=total, replacement=replacement, seed=seed)
    except KDError:
        assert not replacement
        return
    whole = sum(weight for _, weight in pairs)
    assert total in (None, len(mixed))
    for label, (size, weight) in zip(parts, pairs, strict=True):
        taken = facts["taken"][label]
        assert abs(taken - len(mixed) * weight / whole) < 1
        used = [row for row in rows(mixed) if row.startswith(f"{label}-")]
        assert len(used) == taken
        assert len(set(used)) == min(taken, size)
