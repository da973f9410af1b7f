import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swift_kd_plugin.data.rows import RowError
from swift_kd_plugin.generation.tasks import PromptTask, own_answer, shown_mode, tasks_of, write_response
from tests.generation.row_factories import make_row

THOUGHT = "<think>\nTwo and two.\n</think>\n\n4"
OFF, ON = {"enable_thinking": False}, {"enable_thinking": True}


def test_the_teacher_writes_from_its_own_view():
    view = [{"role": "system", "content": "B2"}, {"role": "user", "content": "say B"}]
    own = {"teacher_messages": view, "teacher_tools": [], "teacher_chat_template_kwargs": ON}
    row = make_row(response="old", tools=[{"name": "f"}], chat_template_kwargs=OFF, **own)
    prompt = PromptTask(0, row).prompt(1)
    assert (prompt.messages, prompt.tools, prompt.chat_template_kwargs) == (view, None, ON)
    written = write_response(PromptTask(0, row), THOUGHT)
    assert written["messages"] == [*row["messages"][:-1], {"role": "assistant", "content": "4"}]
    assert written["teacher_thought"] == "Two and two."
    assert {key: written[key] for key in own} == own


@pytest.mark.parametrize(
    ("weights", "kept"),
    [
        ({"loss": True, "loss_scale": 0.5}, {"loss_scale": 0.5}),
        ({}, {}),
        # That the old answer is not to be trained says nothing of the new one.
        ({"loss": False}, {}),
        ({"loss_scale": 0.0}, {}),
    ],
)
def test_a_response_has_the_weight_of_the_one_in_whose_place_it_stands(weights, kept):
    row = make_row(response="old")
    row["messages"][-1] |= weights
    expected = {"role": "assistant", "content": "new", **kept}
    assert write_response(PromptTask(0, row), "new")["messages"][-1] == expected


WAIT = {"role": "assistant", "content": "Wait."}


@pytest.mark.parametrize("said", [[], [WAIT], [WAIT, WAIT]])
def test_a_response_that_calls_tools_is_asked_for_anew_and_replaced(said):
    calls = [{"role": "tool_call", "content": {"name": name, "arguments": {}}} for name in ("f", "g")]
    row = make_row()
    question = row["messages"]
    row["messages"] = [*question, *said, *calls]
    assert PromptTask(0, row).prompt(1).messages == question
    assert own_answer(row) == "Wait." * len(said) + "".join(json.dumps(call["content"]) for call in calls)
    assert write_response(PromptTask(0, row), "4")["messages"] == [*question, {"role": "assistant", "content": "4"}]


def test_without_a_view_of_its_own_it_sees_the_students():
    row = make_row(response="old", tools=[{"name": "f"}], chat_template_kwargs=OFF)
    prompt = PromptTask(0, row).prompt(1)
    assert (prompt.messages, prompt.tools, prompt.chat_template_kwargs) == (row["messages"][:1], row["tools"], OFF)


@pytest.mark.parametrize(
    ("student", "teacher", "text", "response", "thought"),
    [
        (None, None, THOUGHT, THOUGHT, None),
        (None, None, "4", "4", None),
        (ON, None, THOUGHT, THOUGHT, None),
        (OFF, None, "4", "4", None),
        (OFF, None, "<think>\n\n</think>\n\n4", "4", None),
        (OFF, ON, THOUGHT, "4", "Two and two."),
        (ON, OFF, "4", "4", ""),
        (ON, ON, THOUGHT, THOUGHT, None),
    ],
)
def test_thoughts_go_where_the_modes_say(student, teacher, text, response, thought):
    settings = {"chat_template_kwargs": student, "teacher_chat_template_kwargs": teacher}
    task = PromptTask(0, make_row(**{name: value for name, value in settings.items() if value}))
    row = write_response(task, text)
    assert row["messages"][-1]["content"] == response
    assert row.get("teacher_thought") == thought
    assert shown_mode(task, row) == ("thinking" if "Two" in text else "non_thinking")


@pytest.mark.parametrize(
    ("settings", "text", "kind"),
    [
        (OFF, THOUGHT, "think block"),
        (ON, "4", "think block"),
        (ON, "<think>\nTwo and", "think"),
        (None, "", "empty"),
        (ON, "<think>\nTwo.\n</think>\n\n", "empty"),
        (None, "</think>4", "think"),
    ],
)
def test_texts_that_cannot_be_trained_on_are_refused(settings, text, kind):
    with pytest.raises(RowError) as error:
        write_response(PromptTask(0, make_row(**({"chat_template_kwargs": settings} if settings else {}))), text)
    assert error.value.kind == kind


def test_modes_are_set_for_both_sides():
    row = make_row(teacher_chat_template_kwargs={"enable_thinking": True, "x": 1})
    (as_it_is,) = tasks_of(row, 3, "row")
    assert (as_it_is.index, as_it_is.row) == (3, row)
    on, off = tasks_of(row, 3, "both")
    assert (on.index, off.index, on.mode, off.mode) == (6, 7, "thinking", "non_thinking")
    assert off.row["chat_template_kwargs"] == OFF
    assert off.row["teacher_chat_template_kwargs"] == {"enable_thinking": False, "x": 1}
    assert row == make_row(teacher_chat_template_kwargs={"enable_thinking": True, "x": 1})


def test_seeds_depend_on_what_is_asked_and_the_run_alone():
    row = make_row()
    seeds = {
        "first": PromptTask(0, row).prompt(1).seed,
        "elsewhere": PromptTask(5, {**row, "kd_row": 9, "columns": {"a": 1}}).prompt(1).seed,
        "run": PromptTask(0, row).prompt(2).seed,
        "mode": next(tasks_of(row, 0, "on")).prompt(1).seed,
        "question": PromptTask(0, make_row("3?")).prompt(1).seed,
    }
    assert seeds["elsewhere"] == seeds["first"]
    assert len(set(seeds.values())) == 4


@given(st.text(st.characters(codec="utf-8"), min_size=1, max_size=30), st.integers())
def test_seeds_fit_into_json(question, seed):
    drawn = PromptTask(0, make_row(question)).prompt(seed).seed
    assert 0 <= drawn < 2**48
    assert json.loads(json.dumps(float(drawn))) == drawn


def test_images_are_given_as_paths_or_bytes():
    images = [{"path": "a.png", "bytes": None}, {"path": None, "bytes": b"png"}]
    assert PromptTask(0, make_row(images=images)).prompt(0).images == ["a.png", b"png"]
