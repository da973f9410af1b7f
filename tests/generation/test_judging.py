from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swift_kd_plugin.errors import KDError
from swift_kd_plugin.generation.filters import Filters
from swift_kd_plugin.generation.judging import Judge
from swift_kd_plugin.generation.quotas import Quotas
from swift_kd_plugin.generation.verifiers import Gold, Scorer, VerifierError
from tests.generation.row_factories import make_row, make_sample, make_task


def fails(row, response):
    raise OSError("no judge")


def graded(row, response):
    return int(response) / 10


def judge(select="all", function=None, **more) -> Judge:
    scorer = function and Scorer("own:function", Gold(), function)
    return Judge(select=select, scorer=scorer, **more)


def kinds(found: Judge, texts: list[str]) -> list[str | None]:
    """What becomes of samples: None for a row, else the kind of refusal."""
    task = make_task()
    samples = found.score(task, [make_sample(text) for text in texts])
    return [verdict.error and verdict.error.kind for verdict in found.examine(task, samples)]


OTHER, FAILS = "not selected", "fails the verifier"


@pytest.mark.parametrize(
    ("select", "expected"),
    [
        ("all", [FAILS, None, None, None]),
        ("first_pass", [FAILS, None, OTHER, OTHER]),
        ("best", [FAILS, OTHER, None, OTHER]),
        ("majority", [OTHER, None, OTHER, OTHER]),
    ],
)
def test_selection(select, expected):
    assert kinds(judge(select, graded), ["1", "5", "9", "5"]) == expected


def test_a_majority_that_fails_the_verifier_makes_no_row():
    assert kinds(judge("majority", graded), ["1", "9", "1"]) == [FAILS, OTHER, OTHER]


def test_a_majority_counts_answers_as_numbers():
    texts = ["It is 4.", "5", "four", "4.0"]
    assert kinds(judge("majority", vote="numeric"), texts) == [None, OTHER, OTHER, OTHER]
    assert kinds(judge("majority", vote="numeric"), ["four", "five"]) == [OTHER, OTHER]


def test_filters_come_first():
    calls = []
    found = judge(function=lambda row, response: calls.append(response) or True, filters=Filters(max_length=3))
    task = make_task()
    samples = found.score(task, [make_sample("long", tokens=4), make_sample("fine"), make_sample("cut", 2, "length")])
    assert calls == ["fine"]
    assert [v.error and v.error.kind for v in found.examine(task, samples)] == ["too long", None, "cut off"]
    assert found.score(task, samples) == samples
    assert calls == ["fine"]  # a score that is stored is not asked for again


def test_a_verifier_that_raises_stops_or_refuses():
    with pytest.raises(VerifierError, match="OSError: no judge"):
        judge(function=fails).score(make_task(), [make_sample()])
    assert kinds(judge(function=fails, reject_errors=True), ["4", "5"]) == ["verifier error"] * 2


def test_best_needs_a_verifier():
    with pytest.raises(KDError, match="give a --verifier"):
        judge("best")


@given(st.lists(st.integers(0, 4), min_size=1, max_size=9), st.sampled_from(["first_pass", "best", "majority"]))
def test_one_sample_is_chosen_and_it_is_the_right_one(answers, select):
    found = kinds(judge(select, graded, min_score=0.15), [str(answer) for answer in answers])
    chosen = [number for number, kind in enumerate(found) if kind is None]
    passing = [number for number, answer in enumerate(answers) if answer >= 2]
    if select == "first_pass":
        assert chosen == passing[:1]
    elif select == "best":
        assert chosen == ([answers.index(max(answers))] if passing else [])
    else:
        most = max(Counter(answers).values())
        elected = next(n for n, answer in enumerate(answers) if answers.count(answer) == most)
        assert chosen == [n for n in [elected] if answers[n] >= 2]


@pytest.mark.parametrize("text", ["x", "thinking=", "=3", "1.5", "-1"])
def test_quotas_that_are_none(text):
    with pytest.raises(KDError, match="is none of N, thinking=N"):
        Quotas.parse([text])


@given(
    st.lists(st.tuples(st.sampled_from(["math", "code", None]), st.booleans()), max_size=40),
    st.integers(0, 9),
    st.integers(0, 5),
    st.integers(0, 5),
    st.integers(0, 3),
)
def test_quotas_are_never_passed_and_are_used(rows, total, thinking, code, each):
    quotas = Quotas.parse([str(total), f"thinking={thinking}", f"topic:code={code}", f"topic={each}"])
    taken: Counter = Counter()
    for topic, thinks in rows:
        row, mode = make_row(columns={"topic": topic}), "thinking" if thinks else "non_thinking"
        reached = {
            "all": taken["all"] >= total,
            "thinking": thinks and taken["thinking"] >= thinking,
            "topic:code": topic == "code" and taken["code"] >= code,
            "each": taken[topic] >= each,
        }
        closed = quotas.closed(row, mode)
        assert (closed is not None) == any(reached.values())
        assert quotas.full == reached["all"]
        if closed is None:
            quotas.take(row, mode)
            taken.update(["all", topic, *(["thinking"] * thinks)])


def test_quotas_of_both_modes_end_a_run():
    quotas = Quotas.parse(["thinking=1", "non_thinking=1"])
    quotas.take(make_row(), "thinking")
    assert not quotas.full
    assert quotas.closed(make_row(), None) is None
    quotas.take(make_row(), "non_thinking")
    assert quotas.full
