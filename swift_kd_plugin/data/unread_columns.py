"""Columns of a row that are kept and not read, and whose names or values say that they were meant to be."""

from collections.abc import Iterator
from functools import cache
from typing import Any

from swift_kd_plugin.data.gold_answers import PREFERRED, gold_text
from swift_kd_plugin.data.near_names import one_slip, plain_name
from swift_kd_plugin.data.rows import Message, Row, text_of
from swift_kd_plugin.data.think_block import OPEN
from swift_kd_plugin.data.tool_columns import FUNCTIONS, TOOL_COLUMNS, look_like_tools
from swift_kd_plugin.data.turn_keys import MASKED, REASONING
from swift_kd_plugin.data.turn_keys import WEIGHTS as WEIGHTS_OF_TURNS
from swift_kd_plugin.data.values import shown

THOUGHTS = frozenset({*REASONING, "cot", "chain_of_thought", "think", "rationale", "reasoning_trace"})
WEIGHTS = frozenset({*WEIGHTS_OF_TURNS, "sample_weight", "sample_weights", "weights", "mask"})
SHORT = 8  # thought, which is as near to though as to its misspellings
TRAINED = (None, 1, "", [], {})  # what says that the row is trained as any other
REJECTED = frozenset({"rejected", "rejected_response", "rejected_messages"})
LABEL = "label"  # of KTO, true or false
WATCHED = THOUGHTS | WEIGHTS | FUNCTIONS | REJECTED | frozenset((*PREFERRED, LABEL))

NOTED = frozenset({*TOOL_COLUMNS, "columns"})

Note = tuple[str, str]


def notes_of(row: Row, asked: frozenset[str]) -> list[Note]:
    """What the report says of a row's columns beside its turns, but for those that are asked for: kind and text."""
    if row.keys().isdisjoint(NOTED):
        return []
    notes = [note for name in TOOL_COLUMNS if row.get(name) for note in _notes_of_tools(row[name], name)]
    columns = {name: value for name, value in row.get("columns", {}).items() if name not in asked}
    return [*notes, *_notes_of_columns(columns, row["messages"])]


def _notes_of_tools(tools: list[Any], column: str) -> Iterator[Note]:
    for number, tool in enumerate(tools, start=1):
        if tool.get("type", "function") != "function":
            text = f"tool {number} of {column} has the type {shown(tool['type'])}; the prompt has it as it stands"
            yield "a tool of another type than function", text


def _notes_of_columns(columns: dict[str, Any], messages: list[Message]) -> Iterator[Note]:
    for name, value in columns.items():
        if isinstance(value, (dict, list, str)) and name not in FUNCTIONS and look_like_tools(value, name):
            yield f"the column {name!r}, which looks like tools", "no model sees it; call the column tools"
        if (name.lower() in WATCHED or _like_a_thought(name)) and (note := _note_of(name, value, messages)):
            yield note


@cache
def _like_a_thought(name: str) -> bool:
    """Whether a name is a slip of the usual ones."""
    return any(one_slip(plain_name(name), known) for known in REASONING if len(known) > SHORT)


def _note_of(name: str, value: Any, messages: list[Message]) -> Note | None:
    if name in FUNCTIONS:
        return f"the column {name!r}, which holds no tools", f"it is kept as a column; it is {shown(value)}"
    if name.lower() in WEIGHTS:
        if value in TRAINED or (name.lower() in MASKED and value is False):
            return None
        return f"the column {name!r}, which is not read", "a row has no weight; give it as a key of the answer's turn"
    last = messages[-1]
    if last["role"] not in ("assistant", "tool_call"):
        return None
    if name.lower() not in THOUGHTS and not _like_a_thought(name):
        return _note_of_preference(name, value, last)
    if OPEN in text_of(last["content"]) or not isinstance(value, str) or not value.strip():
        return None
    return (
        f"the column {name!r}, which is not read",
        f"if it holds the thought of the response, say `thought: {name}` in a data.yaml",
    )


def _note_of_preference(name: str, value: Any, answer: Message) -> Note | None:
    """Of a column beside an answer that says which answers are good."""
    kind = f"the column {name!r}, which is not read"
    if name.lower() == LABEL:
        text = "KTO's label says whether the answer is good; here every answer is trained alike, those with false too"
        return (kind, text) if isinstance(value, bool) else None
    if not value or gold_text(value) == text_of(answer["content"]):
        return None
    if name.lower() in REJECTED:
        return kind, "nothing is trained to be unlikely here; the row's own answer is trained"
    return kind, f"the row's own answer is trained; say `gold: {name}` in a data.yaml to train this one"
