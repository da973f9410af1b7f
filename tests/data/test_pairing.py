"""Pairs of rows with and without the experience: the two views, the response, and what becomes of the other rows."""

import copy

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from swift_kd_plugin.data.leaks import Suspicions
from swift_kd_plugin.data.pairing import PairSide, ResponseRule, join_sides, key_of, merge_rows, paired_rows
from swift_kd_plugin.data.row_report import Report
from swift_kd_plugin.data.row_store import read_dataset, write_rows
from swift_kd_plugin.data.rows import RowError, digest
from swift_kd_plugin.data.think_block import join_thought
from swift_kd_plugin.errors import KDError

TAKEN = ResponseRule()


def turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def exp(key="a", response: str | None = "4", row: int = 1, question: str = "what is X?", **columns) -> dict:
    messages = [turn("system", "X is 4"), turn("user", question)]
    return make("E.jsonl", row, key, messages + ([turn("assistant", response)] if response else []), columns)


def noexp(key="a", response: str | None = None, row: int = 1, question: str = "X?", **columns) -> dict:
    messages = [turn("user", question)]
    return make("N.jsonl", row, key, messages + ([turn("assistant", response)] if response else []), columns)


def make(source: str, row: int, key, messages: list, columns: dict) -> dict:
    ours = {
        name: columns.pop(name) for name in ("tools", "images", "videos", "chat_template_kwargs") if name in columns
    }
    return {
        "messages": messages,
        **ours,
        "columns": {"id": key, **columns},
        "kd_source": source,
        "kd_row": row,
        "kd_id": str(key),
    }


def pairing_in(folder):
    """A function that joins and merges two lists of rows as a build does."""

    def run(exp_rows, noexp_rows, on="id", duplicates="refuse", rule=TAKEN, strict=False, unmatched=None):
        sides = []
        for name, rows in (("E.jsonl", exp_rows), ("N.jsonl", noexp_rows)):
            write_rows(folder / f"{name}.arrow", rows)
            sides.append(PairSide(read_dataset(folder / f"{name}.arrow"), name))
        report = Report(strict=strict)
        pairs = join_sides(*sides, on, duplicates, report, report.but(strict=unmatched))
        return list(paired_rows(*sides, pairs, rule, Suspicions(), report)), report

    return run


@pytest.fixture
def pair(tmp_path):
    return pairing_in(tmp_path)


def ids(rows) -> list:
    return [row["columns"]["id"] for row in rows]


def kinds(report: Report) -> dict[str, dict[str, list[int]]]:
    return {kind: entry.rows for kind, entry in report.left_out.items()}


def test_student_view_gets_the_experienced_response_and_the_teacher_view_none():
    merged = merge_rows(exp(), noexp(topic="letters"), ResponseRule())
    assert merged["messages"] == [turn("user", "X?"), turn("assistant", "4")]
    assert merged["teacher_messages"] == [turn("system", "X is 4"), turn("user", "what is X?")]
    assert merged["columns"] == {"id": "a", "topic": "letters"}


def test_rows_are_joined_by_id_in_the_order_without_the_experience(pair):
    rows, report = pair([exp(1, "one"), exp(2, "two", row=2)], [noexp(2), noexp(1, row=2)])
    assert [(row["columns"]["id"], row["messages"][-1]["content"]) for row in rows] == [(2, "two"), (1, "one")]
    assert not report.left_out


def test_another_column_can_join(pair):
    assert len(pair([exp(uid="q")], [noexp("b", uid="q")], on="uid")[0]) == 1


def test_numbers_and_texts_join_because_a_csv_has_texts_only(pair):
    assert len(pair([exp(1)], [noexp("1")])[0]) == 1


@pytest.mark.parametrize("question", ["what is  X?", "WHAT is X?\n", "what is Ｘ？"])
def test_the_last_user_message_joins_without_regard_to_space_case_and_width(pair, question):
    rows, _ = pair([exp("a")], [noexp("b", question=question)], on="last_user_message")
    assert len(rows) == 1


def test_order_joins_by_row_number_although_a_row_between_was_left_out(pair):
    rows, report = pair([exp("a", row=1), exp("c", "6", row=3)], [noexp("x", row=r) for r in (1, 2, 3)], on="order")
    assert [row["messages"][-1]["content"] for row in rows] == ["4", "6"]
    assert kinds(report) == {"only in N.jsonl": {"N.jsonl": [2]}}


def test_rows_of_one_side_only_are_reported(pair):
    rows, report = pair([exp("a"), exp("b", row=2)], [noexp("a"), noexp("c", row=2)])
    assert ids(rows) == ["a"]
    assert kinds(report) == {"only in E.jsonl": {"E.jsonl": [2]}, "only in N.jsonl": {"N.jsonl": [2]}}
    example = report.left_out["only in E.jsonl"].examples[0]
    assert example["place"] == "E.jsonl, line 2 (id 'b')"
    assert example["text"] == "N.jsonl has no row to pair it with, by the id 'b'"


def test_the_same_row_twice_counts_once(pair):
    rows, report = pair([exp("a", row=1), exp("a", row=2)], [noexp("a", row=5), noexp("a", row=6)])
    assert len(rows) == 1
    assert kinds(report) == {"duplicate": {"E.jsonl": [2], "N.jsonl": [6]}}


DIFFERENT = [exp("a", "4", row=1), exp("a", "5", row=2)]


def test_rows_that_share_an_id_and_differ_are_not_used(pair):
    rows, report = pair(DIFFERENT, [noexp("a")])
    assert not rows
    assert kinds(report) == {"conflicting duplicates": {"E.jsonl": [1, 2]}, "only in N.jsonl": {"N.jsonl": [1]}}


def test_the_first_of_them_can_be_used(pair):
    rows, report = pair(DIFFERENT, [noexp("a")], duplicates="first")
    assert [row["messages"][-1]["content"] for row in rows] == ["4"]
    assert kinds(report) == {"conflicting duplicates": {"E.jsonl": [2]}}


def test_several_experienced_answers_can_share_a_question(pair):
    rows, report = pair(DIFFERENT, [noexp("a")], duplicates="all")
    assert [row["messages"][-1]["content"] for row in rows] == ["4", "5"]
    assert not report.left_out


@pytest.mark.parametrize("key", [None, True, 1.5, "", ["a"]])
def test_a_row_without_a_usable_key_is_reported(pair, key):
    rows, report = pair([exp(key), exp("b", row=2)], [noexp("b")])
    assert ids(rows) == ["b"]
    assert kinds(report) == {"no key": {"E.jsonl": [1]}}
    said = "it has no column 'id'" if key is None else f"in its column 'id', not {key!r}"
    assert said in report.left_out["no key"].examples[0]["text"]


def test_a_column_that_became_the_question_says_what_to_join_by(pair):
    _, report = pair([exp("a")], [noexp("a")], on="question")
    assert "join by last_user_message" in report.left_out["no key"].examples[0]["text"]


def test_strict_ends_at_the_first_row_that_cannot_be_used(pair):
    with pytest.raises(KDError, match=r"E\.jsonl, line 1 \(id 'b'\) cannot be used: N\.jsonl has no row to pair"):
        pair([exp("b")], [noexp("a")], strict=True)


def test_rows_without_a_partner_can_be_allowed_in_a_strict_run(pair):
    rows, report = pair([exp("a"), exp("b", row=2)], [noexp("a")], strict=True, unmatched=False)
    assert ids(rows) == ["a"]
    assert kinds(report) == {"only in E.jsonl": {"E.jsonl": [2]}}


@pytest.mark.parametrize("side", ["exp", "noexp"])
def test_the_gold_answer_can_be_the_response(side):
    gold = {"gold": "5"}
    rows = exp(**gold if side == "exp" else {}), noexp(**gold if side == "noexp" else {})
    assert merge_rows(*rows, ResponseRule("gold"))["messages"][-1] == turn("assistant", "5")
    assert merge_rows(*rows, ResponseRule())["messages"][-1] == turn("assistant", "4")


def test_there_may_be_no_response():
    assert merge_rows(exp(), noexp(response="no idea"), ResponseRule("none"))["messages"] == [turn("user", "X?")]


def test_an_answer_given_without_the_experience_is_left_out():
    merged = merge_rows(exp(), noexp(response="no idea"), ResponseRule())
    assert [message["content"] for message in merged["messages"]] == ["X?", "4"]


@pytest.mark.parametrize("said", [[], [turn("assistant", "Wait.")]])
def test_calls_of_tools_are_a_response_that_can_be_shared(said):
    calls = [{"role": "tool_call", "content": {"name": name, "arguments": {}}} for name in ("f", "g")]
    asked = exp(response=None, thought="hm")
    asked["messages"] += [*said, *calls]
    assert merge_rows(asked, noexp(), ResponseRule())["messages"] == [turn("user", "X?"), *said, *calls]
    thinks = merge_rows(asked, noexp(), ResponseRule(thought="thought"))["messages"]
    assert thinks == [turn("user", "X?"), turn("assistant", join_thought("hm", "Wait." if said else "")), *calls]


@pytest.mark.parametrize(
    ("rows", "rule", "reason"),
    [
        ((exp(response=None), noexp()), ResponseRule(), "do not end with an answer"),
        ((exp(), noexp()), ResponseRule("gold"), "its column 'gold' is not there, or null"),
        ((exp(), noexp(gold=[5])), ResponseRule("gold"), "its column 'gold' is a list, not a text or a conversation"),
        (
            ({**exp(), "teacher_messages": [turn("user", "X?")]}, noexp()),
            ResponseRule(),
            "has teacher_messages already",
        ),
        ((exp(videos=["a.mp4"]), noexp()), ResponseRule(), "differ in 'videos', which both views must share"),
    ],
)
def test_what_cannot_be_merged_says_why(rows, rule, reason):
    with pytest.raises(RowError, match=reason):
        merge_rows(*rows, rule)


def test_what_cannot_be_merged_is_reported_with_both_rows(pair):
    rows, report = pair([exp(response=None)], [noexp(row=7)])
    assert not rows
    assert kinds(report) == {"no response": {"E.jsonl": [1], "N.jsonl": [7]}}


def test_what_only_the_experienced_row_has_becomes_the_teachers():
    own = {"tools": [{"name": "add"}], "images": [{"path": "a"}], "chat_template_kwargs": {"enable_thinking": True}}
    merged = merge_rows(exp(**own), noexp(), ResponseRule())
    assert {f"teacher_{column}": value for column, value in own.items()}.items() <= merged.items()
    assert not own.keys() & merged.keys()


def test_what_only_the_bare_row_has_is_taken_from_the_teacher():
    own = {"tools": [{"name": "add"}], "images": [{"path": "a"}], "chat_template_kwargs": {"enable_thinking": True}}
    merged = merge_rows(exp(), noexp(**own), ResponseRule())
    assert own.items() <= merged.items()
    assert (merged["teacher_tools"], merged["teacher_images"], merged["teacher_chat_template_kwargs"]) == ([], [], {})


def test_columns_that_both_rows_share_give_the_teacher_none():
    merged = merge_rows(exp(tools=["t"]), noexp(tools=["t"], images=[]), ResponseRule())
    assert not [column for column in merged if column.startswith("teacher_") and column != "teacher_messages"]


def test_inputs_are_not_changed():
    rows = exp(), noexp(gold="5")
    before = copy.deepcopy(rows)
    merge_rows(*rows, ResponseRule("gold"))
    assert rows == before


@pytest.mark.parametrize(
    ("other", "conflict"),
    [
        ({"gold": "5"}, True),
        ({"gold": " 4 "}, False),
        ({"response": "5"}, True),
        ({"response": "<think>\nhm\n</think>\n\n4"}, False),
        ({}, False),
    ],
)
def test_answers_that_contradict_each_other_are_noted(pair, other, conflict):
    rows, report = pair([exp()], [noexp(**other)])
    assert len(rows) == 1
    assert ("conflicting answers" in report.notes) == conflict


ROWS = st.lists(st.tuples(st.integers(0, 5), st.sampled_from(["4", "5"])), max_size=8)


@settings(deadline=None, max_examples=60)
@given(ROWS, ROWS, st.sampled_from(["refuse", "first", "all"]), st.randoms())
def test_every_row_is_in_the_output_or_in_the_report(tmp_path_factory, left, right, duplicates, random):
    def run(left, right):
        exp_rows = [exp(key, answer, row=n) for n, (key, answer) in enumerate(left, 1)]
        noexp_rows = [noexp(key, row=n, topic=answer) for n, (key, answer) in enumerate(right, 1)]
        made = pairing_in(tmp_path_factory.mktemp("pairs"))(exp_rows, noexp_rows, duplicates=duplicates)
        return (exp_rows, noexp_rows, *made)

    exp_rows, noexp_rows, rows, report = run(left, right)
    lost = [(source, n) for entry in report.left_out.values() for source, ns in entry.rows.items() for n in ns]
    used = {("N.jsonl", row["kd_row"]) for row in rows}
    assert len(lost) == len(set(lost))
    assert used.isdisjoint(lost)
    assert used | {place for place in lost if place[0] == "N.jsonl"} == {("N.jsonl", r["kd_row"]) for r in noexp_rows}
    used_answers = sorted((row["columns"]["id"], row["messages"][-1]["content"]) for row in rows)
    kept = [r for r in exp_rows if ("E.jsonl", r["kd_row"]) not in lost]
    assert used_answers == sorted((r["columns"]["id"], r["messages"][-1]["content"]) for r in kept)
    if duplicates == "refuse":
        random.shuffle(left)
        random.shuffle(right)
        again = run(left, right)[2]
        assert sorted(map(content, again)) == sorted(map(content, rows))


def content(row) -> bytes:
    return digest({**row, "kd_row": None})


def test_keys():
    assert key_of(exp("q"), "id") == "q"
    assert key_of(exp("q", row=3), "order") == "3"
    assert key_of(exp(question=" What  IS x? "), "last_user_message") == "what is x?"
