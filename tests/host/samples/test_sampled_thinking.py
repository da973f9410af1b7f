"""teacher_thought and think_loss on responses that the student sampled."""

import pytest

from tests.host.thinking_views import (
    BARE,
    END,
    IGNORED,
    OTHER,
    OWN_BLOCK,
    STOP,
    THOUGHT,
    encode,
    make_sample,
    prompt,
    text_of,
    tokens,
    trained,
    weights,
)
from tests.tiny_models import SPECIAL_TOKENS, make_tokenizer

pytestmark = pytest.mark.usefixtures("cpu_backend")


def make_sampled(template, response, nested=False, thinking=False, mask=None, **columns):
    """A sample whose response was sampled as `response` and the stop token, with or without thinking."""
    sample = make_sample(response, chat_template_kwargs={"enable_thinking": thinking}, **columns)
    ids = tokens(template, response + STOP)
    sample.response_token_ids, sample.add_eos = ([ids] if nested else ids), False
    if mask is not None:
        sample.response_loss_mask = [mask] if nested else mask
    return sample


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("weight", [None, 0, 0.5, 1])
def test_the_sampled_block_has_its_weight(template, nested, weight):
    sample = make_sampled(template, THOUGHT, nested, thinking=True, think_loss=weight, teacher_tools=[])
    count, rest = len(tokens(template, OWN_BLOCK)), len(tokens(template, BARE + STOP))
    for views in encode(template, sample):
        (view,) = views
        assert text_of(template, view["input_ids"]) == prompt(template, True) + THOUGHT + STOP
        before = len(view["labels"]) - count - rest
        ids = tokens(template, THOUGHT + STOP)
        assert view["labels"][:before] == [IGNORED] * before
        assert view["labels"][before:] == ([IGNORED] * count + ids[count:] if weight == 0 else ids)
        if weight == 0.5:
            assert view["loss_scale"] == [0.0] * before + [0.5] * count + [1.0] * rest
        else:
            assert "loss_scale" not in view


@pytest.mark.parametrize(
    ("response", "expected"),
    [
        ("<think>\nTwo and", ""),  # cut off at the length limit: all of it is thought
        (BARE, BARE + STOP),  # it skipped its thought
        ("<think>a</think>4", "4" + STOP),
        ("<think>a</think>\n4</think>", "4</think>" + STOP),
        ("<think>a</think>", STOP),
    ],
)
def test_blocks_of_other_shapes(template, response, expected):
    sample = make_sampled(template, response, thinking=True, think_loss=0)
    assert text_of(template, trained(encode(template, sample)[0][0])) == expected


def test_without_thinking_nothing_of_the_answer_is_a_block(template):
    sample = make_sampled(template, "Say </think> now.", think_loss=0)
    (view,), _ = encode(template, sample)
    assert text_of(template, trained(view)) == "Say </think> now." + STOP


def test_a_prefix_may_open_the_block(make_template):
    template = make_template("qwen3_5")
    sample = make_sampled(template, "Two.\n</think>\n\n4", thinking=True, think_loss=0)
    (view,), _ = encode(template, sample)
    assert text_of(template, view["input_ids"]).endswith("assistant\n<think>\nTwo.\n</think>\n\n4" + STOP)
    assert text_of(template, trained(view)) == "4" + STOP
    sample = make_sampled(template, "Two.", thinking=True, think_loss=0)
    assert trained(encode(template, sample)[0][0]) == []


@pytest.mark.parametrize("nested", [False, True])
def test_a_rollouts_mask_stays(template, nested):
    ids = tokens(template, THOUGHT + STOP)
    mask = [1] * len(ids)
    mask[2] = mask[-2] = 0
    sample = make_sampled(template, THOUGHT, nested, True, mask, think_loss=0.5)
    (view,), _ = encode(template, sample)
    assert trained(view) == [token for token, keep in zip(ids, mask, strict=True) if keep]
    count = len(tokens(template, OWN_BLOCK))
    assert weights(view) == [0.5] * (count - 1) + [1.0] * (len(ids) - count - 1)


@pytest.mark.parametrize("nested", [False, True])
def test_the_teacher_reads_its_thought_before_the_students_answer(template, nested):
    sample = make_sampled(template, BARE, nested, teacher_thought=OTHER)
    (student,), (teacher,) = encode(template, sample)
    assert text_of(template, student["input_ids"]) == prompt(template, False) + BARE + STOP
    in_its_place = f"<think>\n{OTHER}\n</think>\n\n"
    assert text_of(template, teacher["input_ids"]) == prompt(template, True) + in_its_place + BARE + STOP
    assert trained(student) == trained(teacher) == tokens(template, BARE + STOP)
    assert encode(template, sample) == ([student], [teacher])


@pytest.mark.parametrize(
    ("response", "thinking", "thought"), [(THOUGHT, True, OTHER), (BARE, True, OTHER), (BARE, False, "")]
)
def test_a_response_that_thinks_by_itself_is_scored_as_it_is(template, response, thinking, thought):
    sample = make_sampled(template, response, thinking=thinking, teacher_thought=thought)
    (student,), (teacher,) = encode(template, sample)
    assert teacher == student
    assert trained(student) == tokens(template, response + STOP)


def test_the_students_block_may_stand_masked_among_the_ids(template):
    empty = tokens(template, "<think>\n\n</think>\n\n")
    sample = make_sampled(template, BARE, teacher_thought=OTHER)
    plain = encode(template, sample)
    sample.response_token_ids = [[*empty, *sample.response_token_ids]]
    sample.response_loss_mask = [[0] * len(empty) + [1] * (len(sample.response_token_ids[0]) - len(empty))]
    assert encode(template, sample) == plain


def test_without_think_blocks_the_thought_is_put_in_front(make_template):
    template = make_template("qwen2_5")
    (student,), (teacher,) = encode(template, make_sampled(template, BARE, teacher_thought=OTHER, think_loss=0))
    assert text_of(template, student["input_ids"]).endswith("assistant\n" + BARE + STOP)
    assert text_of(template, teacher["input_ids"]).endswith(f"assistant\n<think>\n{OTHER}\n</think>\n\n{BARE}{STOP}")
    assert trained(student) == trained(teacher) == tokens(template, BARE + STOP)
    (student,), (teacher,) = encode(template, make_sampled(template, THOUGHT, teacher_thought=OTHER))
    assert teacher == student


@pytest.mark.parametrize("columns", [{"think_loss": 0}, {"think_loss": 0.5}, {"teacher_thought": OTHER}])
def test_several_sampled_turns_are_refused(template, columns):
    sample = make_sampled(template, BARE, kd_source="/data/q.jsonl", kd_row=3, **columns)
    sample.response_token_ids = [[20], [21]]
    with pytest.raises(ValueError, match=r"q\.jsonl, line 3 has 2 sampled turns, and teacher_thought and think_loss"):
        encode(template, sample)


def test_a_tokenizer_must_have_the_end_of_a_block(make_template):
    template = make_template()
    template.processor = make_tokenizer([token for token in SPECIAL_TOKENS if "think" not in token])
    sample = make_sampled(template, THOUGHT, thinking=True, think_loss=0, kd_source="q.jsonl", kd_row=3)
    with pytest.raises(ValueError, match=r"q\.jsonl, line 3 has think_loss 0, but the tokenizer has no token </think>"):
        encode(template, sample)
    bare = make_sampled(template, BARE, thinking=True, think_loss=0)
    assert text_of(template, trained(encode(template, bare)[0][0])) == BARE + STOP


def test_a_response_of_the_dataset_after_one_of_the_student(template):
    """--lmbda between 0 and 1 draws the source of each step anew, for the same rows."""
    (student,), (teacher,) = encode(template, make_sample(BARE, teacher_thought=OTHER))
    assert trained(student) == trained(teacher) == tokens(template, BARE + END)
