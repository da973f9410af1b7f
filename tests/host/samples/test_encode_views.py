"""Both views of a sample as tokens, against what a chat template with Qwen3's rules renders."""

import json

import pytest

from tests.host.thinking_views import (
    BARE,
    CHAT_TEMPLATE,
    HINTED,
    IGNORED,
    QUESTION,
    THOUGHT,
    rendered,
    text_of,
    trained,
)
from tests.tiny_models import VOCABULARY, make_dense

pytestmark = pytest.mark.usefixtures("cpu_backend")
MODES = [(student, teacher) for student in (False, True) for teacher in (False, True)]


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    from swift.model import get_processor
    from swift.template import get_template

    folder = make_dense(tmp_path_factory.mktemp("views") / "model")
    processor = get_processor(str(folder), model_type="qwen3")
    made = get_template(processor, template_type="qwen3", loss_scale="last_round+ignore_empty_think")
    made.set_mode("train")
    made.tokenizer.chat_template = CHAT_TEMPLATE
    return made


def make_sample(response: str, modes=(False, False), ids=(), **columns):
    from swift_kd_plugin.host.samples.sample import KDSample

    sample = KDSample.from_row(
        {
            "messages": [*QUESTION, {"role": "assistant", "content": response}],
            "teacher_messages": HINTED,
            "chat_template_kwargs": {"enable_thinking": modes[0]},
            "teacher_chat_template_kwargs": {"enable_thinking": modes[1]},
            **columns,
        }
    )
    if ids:
        sample.response_token_ids, sample.add_eos = list(ids), False
    return sample


def encode(sample, template):
    from swift_kd_plugin.host.samples.encode_views import encode_views

    (student,), (teacher,) = encode_views([sample], template)
    return student, teacher


@pytest.mark.parametrize("modes", MODES)
@pytest.mark.parametrize("response", [BARE, THOUGHT])
def test_a_response_of_the_dataset_is_rendered_as_the_chat_template_does(template, modes, response):
    for view, messages, mode in zip(
        encode(make_sample(response, modes), template), (QUESTION, HINTED), modes, strict=True
    ):
        whole = [*messages, {"role": "assistant", "content": response}]
        assert text_of(template, view["input_ids"]) == text_of(template, rendered(template, whole, mode))
        assert text_of(template, trained(view)) == response + "<|im_end|>\n"


CALL = {"name": "add", "arguments": {"x": 2}}


@pytest.mark.parametrize("said", ["", BARE])
def test_a_response_that_calls_tools_is_the_same_in_both_views(template, said):
    sample = make_sample(said)
    sample.messages.append({"role": "tool_call", "content": json.dumps(CALL)})
    student, teacher = encode(sample, template)
    assert trained(student) == trained(teacher)
    assert text_of(template, trained(student)).startswith(said or "<tool_call>")
    assert f"<tool_call>\n{json.dumps(CALL)}\n</tool_call>" in text_of(template, trained(student))
    assert "Add them." in text_of(template, teacher["input_ids"])


# A student without thinking samples behind the empty block of its prompt; one with thinking writes its own block, or
# skips it.
SAMPLED = [(BARE, modes) for modes in MODES] + [(THOUGHT, modes) for modes in MODES if modes[0]]


@pytest.mark.parametrize(("response", "modes"), SAMPLED)
def test_sampled_ids_stay_as_they_are_in_every_mode(template, response, modes):
    ids = template.tokenizer(response + "<|im_end|>", add_special_tokens=False)["input_ids"]
    student, teacher = encode(make_sample(response, modes, ids), template)
    assert trained(student) == trained(teacher) == ids
    for view, messages, mode in zip((student, teacher), (QUESTION, HINTED), modes, strict=True):
        prompt = template.tokenizer.apply_chat_template(
            messages, enable_thinking=modes[0], tokenize=False, add_generation_prompt=True
        )
        assert text_of(template, view["input_ids"]) == prompt + response + "<|im_end|>"
        if response == THOUGHT or not modes[0]:  # the chat template knows no turn without a think block
            whole = rendered(template, [*messages, {"role": "assistant", "content": response}], mode)
            assert text_of(template, view["input_ids"]) + "\n" == text_of(template, whole)


@pytest.mark.parametrize("modes", MODES)
def test_sampled_ids_are_never_tokenised_anew(template, modes):
    tokenizer = template.tokenizer
    apart = [tokenizer.convert_tokens_to_ids(letter) for letter in "answer"]
    assert tokenizer("answer")["input_ids"] != apart
    student, teacher = encode(make_sample("answer", modes, apart), template)
    assert trained(student) == trained(teacher) == apart


def test_masked_tokens_of_a_rollout_are_masked_in_both_views(template):
    sample = make_sample(BARE, ids=[20, 21, 22])
    sample.response_loss_mask = [1, 0, 1]
    assert [trained(view) for view in encode(sample, template)] == [[20, 22], [20, 22]]


def test_encoding_changes_no_sample(template):
    sample = make_sample(BARE, ids=[20, 21, 22])
    first = encode(sample, template)
    assert encode(sample, template) == first
    assert sample.messages[-1]["content"] == BARE
    assert sample.response_token_ids == [20, 21, 22]


def test_without_a_view_there_is_no_teacher(template):
    from swift_kd_plugin.host.samples.encode_views import encode_views
    from swift_kd_plugin.host.samples.sample import KDSample

    plain = {"messages": [*QUESTION, {"role": "assistant", "content": BARE}]}
    student, teacher = encode_views([KDSample.from_row(plain)] * 2, template)
    assert len(student) == 2
    assert teacher is None


def test_in_a_mixed_batch_a_sample_without_a_view_has_the_students(template):
    from swift_kd_plugin.host.samples.encode_views import encode_views
    from swift_kd_plugin.host.samples.sample import KDSample

    plain = KDSample.from_row({"messages": [*QUESTION, {"role": "assistant", "content": BARE}]})
    student, teacher = encode_views([plain, make_sample(BARE)], template)
    assert teacher[0] == student[0]
    assert teacher[0] is not student[0]
    assert not any(teacher[0][key] is student[0][key] for key in ("input_ids", "labels"))
    assert len(teacher[1]["input_ids"]) > len(student[1]["input_ids"])


@pytest.mark.parametrize("ids", [(), (20, 21)])
def test_the_teacher_has_tools_of_its_own(template, ids):
    tool = {"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {}}}}
    sample = make_sample(BARE, ids=ids, teacher_messages=None, teacher_tools=[tool])
    student, teacher = encode(sample, template)
    assert '"add"' in text_of(template, teacher["input_ids"])
    assert '"add"' not in text_of(template, student["input_ids"])
    assert trained(student) == trained(teacher)
    student, teacher = encode(
        make_sample(BARE, ids=ids, teacher_messages=None, tools=[tool], teacher_tools=[]), template
    )
    assert '"add"' in text_of(template, student["input_ids"])
    assert '"add"' not in text_of(template, teacher["input_ids"])


def test_a_server_is_asked_with_the_teachers_columns(template):
    from swift_kd_plugin.host.samples.encode_views import teacher_requests

    tool = {"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {}}}}
    plain = make_sample(BARE, teacher_tools=None, teacher_chat_template_kwargs=None)
    samples = [make_sample(BARE, (False, True), teacher_tools=[tool]), plain]
    for sample in samples:
        sample.build_teacher_view()
    own, shared = teacher_requests(samples, template)
    assert (own.tools, own.chat_template_kwargs) == ([tool], {"enable_thinking": True})
    assert (shared.tools, shared.chat_template_kwargs) == (None, {"enable_thinking": False})


def test_several_sampled_turns_are_refused_beside_teacher_messages(template):
    with pytest.raises(ValueError, match=r"q\.jsonl, line 3 has 2 sampled turns"):
        encode(make_sample(BARE, ids=[[20], [21]], dataset="/data/q.jsonl", kd_row=3), template)


@pytest.mark.parametrize("strategy", ["left", "right"])
def test_the_first_position_never_has_a_label(template, strategy):
    # It has no prediction; ms-swift's shift by one would move its label behind the last token.
    template.max_length, template.truncation_strategy = 4, strategy
    try:
        row = {"messages": [*QUESTION, {"role": "assistant", "content": "1 2 3 4 5 6 7 8"}]}
        view = template.encode(row)
    finally:
        template.max_length, template.truncation_strategy = None, "raise"
    assert view["labels"][0] == IGNORED
    assert max(view["input_ids"]) < VOCABULARY
