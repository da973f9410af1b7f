"""Channels of gpt-oss's turns: what the assistant says on `analysis` is the thought of what it says next."""

from collections.abc import Iterable
from typing import Any

from swift_kd_plugin.data.rows import Message, RowError
from swift_kd_plugin.data.think_block import join_thought
from swift_kd_plugin.data.turn_keys import REASONING, WEIGHTS
from swift_kd_plugin.data.values import shown

ANALYSIS, CALLS_TOOLS = "analysis", ("tool_call", "function_call")
CHANNELS = (ANALYSIS, "commentary", "final")
# To whom a turn may speak; to another it is a call.
LISTENERS = (None, "", "all", "user", "assistant")

Named = tuple[str, Any]


def has_channels(turns: list[Any]) -> bool:
    return bool([turn for turn in turns if type(turn) is dict and "channel" in turn])


def _has_channel(turn: Any) -> bool:
    return isinstance(turn, dict) and turn.get("channel") in CHANNELS and turn.get("role") == "assistant"


def without_channels(turns: Iterable[Named]) -> list[Named]:
    """Turns with their names in reasons; a turn of analysis becomes the thought of the one behind it.

    Raises:
        RowError: none of the assistant is behind it, the two have different weights, or a turn is a call of a tool.
    """
    told: list[Named] = []
    thinking: list[tuple[str, Message]] = []
    for name, turn in turns:
        channel = turn["channel"] if _has_channel(turn) else None
        if channel and turn.get("recipient") not in LISTENERS:
            raise RowError("format", f"{name} calls {shown(turn['recipient'])} by its recipient; give it as tool_calls")
        if channel == ANALYSIS:
            thinking.append((name, turn))
            continue
        if channel:
            turn = {key: value for key, value in turn.items() if key not in ("channel", "recipient")}
        if thinking:
            told += _with_thoughts(thinking, name, turn)
            thinking = []
        else:
            told.append((name, turn))
    if thinking:
        raise _no_answer(thinking)
    return told


def _with_thoughts(thinking: list[tuple[str, Message]], name: str, turn: Any) -> list[Named]:
    role = turn.get("role") if isinstance(turn, dict) else None
    if role not in ("assistant", *CALLS_TOOLS):
        raise _no_answer(thinking)
    for analysis_name, analysis in thinking:
        if _weights(analysis) != _weights(turn):
            raise RowError(
                "format", f"{analysis_name} has another weight than {name}, whose thought it is; think_loss weighs it"
            )
    thought = "\n".join(_text_of(analysis, analysis_name) for analysis_name, analysis in thinking)
    if role in CALLS_TOOLS:
        return [(name, {"role": "assistant", "content": join_thought(thought, ""), **_weights(turn)}), (name, turn)]
    free = next(key for key in REASONING if not turn.get(key))
    return [(name, {**turn, free: thought})]


def _no_answer(thinking: list[tuple[str, Message]]) -> RowError:
    return RowError(
        "think",
        f"{thinking[-1][0]} is of the channel analysis, and no turn of the assistant follows to think it; "
        "give the answer, or leave the turn out",
    )


def _weights(turn: Message) -> Message:
    return {key: turn[key] for key in WEIGHTS & turn.keys()}


def _text_of(turn: Message, name: str) -> str:
    """The text, which may be a list of parts of text."""
    content = turn.get("content")
    if isinstance(content, list) and all(isinstance(part, dict) for part in content):
        content = "".join(part["text"] for part in content if isinstance(part.get("text"), str))
    if not isinstance(content, str):
        raise RowError("think", f"{name} is of the channel analysis and has no text; give it, or leave the turn out")
    return content
