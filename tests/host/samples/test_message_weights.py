"""`loss` and `loss_scale` of a turn, token by token, under every strategy of --loss_scale."""

import pytest

from swift_kd_plugin.errors import KDError
from tests.host.thinking_views import BARE, EMPTY, END, HINTED, QUESTION, THOUGHT, encode, text_of, tokens, trained

pytestmark = pytest.mark.usefixtures("cpu_backend")
STRATEGIES = ("default", "last_round", "default+ignore_empty_think", "last_round+ignore_empty_think", "hermes")
FIRST, LAST = "It is 2.", BARE


def view_of(template, first=None, last=None, **columns):
    """The student's view of two rounds whose answers have the given keys."""
    from swift_kd_plugin.host.samples.sample import KDSample

    turns = [{"role": "user", "content": "1 plus 1?"}, {"role": "assistant", "content": FIRST} | (first or {})]
    turns += [*QUESTION, {"role": "assistant", "content": LAST} | (last or {})]
    return encode(template, KDSample.from_row({"messages": turns, **columns}))[0][0]


def weighted_text(template, view):
    """What is trained, in runs of one weight."""
    scale = view.get("loss_scale") or [1.0] * len(view["labels"])
    runs = []
    for label, weight in zip(view["labels"], scale, strict=True):
        if label < 0:
            continue
        if not runs or runs[-1][1] != weight:
            runs.append(([], weight))
        runs[-1][0].append(label)
    return [(text_of(template, ids), weight) for ids, weight in runs]


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("weight", [0.5, 2, 1])
def test_a_weight_counts_for_a_turn_and_its_end_and_leaves_the_rest_to_the_strategy(make_template, strategy, weight):
    template = make_template(loss_scale=strategy)
    plain, weighted = view_of(template), view_of(template, last={"loss_scale": weight})
    assert weighted["input_ids"] == plain["input_ids"]
    assert weighted["labels"] == plain["labels"]
    first = [] if "last_round" in strategy else [FIRST + END]
    if first and "ignore" not in strategy:
        first = [EMPTY + FIRST + END]
    last = LAST + END if "ignore" in strategy else EMPTY + LAST + END
    joined = [("".join([*first, last]), 1.0)] if weight == 1 else [*((text, 1.0) for text in first), (last, weight)]
    assert weighted_text(template, weighted) == joined
    assert ("loss_scale" in weighted) == (weight != 1)


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("off", [{"loss": False}, {"loss_scale": 0}])
def test_of_a_last_answer_that_is_off_nothing_is_trained(make_template, strategy, off):
    template = make_template(loss_scale=strategy)
    view = view_of(template, last=off)
    assert view["input_ids"] == view_of(template)["input_ids"]
    assert LAST not in text_of(template, trained(view))
    ends = trained(view).count(template.tokenizer.convert_tokens_to_ids("<|im_end|>"))
    assert ends == (0 if "last_round" in strategy else 1)


def test_an_answer_before_the_last_is_trained_where_it_says_so(make_template):
    template = make_template(loss_scale="last_round+ignore_empty_think")
    assert weighted_text(template, view_of(template, first={"loss": True}, last={"loss": False})) == [(FIRST + END, 1)]
    half = view_of(template, first={"loss": True, "loss_scale": 0.5})
    assert weighted_text(template, half) == [(FIRST + END, 0.5), (LAST + END, 1)]
    assert weighted_text(template, view_of(template, first={"loss_scale": 0.5})) == [(LAST + END, 1)]


def test_the_end_of_an_answer_before_the_last_has_its_weight(make_template):
    template = make_template(loss_scale="default+ignore_empty_think")
    view = view_of(template, first={"loss_scale": 0.25}, last={"loss_scale": 4})
    assert weighted_text(template, view) == [(FIRST + END, 0.25), (LAST + END, 4)]


@pytest.mark.parametrize(
    ("first", "weight"), [({"loss": False}, 0), ({"loss_scale": 0}, 0), ({"loss_scale": 0.5}, 0.5)]
)
def test_under_all_an_end_has_the_weight_of_its_answer(make_template, first, weight):
    template = make_template(loss_scale="all")
    plain, view = view_of(template), view_of(template, first=first)
    scale = view.get("loss_scale") or [float(label >= 0) for label in view["labels"]]
    other = [place for place, label in enumerate(plain["labels"]) if label >= 0 and scale[place] != 1]
    assert text_of(template, [view["input_ids"][place] for place in other]) == EMPTY + FIRST + END
    assert {scale[place] for place in other} == {weight}


def test_a_weight_multiplies_what_the_strategy_and_think_loss_give(make_template):
    template = make_template(loss_scale="hermes")
    call = {"role": "tool_call", "content": '{"name": "f", "arguments": {}}'}
    row = [*QUESTION, call, {"role": "tool", "content": "4"}, {"role": "assistant", "content": LAST}]
    from swift_kd_plugin.host.samples.sample import KDSample

    def encoded(weight):
        turns = [row[0], {**call, "loss_scale": weight}, *row[2:]]
        return encode(template, KDSample.from_row({"messages": turns}))[0][0]["loss_scale"]

    assert max(encoded(1)) == 2
    assert max(encoded(0.25)) == 1  # of the answer
    assert 0.5 in encoded(0.25)
    half = view_of(make_template(), last={"content": THOUGHT, "loss_scale": 0.5}, think_loss=0.5)
    assert [weight for _, weight in weighted_text(template, half)] == [0.25, 0.5]


def test_the_teacher_scores_the_same_tokens(template):
    from swift_kd_plugin.host.samples.sample import KDSample

    def views(**keys):
        messages = [*QUESTION, {"role": "assistant", "content": BARE, **keys}]
        (student,), (teacher,) = encode(template, KDSample.from_row({"messages": messages, "teacher_messages": HINTED}))
        return trained(student), trained(teacher)

    for off in ({"loss": False}, {"loss_scale": 0}):
        assert views(**off) == ([], [])
    assert views(loss_scale=0.5) == views()


@pytest.mark.parametrize("strategy", ["last_round", "default"])
@pytest.mark.parametrize("first", [{"loss": True}, {"loss": False}, {"loss_scale": 0.5}])
def test_the_teacher_has_the_weights_of_turns_that_both_see(make_template, strategy, first):
    from swift_kd_plugin.host.samples.sample import KDSample

    history = [{"role": "user", "content": "1 plus 1?"}, {"role": "assistant", "content": FIRST}, *QUESTION]
    turns = [history[0], {**history[1], **first}, *QUESTION, {"role": "assistant", "content": LAST}]
    row = {"messages": turns, "teacher_messages": [{"role": "system", "content": "a book"}, *history]}
    (student,), (teacher,) = encode(make_template(loss_scale=strategy), KDSample.from_row(row))
    assert trained(student) == trained(teacher)


def test_a_sampled_answer_has_no_weight_of_the_one_that_it_replaces(template):
    from swift_kd_plugin.host.samples.sample import KDSample

    row = {"messages": [*QUESTION, {"role": "assistant", "content": "bad", "loss": False}]}
    sample = KDSample.from_row(row).answered(tokens(template, BARE), BARE, "stop")
    assert text_of(template, trained(encode(template, sample)[0][0])).startswith(BARE)


def test_jinja_cannot_tell_turns_apart(make_template):
    with pytest.raises(KDError, match="--template_backend jinja cannot tell apart"):
        view_of(make_template(template_backend="jinja"), last={"loss": False})
