"""Thoughts as parts of a content, as Anthropic's and Mistral's APIs give them."""

import pytest

from swift_kd_plugin.data.rows import RowError
from swift_kd_plugin.data.turns import to_turns

ASKED = {"role": "user", "content": "q"}
THOUGHT, TEXT = {"type": "thinking", "thinking": "hm"}, {"type": "text", "text": "a"}


def answer(*parts: dict, **keys) -> str:
    return to_turns([ASKED, {"role": "assistant", "content": list(parts), **keys}])[1]["content"]


def test_a_thought_in_front_of_the_answer_is_the_turns_thought():
    expected = "<think>\nhm\n</think>\n\na"
    assert answer(THOUGHT, TEXT) == expected
    assert answer({**THOUGHT, "signature": "x"}, TEXT) == expected
    assert answer({"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]}, TEXT) == expected
    assert answer({"type": "reasoning", "text": "hm"}, TEXT) == expected
    assert answer(THOUGHT, TEXT, reasoning_content="hm") == expected
    assert answer(THOUGHT, {"type": "thinking", "thinking": "so"}, TEXT) == "<think>\nhm\nso\n</think>\n\na"
    assert answer({"type": "thinking", "thinking": ""}, TEXT) == "a"


@pytest.mark.parametrize(
    ("parts", "keys", "said"),
    [
        ((TEXT, THOUGHT, TEXT), {}, r"turn 2 \(assistant\) thinks behind a part that it says"),
        (
            ({"type": "thinking", "data": "x"}, TEXT),
            {},
            r"part 1 of turn 2 \(assistant\) is a thought without its text",
        ),
        ((THOUGHT, TEXT), {"reasoning": "other"}, "which differ; keep one of them"),
        ((THOUGHT,), {}, "and no content"),
        (({"type": "redacted_thinking", "data": "x"}, TEXT), {}, "has the type 'redacted_thinking'"),
    ],
)
def test_other_thoughts_are_refused(parts, keys, said):
    with pytest.raises(RowError, match=said):
        answer(*parts, **keys)


def test_a_user_has_no_thoughts():
    with pytest.raises(RowError, match="has the type 'thinking'"):
        to_turns([{"role": "user", "content": [THOUGHT, TEXT]}])
