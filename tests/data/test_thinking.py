"""Rows in thinking and non-thinking mode, as data; tests/host compares the tokens with a chat template."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom

from swift_kd_plugin.data.row_report import Report
from swift_kd_plugin.data.rows import RowError
from swift_kd_plugin.data.think_block import join_thought, split_thought
from swift_kd_plugin.data.thinking import Modes, own_mode, rows_in_modes

THOUGHT = "<think>\nTwo and two.\n</think>\n\n4"


def row(response: str | None = THOUGHT, question: str = "2 + 2?", number: int = 1, **columns) -> dict:
    messages = [{"role": "user", "content": question}]
    messages += [{"role": "assistant", "content": response}] if response is not None else []
    return {"messages": messages, "kd_source": "a.jsonl", "kd_row": number, **columns}


def applied(given_row: dict, **modes) -> dict:
    return Modes(**modes).apply(given_row)[0]


def answer(made: dict) -> str:
    return made["messages"][-1]["content"]


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        (THOUGHT, ("Two and two.", "4")),
        ("<think>\n\n</think>\n\n4", ("", "4")),
        ("  <think>a\nb</think>4", ("a\nb", "4")),
        ("4", (None, "4")),
        ("the tag <think> opens, </think> closes", (None, "the tag <think> opens, </think> closes")),
    ],
)
def test_a_response_is_split_at_its_think_block(text, parts):
    assert split_thought(text) == parts


@given(st.text("ab <>\n/", max_size=20).map(lambda t: t.strip("\n")), st.text("ab \n", max_size=9))
def test_joining_and_splitting_are_inverse(thought, text):
    text = text.lstrip("\n")
    assert split_thought(join_thought(thought, text)) == (thought, text)


def test_thinking_keeps_the_thought_and_says_so_to_the_template():
    made = applied(row(), mode="thinking")
    assert answer(made) == THOUGHT
    assert made["chat_template_kwargs"] == {"enable_thinking": True}
    assert not [name for name in made if name.startswith("teacher")]


def test_non_thinking_strips_it():
    made = applied(row(), mode="non_thinking")
    assert answer(made) == "4"
    assert made["chat_template_kwargs"] == {"enable_thinking": False}


def test_the_teacher_may_think_while_the_student_does_not():
    made = applied(row(), mode="non_thinking", teacher="thinking")
    assert (answer(made), made["teacher_thought"]) == ("4", "Two and two.")
    assert made["chat_template_kwargs"] == {"enable_thinking": False}
    assert made["teacher_chat_template_kwargs"] == {"enable_thinking": True}


def test_the_student_may_think_while_the_teacher_does_not():
    made = applied(row(), mode="thinking", teacher="non_thinking")
    assert (answer(made), made["teacher_thought"]) == (THOUGHT, "")
    assert made["teacher_chat_template_kwargs"] == {"enable_thinking": False}


def test_other_template_settings_stay():
    given_row = row(chat_template_kwargs={"a": 1}, teacher_chat_template_kwargs={"b": 2})
    made = applied(given_row, mode="non_thinking")
    assert made["chat_template_kwargs"] == {"a": 1, "enable_thinking": False}
    assert made["teacher_chat_template_kwargs"] == {"b": 2, "enable_thinking": False}


def test_a_row_without_a_response_gets_its_mode_only():
    made = applied(row(None), mode="thinking", teacher="non_thinking")
    assert len(made["messages"]) == 1
    assert "teacher_thought" not in made


CALL = {"role": "tool_call", "content": {"name": "f", "arguments": {}}}


@pytest.mark.parametrize(
    ("modes", "said", "columns"),
    [
        ({"mode": "thinking"}, THOUGHT, {}),
        ({"mode": "thinking", "think_loss": 0.5}, THOUGHT, {"think_loss": 0.5}),
        ({"mode": "non_thinking"}, "4", {}),
        ({"mode": "non_thinking", "teacher": "thinking"}, "4", {"teacher_thought": "Two and two."}),
        ({"mode": "keep"}, THOUGHT, {}),
    ],
)
def test_a_response_that_calls_tools_is_one(modes, said, columns):
    turns = [*row(THOUGHT)["messages"], CALL]
    made = applied({**row(), "messages": turns}, **modes)
    assert made["messages"] == [turns[0], {"role": "assistant", "content": said}, CALL]
    assert {name: made[name] for name in ("teacher_thought", "think_loss") if name in made} == columns


@pytest.mark.parametrize("text", ["", "<think>\nTwo and two.\n</think>\n\n"])
def test_calls_alone_stay_alone(text):
    said = [{"role": "assistant", "content": text}] if text else []
    asked = {**row(None), "messages": [*row(None)["messages"], *said, CALL]}
    assert applied(asked, mode="non_thinking")["messages"] == [*row(None)["messages"], CALL]
    if not text:
        with pytest.raises(RowError, match="its response has no <think> block"):
            applied(asked, mode="thinking")


@pytest.mark.parametrize(("modes", "weight"), [({"mode": "thinking"}, 0.5), ({"mode": "non_thinking"}, 0)])
def test_the_loss_on_the_block_has_a_weight(modes, weight):
    assert applied(row(), **modes, think_loss=weight)["think_loss"] == weight
    assert "think_loss" not in applied(row(), **modes)
    assert "think_loss" not in applied(row(None), **modes, think_loss=weight)


def test_thoughts_of_earlier_turns_go_as_in_the_chat_template():
    history = [{"role": "user", "content": "1 + 1?"}, {"role": "assistant", "content": "<think>\nhm\n</think>\n\n2"}]
    given_row = row()
    given_row["messages"] = [*history, *given_row["messages"]]
    given_row["teacher_messages"] = [*history, {"role": "user", "content": "2 + 2?"}]
    made = applied(given_row, mode="thinking")
    assert [m["content"] for m in made["messages"]] == ["1 + 1?", "2", "2 + 2?", THOUGHT]
    assert [m["content"] for m in made["teacher_messages"]] == ["1 + 1?", "2", "2 + 2?"]


@pytest.mark.parametrize("question", ["2 + 2?", "2 + 2? /think", "2 + 2? /no_think "])
def test_switches_stand_at_the_end_of_the_last_user_turn(question):
    made = applied(row(question=question), mode="non_thinking", teacher="thinking", switch=True)
    assert made["messages"][0]["content"] == "2 + 2? /no_think"
    assert made["teacher_messages"][-1]["content"] == "2 + 2? /think"
    same = applied(row(question=question), mode="thinking", switch=True)
    assert same["messages"][0]["content"] == "2 + 2? /think"
    assert "teacher_messages" not in same


@pytest.mark.parametrize(
    ("given_row", "mode"),
    [
        (row(chat_template_kwargs={"enable_thinking": False}), "non_thinking"),
        (row("4", question="2 + 2? /think"), "thinking"),
        (row(question="2 + 2? /no_think"), "non_thinking"),
        (row(), "thinking"),
        (row("4"), "non_thinking"),
        (row("<think>\n\n</think>\n\n4"), "non_thinking"),
        (row(None), None),
    ],
)
def test_keep_takes_what_the_row_says_or_shows(given_row, mode):
    assert own_mode(given_row) == mode


def test_a_row_that_tells_nothing_stays_as_it_is():
    given_row = row(None)
    assert Modes().apply(given_row) == (given_row, None)


@pytest.mark.parametrize(
    ("value", "thinks"),
    [
        ("thinking", True),
        (True, True),
        (False, False),
        ("non_thinking", False),
        ("keep", True),
        ("true", True),  # as a .csv has it
        ("False", False),
    ],
)
def test_a_column_can_tell_the_mode(value, thinks):
    made = applied(row(columns={"m": value}), column="m")
    assert made["chat_template_kwargs"]["enable_thinking"] is thinks


@pytest.mark.parametrize(
    ("given_row", "modes", "reason"),
    [
        (row(columns={"m": "maybe"}), {"column": "m"}, "its column 'm' is 'maybe', not thinking"),
        (row(columns={"m": ["thinking"]}), {"column": "m"}, "its column 'm' is"),
        (row("4"), {"mode": "thinking"}, "has no <think> block"),
        (row("4"), {"mode": "non_thinking", "teacher": "thinking"}, "has no <think> block"),
        (row(question=[{"type": "image"}]), {"mode": "thinking", "switch": True}, "no user turn of text"),
        (row([{"type": "text", "text": "4"}]), {"mode": "thinking"}, "its response is not a text"),
    ],
)
def test_a_row_that_cannot_have_its_mode_says_why(given_row, modes, reason):
    with pytest.raises(RowError, match=reason):
        applied(given_row, **modes)


def test_a_row_without_a_thought_can_become_non_thinking():
    made = applied(row("4"), mode="non_thinking", teacher="thinking", without_thought="non_thinking")
    assert made["chat_template_kwargs"] == {"enable_thinking": False}
    assert not [name for name in made if name.startswith("teacher")]


def draw(seed: int, share: float, count: int = 2000) -> list[bool]:
    rows = (row(question=f"{number} + 2?", number=number) for number in range(count))
    made = rows_in_modes(rows, Modes(share=share, seed=seed), "modes", Report())
    return [one["chat_template_kwargs"]["enable_thinking"] for one in made]


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 10**6), st.sampled_from([0.0, 0.1, 0.5, 0.9, 1.0]))
def test_the_share_lies_within_its_binomial_interval(seed, share):
    thinking = sum(draw(seed, share))
    # 25 draws at 1e-6 each: a failure is no accident.
    low, high = binom.interval(1 - 1e-6, 2000, share)
    assert low <= thinking <= high


def test_a_draw_depends_on_seed_and_row_alone():
    first = draw(1, 0.5)
    assert draw(1, 0.5) == first != draw(2, 0.5)
    assert draw(1, 0.5, 100) == first[:100]


def test_the_report_has_the_shares_and_the_rows_left_out():
    report = Report()
    rows = [row(number=1), row("4", number=2), row("4", number=3)]
    made = list(rows_in_modes(rows, Modes("thinking"), "modes", report))
    assert len(made) == 1
    assert report.left_out["no thought"].rows == {"a.jsonl": [2, 3]}
    assert report.facts["modes"] == {"thinking": 1, "non_thinking": 0, "thinking_share": 1.0}


def test_inputs_are_not_changed():
    given_row = row(chat_template_kwargs={"a": 1})
    before = repr(given_row)
    applied(given_row, mode="non_thinking", teacher="thinking", switch=True)
    assert repr(given_row) == before
