"""Which turns of a row are trained, and rows of which none is."""

import pytest

from swift_kd_plugin.data.rows import RowError
from swift_kd_plugin.data.trained_turns import check_answered, turn_weights

CALL = {"role": "tool_call", "content": "{}"}
RESULT = {"role": "tool", "content": "12"}


def user(text="hi"):
    return {"role": "user", "content": text}


def says(**keys):
    return {"role": "assistant", "content": "yes", **keys}


@pytest.mark.quick
@pytest.mark.parametrize(
    ("messages", "strategy", "weights"),
    [
        ([user(), says(), user(), says()], "last_round", [0, 0, 0, 1]),
        ([user(), says(), user(), says()], "default", [0, 1, 0, 1]),
        ([user(), says(), user(), says()], "all", [1, 1, 1, 1]),
        ([user(), CALL, RESULT, says()], "last_round", [0, 0, 0, 1]),
        ([user(), CALL, RESULT, says(loss_scale=0.5)], "last_round+ignore_empty_think", [0, 0, 0, 0.5]),
        ([user(), says(loss=True), user(), says(loss=False)], "last_round", [0, 1, 0, 0]),
        ([user(), CALL, RESULT, says()], "hermes", [0, 1, 0, 1]),
    ],
)
def test_weights_of_turns(messages, strategy, weights):
    assert turn_weights(messages, strategy) == weights


@pytest.mark.quick
@pytest.mark.parametrize(
    ("messages", "strategy", "reason"),
    [
        ([user()], "default", "no response to distil"),
        ([user(), says(), user()], "last_round", "no response to distil"),
        ([user(), CALL, RESULT], "last_round", "no response to distil"),
        ([user(), CALL, RESULT, says(loss=False)], "last_round", "nothing of its response is trained"),
        ([user(), says(loss_scale=0)], "all", "nothing of its response is trained"),
    ],
)
def test_a_row_of_which_nothing_is_trained(messages, strategy, reason):
    with pytest.raises(RowError, match=reason):
        check_answered({"messages": messages}, strategy)


@pytest.mark.quick
@pytest.mark.parametrize(
    ("messages", "strategy"),
    [
        ([user(), says(), user()], "default"),
        ([user(), CALL, RESULT], "default"),
        ([user(), says(loss=True), user()], "last_round"),
        ([user(), CALL, RESULT, says()], "last_round"),
    ],
)
def test_a_row_of_which_something_is_trained(messages, strategy):
    check_answered({"messages": messages}, strategy)
