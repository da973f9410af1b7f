"""Thoughts that are parts of a turn's content, as Anthropic's and Mistral's APIs give them.

`[{"type": "thinking", "thinking": "..."}, {"type": "text", "text": "..."}]` is a turn with reasoning.
"""

from typing import Any

from swift_kd_plugin.data.rows import Message, RowError
from swift_kd_plugin.data.turn_keys import REASONING

THOUGHT_PARTS = ("thinking", "reasoning")
TEXTS = ("thinking", "reasoning", "text")


def with_thought_told(turn: Message, name: str) -> Message:
    """A turn of the assistant without its parts that are thoughts, which it has as one of REASONING instead.

    Raises:
        RowError: a thought stands behind what is said, or has no text.
    """
    key = "content" if "content" in turn else "value"
    parts = turn.get(key)
    count = len(parts) if isinstance(parts, list) else 0
    while count and not _is_thought(parts[count - 1]):
        count -= 1
    if not count:
        return turn
    if not all(map(_is_thought, parts[:count])):
        raise RowError("think", f"{name} thinks behind a part that it says; keep the thoughts in front of the answer")
    thoughts = [_text_of(part, f"part {number} of {name}") for number, part in enumerate(parts[:count], start=1)]
    thought = "\n".join(filter(None, thoughts))
    free = next(name for name in REASONING if not turn.get(name))
    return {**turn, key: parts[count:], **({free: thought} if thought else {})}


def _is_thought(part: Any) -> bool:
    return isinstance(part, dict) and part.get("type") in THOUGHT_PARTS


def _text_of(part: Message, name: str) -> str:
    """The text, which may be a list of parts of text."""
    value = next((part[key] for key in TEXTS if part.get(key) is not None), None)
    if isinstance(value, list) and all(isinstance(inner, dict) and inner.get("type") == "text" for inner in value):
        value = "".join(str(inner.get("text") or "") for inner in value)
    if not isinstance(value, str):
        raise RowError("think", f"{name} is a thought without its text; give the text, or take the part out")
    return value
