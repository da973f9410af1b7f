"""The gold answer in a column: a text, or a conversation that ends with it, as files of preferences have it."""

from contextlib import suppress
from typing import Any

from swift_kd_plugin.config.typed_keys import suggest
from swift_kd_plugin.data.column_names import RESPONSE
from swift_kd_plugin.data.rows import Message, Row, RowError, response_of, text_of, without_response
from swift_kd_plugin.data.turns import ROLE_ALIASES, take_from_turns, to_turns
from swift_kd_plugin.data.values import kind_of, parse_text

# Columns of preferences that hold the answer which is wanted.
PREFERRED = ("chosen", "chosen_response", "chosen_messages")
SPEAKER, SAID = ("role", "from"), frozenset({"content", "value", "tool_calls"})


def find_conversation(value: Any) -> list[Any] | None:
    """The turns of a value that is a conversation or the text of one, in any usual form; None for anything else."""
    if isinstance(value, str) and value.lstrip().startswith(("[", "{")) and any(key in value for key in SPEAKER):
        with suppress(RowError):  # a text that is no JSON is an answer
            value = parse_text(value, "it")
    turns = [value] if isinstance(value, dict) else value
    return turns if isinstance(turns, list) and turns and all(map(_is_turn, turns)) else None


def _is_turn(turn: Any) -> bool:
    if not isinstance(turn, dict) or SAID.isdisjoint(turn):
        return False
    role = turn.get("role", turn.get("from"))
    return isinstance(role, str) and role.lower() in ROLE_ALIASES


def gold_answer(value: Any, column: str, row: Row) -> Message:
    """The answer that a column of a row holds. Raises RowError if it holds none, or answers something else."""
    turns = find_conversation(value)
    if turns is None:
        return {"role": "assistant", "content": _plain_answer(value, column, row)}
    turns = to_turns(turns, column)
    take_from_turns(turns)
    if turns[-1]["role"] != "assistant":
        raise RowError("no response", f"the conversation in its column {column!r} does not end with an answer")
    if not turns[-1]["content"]:
        raise RowError("no response", f"the answer in its column {column!r} is empty")
    prompt = without_response(row["messages"])
    if turns[:-1] and not _agree(turns[:-1], prompt):
        raise RowError("messages", f"the conversation in its column {column!r} has another prompt than its messages")
    return turns[-1]


def _plain_answer(value: Any, column: str, row: Row) -> str:
    """A text as it is, a number as text."""
    if value is None:
        answers = RESPONSE if response_of(row) else ()  # the name of the column that became the response is gone
        named = suggest(column, {*row.get("columns", {}), *answers})
        raise RowError("no response", f"its column {column!r} is not there, or null{named}")
    if value == "":
        raise RowError("no response", f"its column {column!r} has no text")
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return text_of(value)
    if not isinstance(value, str):
        raise RowError("no response", f"its column {column!r} is {kind_of(value)}, not a text or a conversation")
    return value


def _agree(turns: list[Message], prompt: list[Message]) -> bool:
    """Whether turns are those of a prompt, whose system turn they may lack."""
    mine, others = ([(turn["role"], text_of(turn["content"]).strip()) for turn in side] for side in (turns, prompt))
    return mine == (others if mine[0][0] == "system" else [turn for turn in others if turn[0] != "system"])


def gold_text(value: Any) -> str | None:
    """The text of a gold answer, whatever its prompt is; of a value that is no text its JSON."""
    if turns := find_conversation(value):
        with suppress(RowError):  # of a form that is not known
            value = to_turns(turns)[-1]["content"]
    return None if value is None else text_of(value)
