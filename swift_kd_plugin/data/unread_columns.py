"""Columns of a row that are kept and not read, and whose names or values say that they were meant to be."""

from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

from swift_kd_plugin.data.columns import TEACHER_COLUMN_OF
from swift_kd_plugin.data.gold_answers import PREFERRED, find_conversation, gold_text
from swift_kd_plugin.data.name_words import is_mode, is_thought, is_view, is_weight, words_of
from swift_kd_plugin.data.near_names import one_slip, plain_name
from swift_kd_plugin.data.rows import Message, Row, text_of
from swift_kd_plugin.data.think_block import NON_THINKING, OPEN, SWITCH, THINKING
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
PREFERENCES = REJECTED | frozenset((*PREFERRED, LABEL))
MODES = frozenset({"true", "false", "on", "off", THINKING, NON_THINKING, "/think", "/no_think"})
TEACHERS = TEACHER_COLUMN_OF["chat_template_kwargs"]

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
        if (note_of := _watcher(name)) and (note := note_of(name, value, messages[-1])):
            yield note


@cache
def _watcher(name: str) -> Callable[[str, Any, Message], Note | None] | None:
    """Who looks at the values of a column, by the words of its name."""
    lower, words = name.lower(), words_of(name)
    if lower in FUNCTIONS:
        return _note_of_functions if name in FUNCTIONS else None
    if lower in WEIGHTS or is_weight(words):
        return _note_of_weight
    if lower in THOUGHTS or is_thought(words) or is_mode(words) or _like_a_thought(name):
        return _note_of_thought
    if lower in PREFERENCES:
        return _note_of_preference
    return _note_of_view if is_view(words) else None


def _like_a_thought(name: str) -> bool:
    """Whether a name is a slip of the usual ones."""
    return any(one_slip(plain_name(name), known) for known in REASONING if len(known) > SHORT)


def _note_of_functions(name: str, value: Any, last: Message) -> Note:
    return f"the column {name!r}, which holds no tools", f"it is kept as a column; it is {shown(value)}"


def _note_of_weight(name: str, value: Any, last: Message) -> Note | None:
    if value in TRAINED or (name.lower() in MASKED and value is False):
        return None
    return f"the column {name!r}, which is not read", "a row has no weight; give it as a key of the answer's turn"


def _note_of_thought(name: str, value: Any, last: Message) -> Note | None:
    kind = f"the column {name!r}, which is not read"
    if isinstance(value, bool) or (isinstance(value, str) and value.lower() in MODES):
        text = (
            f"if it is to switch the thinking, give it as {SWITCH} in chat_template_kwargs, the teacher's in {TEACHERS}"
        )
        return (kind, text) if is_mode(words_of(name)) else None
    spoken = last["role"] in ("assistant", "tool_call") and OPEN not in text_of(last["content"])
    texts = value if isinstance(value, list) else [value]
    if not spoken or not any(isinstance(text, str) and any(map(str.isalpha, text)) for text in texts):
        return None
    form = "give it as one text and " if isinstance(value, list) else ""
    return kind, f"if it holds the thought of the response, {form}say `thought: {name}` in a data.yaml"


def _note_of_view(name: str, value: Any, last: Message) -> Note | None:
    if find_conversation(value) is None:
        return None
    return f"the column {name!r}, which is not read", "what only the teacher sees stands in teacher_messages"


def _note_of_preference(name: str, value: Any, last: Message) -> Note | None:
    """Of a column beside an answer that says which answers are good."""
    if last["role"] not in ("assistant", "tool_call"):
        return None
    kind = f"the column {name!r}, which is not read"
    if name.lower() == LABEL:
        text = "KTO's label says whether the answer is good; here every answer is trained alike, those with false too"
        return (kind, text) if isinstance(value, bool) else None
    if not value or gold_text(value) == text_of(last["content"]):
        return None
    if name.lower() in REJECTED:
        return kind, "nothing is trained to be unlikely here; the row's own answer is trained"
    return kind, f"the row's own answer is trained; say `gold: {name}` in a data.yaml to train this one"
