"""Checks of a row: a conversation that a chat template can write down, and that trains what it seems to train."""

from itertools import groupby
from typing import Any

from swift_kd_plugin.data.columns import COLUMNS, IMAGE_COLUMNS, PLACE_COLUMNS, VIEW_COLUMNS
from swift_kd_plugin.data.rows import SPEAKS, Message, Row, RowError, text_of
from swift_kd_plugin.data.think_block import CLOSE, OPEN
from swift_kd_plugin.data.turn_keys import weights_of
from swift_kd_plugin.data.turns import KNOWN_ROLES, ROLES, TOOL_ROLES, name_turn
from swift_kd_plugin.data.values import check_value, kind_of, parse_text, shown
from swift_kd_plugin.data.views import teachers_own

# By role: the roles of the turn before, None being the start.
MAY_FOLLOW = {
    "system": (None,),
    "user": (None, "system", *SPEAKS),
    "assistant": ("user", *SPEAKS, *TOOL_ROLES),
    "tool_call": ("user", *SPEAKS, *TOOL_ROLES),
    "tool": (*SPEAKS, *TOOL_ROLES),
    "tool_response": (*SPEAKS, *TOOL_ROLES),
}
MEDIA = {name: COLUMNS[name].medium for name in VIEW_COLUMNS if COLUMNS[name].medium}
PLAIN_COLUMNS = frozenset({"messages", *PLACE_COLUMNS})


def check_row(row: Row) -> None:
    """Raises RowError if a row cannot be used; the reason names the turn, counted from 1 with the system's.

    The roles follow each other as a chat template can write them, nobody says nothing, think blocks stand at the start
    of an answer and are closed, every tag of a medium has its medium, and all text is Unicode.
    """
    messages = row["messages"]
    plain = row.keys() <= PLAIN_COLUMNS
    has_parts = _check_turns(messages, "messages", not plain and any(row.get(name) for name in MEDIA))
    last = messages[-1]
    if last["role"] == "system":
        raise RowError("messages", "it asks nothing: it has only a system turn")
    if last["role"] == "assistant" and (why := _why_no_answer(text_of(last["content"]))):
        raise RowError("empty", f"its response, {name_turn(len(messages), 'messages')}, {why}")
    if not plain:
        _check_settings(row)
    for name, value in row.items():
        if name not in IMAGE_COLUMNS:
            check_value(value, stored=name != "columns")
    if not plain:
        _check_view(row)
    if has_parts or not plain:
        _check_media(row)


def check_answer(text: str, name: str) -> None:
    """Raises RowError for a response that says nothing, or whose think block is not one at its start that ends."""
    if "think>" in text:
        _check_thought(text, name)
    if why := _why_no_answer(text):
        raise RowError("empty", f"{name} {why}")


def _why_no_answer(response: str) -> str | None:
    """What is wrong with a response of white space, with a think block in front or without one; None for any other."""
    said = response.rstrip()
    if not said:
        return "is empty"
    if not said.endswith(CLOSE):  # behind which no other may stand
        return None
    thought = said.removesuffix(CLOSE).removeprefix(OPEN).strip()
    return "is a thought without an answer; give the answer, too" if thought else "is empty"


def _check_turns(messages: list[Message], column: str, has_media: bool) -> bool:
    """True if a content is a list of parts."""
    if not messages:
        raise RowError("messages", f"its {column} are empty")
    before, thinks, has_parts = None, False, False
    for number, turn in enumerate(messages, start=1):
        role, content = turn["role"], turn["content"]
        if before not in MAY_FOLLOW.get(role, ()):
            raise RowError("messages", _why_not_after(before, role, name_turn(number, column)))
        if type(content) is not str or role == "tool_call":
            name = f"{name_turn(number, column)} ({role})"
            _check_content(content, role, name)
            if role == before == "tool_call" and weights_of(turn) != weights_of(messages[number - 2]):
                raise RowError(
                    "format", f"{name} has another weight than the call before it, with which it is one turn"
                )
            has_parts = has_parts or type(content) is list
        elif role == "user" and not has_media and (not content or content.isspace()):
            raise RowError("empty", f"{name_turn(number, column)} (user) is empty")
        elif role == "assistant" and "think>" in content:
            thinks = True
        before = role
    if thinks:
        _check_thoughts(messages, column)
    return has_parts


def _why_not_after(before: str | None, role: str, name: str) -> str:
    if role not in ROLES:
        return f"{name} has the unknown role {shown(role)}; {KNOWN_ROLES}"
    if role == "system":
        return f"{name} is a system turn, which only the first may be"
    if before in (None, "system"):
        return f"{name} ({role}) comes before any user turn"
    if role == before == "user":
        return f"{name} is a second user turn in a row, which ms-swift would glue to the first; join them into one"
    if role == "user":
        return f"{name} (user) follows the turn of a tool, which the assistant has to answer first"
    return f"{name} ({role}) follows a user turn, and no tool was called"


def _check_content(content: Any, role: str, name: str) -> None:
    if content is None:
        raise RowError("empty", f"{name} has no content")
    if role == "tool_call":
        _check_call(content, name)
    elif role in ("system", "user", "assistant"):
        if not isinstance(content, list):
            raise RowError("format", f"{name} has {kind_of(content)} as its content, not text")
        if role == "system":
            raise RowError("media", f"{name} has media, which only a user turn may have")
        if role == "assistant":
            text = text_of(content)
            if OPEN in text or CLOSE in text:
                raise RowError("think", f"{name} has think tags in a content of parts; give it as one text")


def _check_call(content: Any, name: str) -> None:
    """A tool call as ms-swift's agent templates read it."""
    call = _parsed(content, f"the tool call of {name}")
    if not isinstance(call, dict) or not isinstance(call.get("name"), str):
        raise RowError("messages", f"{name} is not an object with a name and arguments")
    arguments = call.get("parameters") if call.get("arguments") is None else call["arguments"]
    if _parsed(arguments, f"the text of the arguments of {name}") is None:
        raise RowError("messages", f"{name} has no arguments")


def _parsed(value: Any, what: str) -> Any:
    try:
        return parse_text(value, what) if isinstance(value, str) else value
    except RowError as error:
        raise RowError("messages", str(error)) from error


def _check_thoughts(messages: list[Message], column: str) -> None:
    number = 1
    for role, turns in groupby(messages, key=lambda turn: turn["role"]):
        turns = list(turns)
        if role == "assistant":  # ms-swift glues assistant turns in a row
            _check_thought("".join(text_of(turn["content"]) for turn in turns), f"{name_turn(number, column)} ({role})")
        number += len(turns)


def _check_thought(text: str, name: str) -> None:
    starts, closings = text.startswith(OPEN), text.count(CLOSE)
    if not starts and text.lstrip().startswith(OPEN):
        raise RowError("think", f"{name} has white space in front of {OPEN}, which hides the block; remove it")
    if starts and not closings:
        raise RowError("think", f"{name} opens {OPEN} and does not close it")
    if not starts and closings and OPEN in text.partition(CLOSE)[0]:
        raise RowError("think", f"{name} has a think block that does not stand at its start")
    if not starts and closings:
        raise RowError("think", f"{name} closes a think block that it does not open; put {OPEN} in front")
    if closings > 1 or text.partition(CLOSE)[0].count(OPEN) > 1:
        raise RowError("think", f"{name} has more than one think block, or one inside another")


def _check_view(row: Row) -> None:
    view = row.get("teacher_messages")
    if view is None:
        return
    has_media = any(row.get(name) for name, column in COLUMNS.items() if column.medium)
    _check_turns(view, "teacher_messages", has_media)
    if view[-1]["role"] not in ("user", *TOOL_ROLES):
        raise RowError(
            "messages",
            f"its teacher_messages end with the role {view[-1]['role']!r}; they have to end with the user's turn, "
            "because the response is shared with messages",
        )


def _check_settings(row: Row) -> None:
    weight = row.get("think_loss")
    if weight is not None and not (type(weight) in (int, float) and 0 <= weight <= 1):
        raise RowError("format", f"its think_loss is {shown(weight)}, not a number from 0 to 1")
    kwargs = row.get("teacher_chat_template_kwargs")
    if kwargs and kwargs.get("response_prefix") is not None:
        raise RowError(
            "format",
            "its teacher_chat_template_kwargs set response_prefix, but what stands before the response is shared",
        )
    thought = row.get("teacher_thought")
    if thought and (OPEN in thought or CLOSE in thought):
        raise RowError("think", "its teacher_thought has think tags, between which it is put")
    if thought is not None and weight:
        raise RowError(
            "think",
            f"it has think_loss {weight} beside teacher_thought, with which the two views have different think blocks "
            "that cannot be compared; give 0 or leave think_loss out",
        )


def _check_media(row: Row) -> None:
    for name in IMAGE_COLUMNS:
        for number, image in enumerate(row.get(name) or (), start=1):
            if not image.get("path") and not image.get("bytes"):
                raise RowError("media", f"image {number} of {name} has neither path nor bytes")
            check_value(image.get("path"))
    _check_tags(row["messages"], row, "messages")
    teacher_columns = teachers_own(row)
    if teacher_columns.keys() & {"messages", *MEDIA}:
        _check_tags(teacher_columns.get("messages", row["messages"]), row | teacher_columns, "the teacher's messages")


def _check_tags(messages: list[Message], row: Row, what: str) -> None:
    """More tags than media: ms-swift would leave the last ones in the text. Parts and a column: it would stop."""
    parts = [part for turn in messages if type(turn["content"]) is list for part in turn["content"] if _is_part(part)]
    for name, medium in MEDIA.items():
        column = row.get(name)
        medium_parts = [part for part in parts if part["type"] in (medium, f"{medium}_url")]
        media_count = sum(bool(part.get(part["type"])) for part in medium_parts)
        if column and media_count:
            raise RowError("media", f"{what} hold {name} in their parts beside the column {name!r}; keep one")
        if column is not None or medium_parts:
            tags = len(medium_parts) + sum(text_of(turn["content"]).count(f"<{medium}>") for turn in messages)
            there = media_count or len(column or ())
            if tags > there:
                raise RowError("media", f"{what} have {tags} {medium} tags and {there} {name}")


def _is_part(part: Any) -> bool:
    return isinstance(part, dict) and isinstance(part.get("type"), str)
