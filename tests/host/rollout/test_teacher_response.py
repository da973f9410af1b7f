"""A response that the teacher wrote, in its mode, becomes the one that both views share."""

import pytest

from tests.host.thinking_views import (
    BARE,
    EMPTY,
    QUESTION,
    STOP,
    THOUGHT,
    encode,
    make_sample,
    prompt,
    text_of,
    tokens,
    trained,
)

pytestmark = pytest.mark.usefixtures("cpu_backend")
BOOK = {"role": "system", "content": "Two and two make four."}
IN_PLACE = THOUGHT.removesuffix(BARE)


def write(template, text, student=False, teacher=False, reason="stop", stop=STOP, **columns):
    """The sample after the teacher wrote `text` in its mode."""
    from swift_kd_plugin.host.rollout.teacher_response import ask_teacher, take_teacher_response

    sample = make_sample("given", chat_template_kwargs={"enable_thinking": student}, **columns)
    if teacher != student:
        sample.teacher_chat_template_kwargs = {"enable_thinking": teacher}
    answer = ask_teacher(sample).answered(tokens(template, text + stop), text, reason)
    sample.written_by = "teacher"
    taken = take_teacher_response(sample, answer, template)
    assert sample.messages[-1]["content"] == "given"
    return taken


def both(template, sample) -> tuple[str, str]:
    """Both views as text; the trained ids are the same."""
    (student,), teacher = encode(template, sample)
    (teacher,) = teacher or [student]
    assert trained(student) == trained(teacher)
    return text_of(template, student["input_ids"]), text_of(template, teacher["input_ids"])


def test_it_is_asked_in_its_own_view(template):
    from swift_kd_plugin.host.rollout.teacher_response import ask_teacher

    sample = make_sample("given", teacher_tools=[{"name": "add"}], tools=[{"name": "no"}])
    sample.teacher_view = [BOOK, *QUESTION]
    sample.teacher_chat_template_kwargs = {"enable_thinking": True}
    asked = ask_teacher(sample)
    assert asked.messages == [BOOK, *QUESTION]
    assert asked.tools == [{"name": "add"}]
    assert asked.extra["chat_template_kwargs"] == {"enable_thinking": True}
    assert sample.messages[-1] == {"role": "assistant", "content": "given"}
    assert sample.tools == [{"name": "no"}]


def test_a_teacher_prompt_takes_the_place_of_the_last_user_turn(template):
    from swift_kd_plugin.host.rollout.teacher_response import ask_teacher

    sample = make_sample("given")
    sample.teacher_prompt = "Book. " + QUESTION[-1]["content"]
    assert ask_teacher(sample).messages == [*QUESTION[:-1], {"role": "user", "content": sample.teacher_prompt}]


@pytest.mark.parametrize(("thinks", "text"), [(False, BARE), (True, THOUGHT)])
def test_in_one_mode_the_ids_are_shared_as_they_are(template, thinks, text):
    sample = write(template, text, student=thinks, teacher=thinks)
    assert sample.written_ids == tokens(template, text + STOP)
    assert both(template, sample) == (prompt(template, thinks) + text + STOP,) * 2


def test_a_thought_is_the_teachers_alone(template):
    sample = write(template, THOUGHT, student=False, teacher=True)
    student, teacher = both(template, sample)
    assert student == prompt(template, False) + BARE + STOP
    assert teacher == prompt(template, True) + THOUGHT + STOP
    assert sample.messages[-1]["content"] == BARE


def test_a_thinking_teacher_may_skip_its_thought(template):
    sample = write(template, BARE, student=False, teacher=True)
    assert both(template, sample) == (prompt(template, False) + BARE + STOP,) * 2
    assert sample.teacher_thought is None
    assert not sample.left_out


def test_a_thought_that_was_cut_off_leaves_nothing(template):
    sample = write(template, "<think>\nTwo and", student=False, teacher=True, reason="length", stop="")
    assert sample.left_out
    assert sample.is_truncated


def test_an_answer_without_thought_brings_its_empty_block(template):
    sample = write(template, BARE, student=True, teacher=False)
    assert both(template, sample) == (prompt(template, True) + EMPTY + BARE + STOP,) * 2
    assert text_of(template, trained(encode(template, sample)[0][0])) == BARE + STOP


def test_a_prefix_that_opens_a_block_is_not_said_twice(make_template):
    template = make_template("qwen3_5")
    sample = write(template, "Two.\n</think>\n\n4", student=True, teacher=True)
    assert both(template, sample)[0].endswith("assistant\n<think>\nTwo.\n</think>\n\n4" + STOP)
    sample = write(template, "Two.\n</think>\n\n4", student=False, teacher=True)
    student, teacher = both(template, sample)
    assert student.endswith("assistant\n<think>\n\n</think>\n\n4" + STOP)
    assert teacher.endswith("assistant\n<think>\nTwo.\n</think>\n\n4" + STOP)


@pytest.mark.parametrize(
    ("truncated", "reason", "has_response", "result"),
    [
        ("keep", "length", True, "written"),
        ("mask", "length", True, "left out"),
        ("drop", "length", True, "given"),
        ("drop", "length", False, "left out"),
        ("mask", "stop", True, "written"),
        ("drop", "stop", True, "written"),
    ],
)
def test_what_becomes_of_a_truncated_response(template, truncated, reason, has_response, result):
    from swift_kd_plugin.host.rollout.write_responses import place_truncated

    given = make_sample("given")
    if not has_response:
        given.messages.pop()
    draft = given.answered([1, 2], "written", reason)
    draft.written_by = "student"
    found = place_truncated(draft, given, truncated)
    assert found is (given if result == "given" else draft)
    assert found.left_out == (result == "left out")
