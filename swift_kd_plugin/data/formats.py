"""Rows in any usual form, brought to the one row type; the form is told from each row by itself.

The forms, and what else is understood:

    messages   messages, conversation or conversations: turns of role and content, of from and value, or pairs of
               user (human) and assistant (gpt, bot); OpenAI's parts, tool_calls and reasoning_content; what else a
               turn may say stands in `data/turn_keys.py`
    alpaca     instruction, with input after a line break; output or another name of the response; history
    response   query (prompt, input, instruction, question, problem), history ([[query, response], ...]) and
               response (answer, output, targets, target, answer_key, answers, solution, text, completion,
               content), of several the first. Either may be a list of turns. Without a response, or with an
               empty one, it is for the student to write.
    any        system or system_prompt; tools or functions; images, videos, audios (image, ...); objects;
               chat_template_kwargs; teacher_messages, or teacher_prompt in place of the last user turn; the other
               keys of a row

Lists and objects may be JSON text. Of a proper name and synonyms the proper name is taken and the others are
columns as any other; synonyms alone have to be equal. Every other column goes into `columns`, without bytes; a name
that is nearly a known one is refused.
"""

from typing import Any

from swift_kd_plugin.data.asked_columns import NOTHING_ASKED, Asked
from swift_kd_plugin.data.column_names import KNOWN, MESSAGES, PLACE_NAMES, QUERY, RESPONSE, SYSTEM, why_misspelt
from swift_kd_plugin.data.columns import COLUMNS, READ_AS, TEACHER_COLUMN_OF
from swift_kd_plugin.data.gold_answers import PREFERRED, find_conversation
from swift_kd_plugin.data.padding_nulls import (
    arguments_schema,
    has_null,
    without_nulls_of_call,
    without_nulls_of_schemas,
)
from swift_kd_plugin.data.rows import Message, Place, Row, RowError, text_of, without_response
from swift_kd_plugin.data.think_block import split_thought
from swift_kd_plugin.data.tool_columns import FUNCTIONS, TOOL_COLUMNS, are_meant_as_tools, same_tools, to_tools
from swift_kd_plugin.data.turns import UNREAD, take_from_turns, to_turns
from swift_kd_plugin.data.values import SCALAR_TYPES, as_json, kind_of, parse_json, parse_text, shown
from swift_kd_plugin.errors import KDError

COLUMNS_SHOWN = 8
NULLS = "nulls"
RESPONSES = frozenset(RESPONSE)
TURNS = frozenset({*SYSTEM, *QUERY, *RESPONSE})
# Columns with the gold answer, and columns that stand beside the turns.
Claims = tuple[frozenset[str], frozenset[str]]
NO_CLAIMS: Claims = (frozenset(), frozenset())
VIEWS = ("messages", "teacher_messages")

Raw = dict[str, Any]


def to_row(
    raw: Raw, place: Place, columns: dict[str, str] | None = None, format: str = "auto", asked: Asked = NOTHING_ASKED
) -> Row:
    """The row of the one row type that a row of a source is; its turns are still to be checked by `check_row`.

    Args:
        raw: the columns of the row by name; None is an absent column.
        place: where it stands, unless it has kd_source and kd_row, as rows that were written by this package have.
        columns: new names of columns by their old ones. Names are told apart by case only where both are there.
        format: read it as this one of `FORMATS`; "auto": as the first whose columns it has.
        asked: columns that are asked for by name, and so are columns of the row whatever else they are.

    Returns:
        The row; for the report are UNREAD in it, names of keys of its turns that are not read, and NULLS, which nulls
        in tools and calls have stayed.

    Raises:
        RowError: of the kinds unreadable, format, messages, empty, think or media.
    """
    rest = _named(raw, columns)
    copies, claims = _asked_for(rest, asked, columns) if asked is not NOTHING_ASKED else ({}, NO_CLAIMS)
    row: Row = {"messages": _with_system(_messages(rest, format, claims, asked), rest, claims)}
    prompt = rest.pop("teacher_prompt", None)
    own_columns = copies | _own_columns(rest) if copies else _own_columns(rest)
    for name, value in rest.items():
        if name in READ_AS and (name not in FUNCTIONS or are_meant_as_tools(value)):
            _add_column(row, name, value)
        elif name not in PLACE_NAMES:
            if name not in KNOWN and (reason := why_misspelt(name)) and name not in asked.names:
                raise RowError("format", f"its column {shown(name)} is not known ({reason}); rename it")
            own_columns[name] = value if type(value) in SCALAR_TYPES else as_json(value)
    if prompt:
        if "teacher_messages" in row:
            raise RowError("format", "it has both teacher_messages and teacher_prompt; keep one of the two columns")
        row["teacher_messages"] = _prompted(row["messages"], prompt)
    for column in VIEWS:
        if (turns := row.get(column)) and max(map(len, turns)) > 2:
            _take_from_turns(row, column)
    for column in TOOL_COLUMNS:
        if (tools := row.get(column)) and has_null(tools):
            _drop_nulls(row, column)
    if own_columns := {name: value for name, value in own_columns.items() if value is not None}:
        row["columns"] = own_columns
    return row | _place(rest, place)


def check_format(format: str) -> None:
    """Raises KDError if it is not the name of a form of rows."""
    if format != "auto" and format not in FORMATS:
        raise KDError(f"there is no format {format!r} of rows; use auto, {', '.join(FORMATS)}.")


def _named(raw: Raw, columns: dict[str, str] | None) -> Raw:
    if columns:
        raw = _renamed(raw, columns)
    rest = {}
    for name, value in raw.items():
        if value is not None:
            if name not in KNOWN and (lower := name.lower()) in KNOWN and raw.get(lower) is None:
                name = lower
            rest[name] = value
    return rest


def _renamed(raw: Raw, columns: dict[str, str]) -> Raw:
    new_names = {old.lower(): new for old, new in columns.items()}
    renamed: Raw = {}
    for name, value in raw.items():
        new = new_names.get(name.lower(), name)
        if renamed.get(new) is not None and value is not None and renamed[new] != value:
            raise RowError("format", f"two of its columns would be {new!r} after renaming, and they differ")
        if value is not None:
            renamed[new] = value
    return renamed


def _asked_for(rest: Raw, asked: Asked, columns: dict[str, str] | None) -> tuple[Raw, Claims]:
    """The columns that are asked for and would be turns, by the name that they are asked by; and who claims which."""
    new_names = {old.lower(): new for old, new in (columns or {}).items()}
    copies: Raw = {}

    def found(names: tuple[str, ...]) -> frozenset[str]:
        keys = set()
        for name in names:
            choices = (name, new_names.get(name.lower()), name.lower())
            key = next((choice for choice in choices if choice in rest and choice in TURNS), None)
            if key is not None:
                keys.add(key)
                copies[name] = as_json(rest[key])
        return frozenset(keys)

    claims = found(asked.gold), found(asked.beside)
    found(asked.keep)
    return copies, claims


def _take(rest: Raw, names: tuple[str, ...], claims: Claims = NO_CLAIMS) -> tuple[str, Any]:
    """Name and value of the column that has one of the names, which is taken out; a value of None if there is none.

    What is claimed stands for something else; what holds the gold answer is taken where there is no other column.
    """
    matches = [name for name in names if name in rest]
    if claims is not NO_CLAIMS:
        gold, beside = claims
        matches = [name for name in matches if name not in beside]
        matches = [name for name in matches if name not in gold] or matches[:1]
    if not matches or matches[0] == names[0]:
        return names[0], rest.pop(names[0]) if matches else None
    different = [name for name in matches if rest[name] != rest[matches[0]]]
    if different:
        raise RowError(
            "format",
            f"its columns {matches[0]!r} and {different[0]!r} differ and each could be its {names[0]}; rename one",
        )
    value = rest[matches[0]]
    for name in matches:
        del rest[name]
    return matches[0], value


def _messages(rest: Raw, format: str, claims: Claims, asked: Asked) -> list[Message]:
    for name, read in FORMATS.items():
        if format in ("auto", name):
            messages = read(rest, claims)
            if messages is not None:
                if "response" in rest and "response" not in asked.names:
                    _check_same_answer(messages[-1], rest["response"])
                return messages
    for name in asked.gold:  # a file of preferences may have the prompt there alone
        if format == "auto" and (turns := find_conversation(rest.get(name))) and len(turns) > 1:
            return to_turns(turns, name)
    names = ", ".join(shown(name) for name in list(rest)[:COLUMNS_SHOWN]) or "none"
    more = ", ..." if len(rest) > COLUMNS_SHOWN else ""
    if format == "auto":
        for name in rest:
            if name not in KNOWN and name not in asked.names and (reason := why_misspelt(name)):
                raise RowError("format", f"its column {shown(name)} is not known ({reason}); rename it")
        if answer := next((name for name in PREFERRED if find_conversation(rest.get(name))), None):
            raise RowError(
                "format",
                f"its column {answer!r} holds a conversation; say `gold: {answer}` in a data.yaml to train on it",
            )
    wanted = "messages, or a prompt with or without a response" if format == "auto" else f"those of the format {format}"
    raise RowError("format", f"it has the columns {names}{more}, and needs {wanted}")


def _from_messages(rest: Raw, claims: Claims) -> list[Message] | None:
    name, value = _take(rest, MESSAGES)
    return None if value is None else to_turns(value, name)


def _check_same_answer(last: Message, response: Any) -> None:
    if last["role"] != "assistant" or not isinstance(response, str) or not response:
        return
    one, other = (split_thought(text)[1].strip() for text in (text_of(last["content"]), response))
    if one != other:
        raise RowError("format", "its column 'response' and the answer at the end of its messages differ; rename one")


def _from_alpaca(rest: Raw, claims: Claims) -> list[Message] | None:
    claimed = claims[0] | claims[1]
    if "instruction" not in rest:
        return None
    _drop_empty_responses(rest)
    if "input" in rest and "input" not in claimed:
        parts = [_text(rest.pop(name), name) for name in ("instruction", "input")]
        _put(rest, "query", "\n".join(filter(None, parts)), "instruction")
    if "output" in rest and "output" not in claimed:
        _put(rest, "response", rest.pop("output"), "output")
    return _read_response(rest, claims)


def _put(rest: Raw, name: str, value: Any, column: str) -> None:
    if rest.setdefault(name, value) != value:
        raise RowError("format", f"its columns {column!r} and {name!r} differ and each could be its {name}; rename one")


def _drop_empty_responses(rest: Raw) -> None:
    """An empty column is an absent one, which is all that a CSV file can say."""
    if not all(rest.values()):
        for name in RESPONSES.intersection(rest):
            if rest[name] in ("", []):
                del rest[name]


def _from_response(rest: Raw, claims: Claims) -> list[Message] | None:
    _drop_empty_responses(rest)
    return _read_response(rest, claims)


def _read_response(rest: Raw, claims: Claims) -> list[Message] | None:
    query_name, query = _take(rest, QUERY, claims)
    response_name, response = _take(rest, RESPONSE, claims)
    history = rest.pop("history", None)
    if query is None and response is None and not history:
        return None
    turns = _history(history) if history else []
    turns += _side(query, query_name, "user")
    if isinstance(response, list) and response and not isinstance(response[0], dict):
        response = _text(response[0], response_name) or None
    return turns + _side(response, response_name, "assistant")


FORMATS = {"messages": _from_messages, "alpaca": _from_alpaca, "response": _from_response}


def _side(value: Any, name: str, role: str) -> list[Message]:
    """What one side says: a list of turns, or one turn of a text."""
    if value is None:
        return []
    if isinstance(value, list):
        if not value or not all(map(_is_plain_text, value)):
            return to_turns(value, name)
        if len(value) > 1:
            many = f"its column {name!r} is a list of {len(value)} texts"
            raise RowError("format", f"{many}; give one text, or a list of turns with a role and a content")
        value = value[0]
    return [{"role": role, "content": _text(value, name)}]


def _is_plain_text(item: Any) -> bool:
    """Whether it is a text, and not that of a turn."""
    return isinstance(item, str) and not item.lstrip().startswith("{")


def _text(value: Any, name: str) -> str:
    if not isinstance(value, str):
        raise RowError("format", f"its column {name!r} is {kind_of(value)}, not text")
    return value


def _history(history: Any) -> list[Message]:
    if isinstance(history, str):
        history = parse_text(history, "its column 'history'")
    if not isinstance(history, list):
        raise RowError("format", f"its column 'history' is {kind_of(history)}, not a list of pairs")
    turns = []
    for number, pair in enumerate(history, start=1):
        if not isinstance(pair, list) or len(pair) != 2:
            raise RowError("format", f"round {number} of its column 'history' is {shown(pair)}, not a pair of texts")
        for role, text in zip(("user", "assistant"), pair, strict=True):
            if text is not None:
                turns.append({"role": role, "content": _text(text, "history")})
    return turns


def _with_system(messages: list[Message], rest: Raw, claims: Claims) -> list[Message]:
    name, system = _take(rest, SYSTEM, claims)
    if system is None:
        return messages
    system = _text(system, name)
    if messages and messages[0]["role"] == "system" and messages[0]["content"] is None:
        return [{**messages[0], "content": system}, *messages[1:]]
    if not messages or messages[0]["role"] != "system":
        return [{"role": "system", "content": system}, *messages]
    if system not in ("", messages[0]["content"]):
        raise RowError("messages", f"its system turn and its column {name!r} differ; keep one of them")
    return messages


def _prompted(messages: list[Message], prompt: Any) -> list[Message]:
    """The turns before the response with another text in the last user turn, as ms-swift reads teacher_prompt."""
    turns = [dict(turn) for turn in without_response(messages)]
    user = next((turn for turn in reversed(turns) if turn["role"] == "user"), None)
    if user is None:
        raise RowError("messages", "it has a teacher_prompt and no user turn, in place of which it would stand")
    user["content"] = to_turns([{"role": "user", "content": prompt}], "teacher_prompt")[0]["content"]
    return turns


def _add_column(row: Row, column: str, value: Any) -> None:
    name = READ_AS[column]
    if value == "" and COLUMNS[name].nothing != "":  # as a CSV file has what is absent
        return
    made = COLUMNS[name].read(value, column)
    if made is None or (made in ([], {}, "") and COLUMNS[name].nothing is None):
        return
    if name in row and not same_tools(row[name], made):
        raise RowError("format", f"its column {column!r} and another that means {name} differ; keep one of them")
    row.setdefault(name, made)


def _take_from_turns(row: Row, column: str) -> None:
    """Tools of a system turn become the row's, and keys of turns that were not read its UNREAD."""
    first = row[column][0]
    if first["role"] == "system" and first["content"] is None and "tools" in first:  # it says no more than the tools
        row[column], unsaid = row[column][1:], [first]
    else:
        unsaid = []
    given, unread, padded = take_from_turns([*unsaid, *row[column]])
    if unread:
        row[UNREAD] = [*row.get(UNREAD, ()), *unread]
    name = "tools" if column == "messages" else TEACHER_COLUMN_OF["tools"]
    for value in given:
        tools = to_tools(value, f"the system turn of {column}")
        if not tools or same_tools(row.setdefault(name, tools), tools):
            continue
        raise RowError("format", f"its column {name!r} and the tools of a system turn differ; keep one of them")

    for turn in padded:
        call, left = turn["content"], row.setdefault(NULLS, [])
        function = call.get("function", call) if isinstance(call, dict) else {}
        schema = arguments_schema(row.get(name) or row.get("tools") or [], function.get("name"))
        arguments = without_nulls_of_call(function.get("arguments"), schema, f"{function.get('name')}", left)
        turn["content"] = call if arguments is None else {**call, "arguments": arguments}


def _drop_nulls(row: Row, column: str) -> None:
    left = row.setdefault(NULLS, [])
    row[column] = [
        without_nulls_of_schemas(tool, f"{column}.{number}", left) for number, tool in enumerate(row[column], start=1)
    ]


def _own_columns(rest: Raw) -> Raw:
    """The `columns` of a row that was written by this package."""
    columns = rest.get("columns")
    if not _has_place(rest):
        return {}
    if isinstance(columns, str):
        columns = parse_json(columns, "its column 'columns'")
    if not isinstance(columns, (dict, type(None))):
        return {}
    rest.pop("columns", None)
    return as_json(columns or {})


def _has_place(rest: Raw) -> bool:
    return isinstance(rest.get("kd_source"), str) and type(rest.get("kd_row")) is int


def _place(rest: Raw, place: Place) -> Row:
    if _has_place(rest):
        source, number, key = rest["kd_source"], rest["kd_row"], rest.get("kd_id")
        place = Place(source, number, key if isinstance(key, str) else None)
    columns = {"kd_source": place.source, "kd_row": place.row}
    return columns if place.id is None else columns | {"kd_id": place.id}
