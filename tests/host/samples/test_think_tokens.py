"""teacher_thought and think_loss on responses of the dataset, token by token and weight by weight."""

import pytest

from swift_kd_plugin.errors import KDError
from tests.host.thinking_views import (
    BARE,
    EMPTY,
    END,
    HINTED,
    IGNORED,
    OTHER,
    OWN_BLOCK,
    QUESTION,
    THOUGHT,
    encode,
    make_sample,
    rendered,
    text_of,
    tokens,
    trained,
    weights,
)

pytestmark = pytest.mark.usefixtures("cpu_backend")


def encode_student(template, response, **columns):
    return encode(template, make_sample(response, **columns))[0][0]


def test_stock_drops_the_weight_of_a_message(make_template):
    """Where the loss_scale class knows 0 and 1 only, as all do by default; so a weight cannot be given this way."""
    row = {"messages": [*QUESTION, {"role": "assistant", "content": BARE, "loss_scale": 0.5}]}
    assert "loss_scale" not in make_template().encode(row)
    assert 0.5 in make_template(is_binary_loss_scale=False).encode(row)["loss_scale"]


@pytest.mark.parametrize("view", [None, HINTED])
@pytest.mark.parametrize("thought", ["", OTHER])
@pytest.mark.parametrize("response", [BARE, THOUGHT])
def test_each_side_has_its_think_block_around_one_answer(template, response, thought, view):
    (student,), (teacher,) = encode(template, make_sample(response, teacher_thought=thought, teacher_messages=view))
    of_teacher = f"<think>\n{thought}\n</think>\n\n{BARE}"
    for encoded, before, text in ((student, QUESTION, response), (teacher, view or QUESTION, of_teacher)):
        whole = rendered(template, [*before, {"role": "assistant", "content": text}], True)
        assert encoded["input_ids"] == whole
        assert trained(encoded) == tokens(template, BARE + END)
        assert encoded["labels"][-len(trained(encoded)) :] == trained(encoded)


def test_newlines_around_a_thought_do_not_count(template):
    _, (teacher,) = encode(template, make_sample(BARE, teacher_thought=f"\n{OTHER}\n\n"))
    assert f"<think>\n{OTHER}\n</think>\n\n{BARE}" in text_of(template, teacher["input_ids"])
    _, (teacher,) = encode(template, make_sample(BARE, teacher_thought=" \n"))
    assert EMPTY + BARE in text_of(template, teacher["input_ids"])


@pytest.mark.parametrize(
    ("weight", "of_block"), [(None, None), (1, None), (1.0, None), (0.5, 0.5), (0.125, 0.125), (0, None)]
)
@pytest.mark.parametrize(("response", "block"), [(THOUGHT, OWN_BLOCK), (BARE, EMPTY)])
def test_the_block_has_its_weight_in_both_views(template, response, block, weight, of_block):
    columns = {"teacher_messages": HINTED, "think_loss": weight}
    (student,), (teacher,) = encode(template, make_sample(response, **columns))
    (today,), (todays_teacher,) = encode(template, make_sample(response, teacher_messages=HINTED))
    count, rest = len(tokens(template, block)), len(tokens(template, BARE + END))
    for view, as_today in ((student, today), (teacher, todays_teacher)):
        assert view["input_ids"] == as_today["input_ids"]
        before = len(view["input_ids"]) - count - rest
        if weight == 0:
            assert view["labels"] == [IGNORED] * (before + count) + tokens(template, BARE + END)
        else:
            assert view["labels"] == as_today["labels"]
            assert view["labels"] == [IGNORED] * before + tokens(template, block + BARE + END)
        if of_block is None:
            assert "loss_scale" not in view
        else:
            assert view["loss_scale"] == [0.0] * before + [of_block] * count + [1.0] * rest


ODD = ["\n4", "\n\n\n 4", " 4", "", "<think>a</think>4", "a\n</think>\n\n4", "Say </think> to end.", f"{EMPTY}4"]
ODD += ["<think>\nTwo and", "\n<think>a</think>4"]


@pytest.mark.parametrize("weight", [0, 0.5])
@pytest.mark.parametrize("response", [*ODD, BARE, THOUGHT])
@pytest.mark.parametrize("kind", ["qwen3", "qwen2_5", "qwen3_thinking"])
def test_a_weight_changes_no_token(make_template, kind, response, weight):
    template = make_template(kind)
    today = encode_student(template, response)["input_ids"]
    assert encode_student(template, response, think_loss=weight)["input_ids"] == today


@pytest.mark.parametrize(
    ("loss_scale", "response", "expected"),
    [
        ("default", BARE, EMPTY + BARE),
        ("default+ignore_empty_think", BARE, BARE),
        ("last_round+ignore_empty_think", f"{EMPTY}{BARE}", BARE),
        ("last_round+ignore_empty_think", THOUGHT, THOUGHT),
        ("ignore_think_prefix", THOUGHT, THOUGHT.removeprefix("<think>\n")),
    ],
)
def test_what_loss_scale_leaves_out_stays_out(make_template, loss_scale, response, expected):
    template = make_template(loss_scale=loss_scale)
    assert text_of(template, trained(encode_student(template, response))) == expected + END
    half = encode_student(template, response, think_loss=0.5)
    assert text_of(template, trained(half)) == expected + END
    in_block = len(trained(half)) - len(tokens(template, BARE + END))
    assert weights({"loss_scale": [1.0] * len(half["labels"]), **half}) == [0.5] * in_block + [1.0] * (
        len(trained(half)) - in_block
    )
    without = encode_student(template, response, think_loss=0)
    assert text_of(template, trained(without)) == BARE + END


def test_the_weights_of_a_loss_scale_class_are_multiplied(make_template):
    template = make_template(loss_scale="hermes", is_binary_loss_scale=False)
    response = '<think>\nAsk.\n</think>\n\n<tool_call>\n{"name": "add"}\n</tool_call>'
    today = encode_student(template, response)
    half = encode_student(template, response, think_loss=0.5)
    count = len(tokens(template, "<think>\nAsk.\n</think>\n\n"))
    assert weights(half)[:count] == [0.5] * count
    assert weights(half)[count:] == weights(today)[count:]
    assert 2.0 in weights(half)


def test_a_weight_of_the_response_is_multiplied(make_template):
    template = make_template(is_binary_loss_scale=False)
    sample = make_sample(THOUGHT, think_loss=0.5)
    sample.messages[-1]["loss_scale"] = 0.5
    (view,), _ = encode(template, sample)
    count = len(tokens(template, OWN_BLOCK))
    assert weights(view)[: count + 1] == [0.25] * count + [0.5]


def test_a_response_that_is_not_trained_stays_so(template):
    for weight in (None, 0, 0.5):
        sample = make_sample(THOUGHT, think_loss=weight)
        sample.messages[-1]["loss"] = False
        (view,), _ = encode(template, sample)
        assert trained(view) == []
        assert "loss_scale" not in view


@pytest.mark.parametrize("loss_scale", ["default", "last_round"])
def test_only_the_last_turn_counts(make_template, loss_scale):
    template = make_template(loss_scale=loss_scale)
    before = [*QUESTION, {"role": "assistant", "content": THOUGHT}, {"role": "user", "content": "And 3 plus 1?"}]
    today, none, half = (
        encode_student(template, THOUGHT, before=before, think_loss=weight) for weight in (None, 0, 0.5)
    )
    assert today["input_ids"] == none["input_ids"] == half["input_ids"]
    count = len(tokens(template, OWN_BLOCK))
    first = len(today["labels"]) - len(tokens(template, OWN_BLOCK + BARE + END))
    assert none["labels"][:first] == today["labels"][:first]
    assert none["labels"][first:] == [IGNORED] * count + today["labels"][first + count :]
    expected = [float(label != IGNORED) for label in today["labels"]]
    expected[first : first + count] = [0.5] * count
    assert half["loss_scale"] == expected
    (student,), (teacher,) = encode(template, make_sample(THOUGHT, before=before, teacher_thought=OTHER))
    assert trained(student) == trained(teacher) == trained(none)
    assert text_of(template, teacher["input_ids"]).count(OTHER) == 1


def test_a_turn_of_several_messages_has_its_block_at_the_start(template):
    sample = make_sample("two.", before=[*QUESTION, {"role": "assistant", "content": OWN_BLOCK + "One, "}])
    sample.think_loss = 0
    assert text_of(template, trained(encode(template, sample)[0][0])) == "One, two." + END
    call = {"role": "tool_call", "content": '{"name": "add", "arguments": {"a": 1}}'}
    for before in ([*QUESTION, {"role": "assistant", "content": OWN_BLOCK + "Ask."}], QUESTION):
        sample.messages = [*before, call]
        sample.think_loss = None
        (today,), _ = encode(template, sample)
        sample.think_loss = 0
        (view,), _ = encode(template, sample)
        assert view["input_ids"] == today["input_ids"]
        assert text_of(template, trained(view)) == text_of(template, trained(today)).partition("</think>\n\n")[2]


@pytest.mark.parametrize("kind", ["qwen2_5", "llama3"])
def test_without_think_blocks_a_plain_response_stays_as_it_is(make_template, kind):
    template = make_template(kind)
    today = encode_student(template, BARE)
    for weight in (0, 0.5):
        assert encode_student(template, BARE, think_loss=weight) == today
    thinking = encode_student(template, THOUGHT, think_loss=0)
    assert trained(thinking) == trained(today)
    (student,), (teacher,) = encode(template, make_sample(BARE, teacher_thought=OTHER))
    assert student == today
    assert trained(teacher) == trained(today)
    assert f"<think>\n{OTHER}\n</think>\n\n{BARE}" in text_of(template, teacher["input_ids"])
    (student,), (teacher,) = encode(template, make_sample(THOUGHT, teacher_thought=""))
    assert OWN_BLOCK in text_of(template, student["input_ids"])
    assert teacher == today


def test_other_forms_of_block_are_kept(make_template):
    glm, deepseek = make_template("glm4_5"), make_template("deepseek_v3_1")
    for template, block, empty in (
        (glm, f"<think>{OTHER}</think>\n", "<think></think>\n"),
        (deepseek, f"<think>{OTHER}</think>", "</think>"),
    ):
        (student,), (teacher,) = encode(template, make_sample(BARE, teacher_thought=OTHER))
        assert block + BARE in text_of(template, teacher["input_ids"])
        assert empty + BARE in text_of(template, student["input_ids"])
        assert trained(student) == trained(teacher)


def test_templates_that_write_blocks_otherwise_are_refused(make_template):
    foreign = make_template()
    foreign.template_meta.non_thinking_prefix = "<|channel>thought\n<channel|>"
    for template, reason in (
        (foreign, "marks thoughts otherwise than with <think> and </think>"),
        (make_template("gpt_oss"), "cannot take the think block apart from the answer"),
        (make_template("ernie_thinking"), "cannot take the think block apart"),
        (make_template(template_backend="jinja"), r"template qwen3 \(jinja\) cannot take the think block apart"),
    ):
        for columns in ({"think_loss": 0}, {"teacher_thought": OTHER}):
            with pytest.raises(ValueError, match=reason):
                encode(template, make_sample(BARE, **columns))
        encode(template, make_sample(BARE, think_loss=1))


def mixed_views(template):
    samples = [
        make_sample(BARE),
        make_sample(THOUGHT, think_loss=0.5),
        make_sample(THOUGHT, think_loss=0),
        make_sample(BARE, teacher_thought=OTHER),
    ]
    return encode(template, *samples)


def test_all_samples_of_a_micro_batch_have_weights_if_one_has(template):
    student, teacher = mixed_views(template)
    for view in student + teacher:
        assert len(view["loss_scale"]) == len(view["labels"])
        assert [weight > 0 for weight in view["loss_scale"]] == [label != IGNORED for label in view["labels"]]
    assert [set(weights(view)) for view in student] == [{1.0}, {0.5, 1.0}, {1.0}, {1.0}]
    student, teacher = encode(template, make_sample(BARE), make_sample(BARE, teacher_thought=OTHER))
    assert not any("loss_scale" in view for view in student + teacher)


def test_they_are_collated_padded_and_packed(make_template):
    template = make_template()
    views, _ = mixed_views(template)
    scales = [view["loss_scale"] for view in views]
    longest = max(map(len, scales))
    padded = template.data_collator([dict(view) for view in views])
    assert padded["loss_scale"].tolist() == [[*scale, *[0.0] * (longest - len(scale))] for scale in scales]
    template.padding_free = True
    packed = template.data_collator([dict(view) for view in views])
    assert packed["loss_scale"].tolist() == [[weight for scale in scales for weight in scale]]
    assert packed["labels"].shape == packed["loss_scale"].shape


def test_position_weights_are_multiplied(template):
    from swift_kd_plugin.host.samples.responses import weigh_positions

    views = [encode_student(template, THOUGHT, think_loss=0.5)]
    weigh_positions(views, 0.0)
    count, rest = len(tokens(template, OWN_BLOCK)), len(tokens(template, BARE + END))
    fall = [1 - index / (count + rest - 1) for index in range(count + rest)]
    expected = [weight * (0.5 if index < count else 1.0) for index, weight in enumerate(fall)]
    assert weights(views[0]) == pytest.approx(expected)


def test_encoding_changes_no_sample(template):
    for columns in ({"think_loss": 0.5}, {"teacher_thought": OTHER}):
        sample = make_sample(THOUGHT, **columns)
        assert encode(template, sample) == encode(template, sample)
        assert sample.messages == [*QUESTION, {"role": "assistant", "content": THOUGHT}]


@pytest.mark.parametrize(
    ("columns", "server", "sentence"),
    [
        ({"think_loss": 0.5}, False, "has think_loss 0.5, and ms-swift's own loss has no weights"),
        ({"teacher_thought": ""}, True, "ms-swift's own loss does not send to a teacher server"),
        ({"teacher_thought": ""}, False, None),
        ({"think_loss": 0}, True, None),
        ({}, True, None),
    ],
)
def test_what_stocks_loss_would_ignore_is_refused(columns, server, sentence):
    from swift_kd_plugin.host.samples.think_tokens import refuse_stock_loss

    samples = [make_sample(BARE), make_sample(BARE, **columns)]
    if sentence is None:
        refuse_stock_loss(samples, server)
        return
    with pytest.raises(KDError, match=sentence):
        refuse_stock_loss(samples, server)


def test_stocks_loss_has_no_weight_of_a_turn():
    from swift_kd_plugin.host.samples.think_tokens import refuse_stock_loss

    sample = make_sample(BARE)
    for weight in (0, 1, None):
        sample.messages[-1]["loss_scale"] = weight
        refuse_stock_loss([sample], False)
    sample.messages[-1]["loss_scale"] = 0.5
    with pytest.raises(KDError, match="has a turn with a loss_scale, and ms-swift's own loss has no weights"):
        refuse_stock_loss([sample], False)


def test_a_server_is_sent_the_teachers_thought_as_ids(template):
    from types import SimpleNamespace

    from swift_kd_plugin.host.teacher.teacher_server import _prepare, _sequence

    samples = [make_sample(BARE, teacher_thought=OTHER)]
    _, teacher = encode(template, *samples)
    sequence = _sequence(teacher[0])
    assert text_of(template, sequence.ids).endswith(f"<think>\n{OTHER}\n</think>\n\n{BARE}{END}")
    assert [sequence.ids[position] for position in sequence.positions] == tokens(template, BARE + END)
    by_ids = SimpleNamespace(needs_messages=False, name="http://a")
    assert _prepare(by_ids, samples, [sequence], template) == [sequence]
    templating = SimpleNamespace(needs_messages=True, name="http://a")
    with pytest.raises(KDError, match="teacher_thought, which cannot go to the teacher server http://a, because it"):
        _prepare(templating, samples, [sequence], template)


def test_a_response_that_is_not_text_alone_is_refused(template):
    parts = [{"type": "text", "text": THOUGHT}, {"type": "image", "image": "a.png"}]
    with pytest.raises(KDError, match="a response that is not text alone"):
        encode(template, make_sample(parts, think_loss=0))
