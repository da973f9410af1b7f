"""Who writes, drawn from seed and row: the shares that were asked for, in every order and layout."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swift_kd_plugin.host.rollout.writer_mix import WriterMix, uniform, who_writes
from swift_kd_plugin.losses.schedules import Schedule
from tests.binomial_interval import is_within

KEYS = [("rows.jsonl", number, 0) for number in range(2000)]


def mix(lmbda, teacher=0.0, seed=42, **settings) -> WriterMix:
    return WriterMix(seed, lmbda if isinstance(lmbda, Schedule) else Schedule(lmbda), teacher, **settings)


@pytest.mark.parametrize("seed", [0, 1, 42])
def test_the_shares_are_those_that_were_asked_for(seed):
    made = mix(0.4, 0.5, seed, thinking=0.3)
    found = Counter((made.source(key, 0, 0.0), made.thinks(key)) for key in KEYS)
    shares = {"student": 0.4, "teacher": 0.3, "dataset": 0.3}
    for source, share in shares.items():
        for thinks, part in ((True, 0.3), (False, 0.7)):
            assert is_within(found[source, thinks], len(KEYS), share * part), (source, thinks, found)


def test_each_visit_and_each_seed_draws_anew():
    made = mix(0.5)
    first = [made.source(key, 0, 0.0) for key in KEYS]
    again = [made.source((*key[:2], 1), 0, 0.0) for key in KEYS]
    other = [mix(0.5, seed=43).source(key, 0, 0.0) for key in KEYS]
    for draws in (again, other):
        assert is_within(sum(a == b for a, b in zip(first, draws, strict=True)), len(KEYS), 0.5)


def test_the_draws_of_one_row_do_not_speak_of_each_other():
    made = mix(0.5, 0.5, thinking=0.5)
    students = [key for key in KEYS if made.source(key, 0, 0.0) == "student"]
    assert is_within(sum(made.thinks(key) for key in students), len(students), 0.5)


@given(st.permutations(KEYS[:20]))
def test_the_order_has_no_say(keys):
    made = mix(0.5, 0.5)
    assert {key: made.source(key, 0, 0.0) for key in keys} == {key: made.source(key, 0, 0.0) for key in KEYS[:20]}


def test_ends_are_certain():
    assert {mix(1.0, 1.0).source(key, 0, 0.0) for key in KEYS} == {"student"}
    assert {mix(0.0, 1.0).source(key, 0, 0.0) for key in KEYS} == {"teacher"}
    assert {mix(0.0, 0.0).source(key, 0, 0.0) for key in KEYS} == {"dataset"}


def test_lmbda_moves_and_takes_no_response_back():
    """What the student writes at a low lmbda it also writes at a high one."""
    made = mix(Schedule(0.0, 1.0, "linear"))
    students = [{key for key in KEYS if made.source(key, 0, at) == "student"} for at in (0.0, 0.25, 0.5, 1.0)]
    assert [len(part) / len(KEYS) for part in students] == pytest.approx([0.0, 0.25, 0.5, 1.0], abs=0.03)
    assert students[0] <= students[1] <= students[2] <= students[3]


def test_a_cycle_may_draw_once_for_all():
    made = mix(0.5, 0.5, whole_cycles=True)
    by_cycle = [{made.source(key, cycle, 0.0) for key in KEYS[:50]} for cycle in range(400)]
    assert {len(sources) for sources in by_cycle} == {1}
    assert is_within(sum(sources == {"student"} for sources in by_cycle), 400, 0.5)


@given(st.integers(), st.text(), st.lists(st.one_of(st.integers(), st.text(), st.none())))
def test_a_draw_lies_below_one(seed, purpose, key):
    assert 0 <= uniform(seed, purpose, *key) < 1


@pytest.mark.parametrize(
    ("drawn", "writers", "asks", "expected"),
    [
        ("student", ["student"], False, "student"),
        ("dataset", ["student"], False, "dataset"),
        ("student", ["teacher"], False, "dataset"),
        ("dataset", ["student", "teacher"], True, "student"),
        ("dataset", ["teacher"], True, "teacher"),
        ("student", ["teacher"], True, "teacher"),
        ("dataset", [], True, "dataset"),
    ],
)
def test_a_row_without_a_response_is_written_by_whoever_writes(drawn, writers, asks, expected):
    assert who_writes(drawn, writers, asks) == expected
