"""Joins rows with the experience and rows without it into training rows with two views of one response.

The student sees the row without the experience, the teacher the row with it; both score the same response.
"""

import copy
import json
from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Any

from swift_kd_plugin.errors import KDError

Row = dict[str, Any]
Message = dict[str, Any]

RESPONSE_COLUMN = "gold"
# Columns of a view that the teacher may have of its own, each with what says that it has none.
OWN_COLUMNS = {"tools": [], "images": [], "chat_template_kwargs": {}}
SHARED_COLUMNS = ("videos", "audios", "objects")
IDS_SHOWN = 3


def read_jsonl(path: str | Path) -> list[Row]:
    """The rows of a jsonl file, one per line, so that row n is line n. Raises KDError naming a bad line."""
    try:
        with open(path, encoding="utf-8") as lines:
            return [_parse(line, f"{path}, line {number}") for number, line in enumerate(lines, start=1)]
    except OSError as error:
        raise KDError(f"{path} cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise KDError(f"{path} is not UTF-8 text.") from error


def _parse(line: str, place: str) -> Row:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise KDError(f"{place} is not valid JSON: {error.msg}.") from error
    if not isinstance(row, dict):
        raise KDError(f"{place} is not a JSON object.")
    return row


def pair_files(exp: str | Path, noexp: str | Path, on: str = "id") -> list[Row]:
    """`pair_rows` on two jsonl files; errors name the file and the line."""
    return pair_rows(read_jsonl(exp), read_jsonl(noexp), on, exp_name=str(exp), noexp_name=str(noexp))


def pair_rows(
    exp_rows: Sequence[Row],
    noexp_rows: Sequence[Row],
    on: str = "id",
    *,
    exp_name: str = "rows with the experience",
    noexp_name: str = "rows without the experience",
) -> list[Row]:
    """One training row per pair, in the order of `noexp_rows`.

    Args:
        exp_rows: ms-swift `messages` rows with the experience in view, in a system prompt, a history or the question.
        noexp_rows: the same questions as the student will meet them. A final assistant turn is left out.
        on: the column that joins them; each value stands once on each side.
        exp_name: what errors call the rows with the experience, usually their file.
        noexp_name: the same for the others.

    Returns:
        Rows with the columns of the row without the experience, and
        `messages`: the student's view and the response, which is the `gold` column of either row if there is one and
        the final assistant turn of the row with the experience otherwise;
        `teacher_messages`: the row with the experience up to its last user (or tool) turn;
        `teacher_tools`, `teacher_images`, `teacher_chat_template_kwargs`: its tools, images and template settings
        where they are not those of the row without it.

    Raises:
        KDError: an id is missing, unfit, given twice or without a partner, messages are malformed, no response is
            given, or the two views differ in videos, audios or objects. It names the file and the line.
    """
    experienced = _index(exp_rows, on, exp_name)
    bare = _index(noexp_rows, on, noexp_name)
    _refuse_lonely(experienced, bare, on, exp_name, noexp_name)
    _refuse_lonely(bare, experienced, on, noexp_name, exp_name)
    pairs = []
    for key, number in bare.items():
        exp_number = experienced[key]
        pair = (exp_rows[exp_number - 1], noexp_rows[number - 1])
        pairs.append(_merge(*pair, f"{exp_name}, line {exp_number}", f"{noexp_name}, line {number}"))
    return pairs


def _index(rows: Sequence[Row], on: str, name: str) -> dict[Hashable, int]:
    """Line number of each id."""
    if not rows:
        raise KDError(f"{name}: there are no rows.")
    lines: dict[Hashable, int] = {}
    for number, row in enumerate(rows, start=1):
        key = row.get(on)
        if not isinstance(key, (str, int)) or key == "":
            raise KDError(f"{name}, line {number} needs a text or a whole number in its column {on!r}, not {key!r}.")
        if key in lines:
            raise KDError(f"{name}, line {number} has the {on} {key!r} of line {lines[key]}; each may stand once.")
        lines[key] = number
    return lines


def _refuse_lonely(ours: dict, theirs: dict, on: str, our_name: str, their_name: str) -> None:
    lonely = [key for key in ours if key not in theirs]
    if lonely:
        shown = ", ".join(f"{key!r} (line {ours[key]})" for key in lonely[:IDS_SHOWN])
        more = ", ..." if len(lonely) > IDS_SHOWN else ""
        raise KDError(f"{our_name}: {len(lonely)} of {len(ours)} rows have no {on} in {their_name}: {shown}{more}.")


def _merge(exp: Row, noexp: Row, exp_place: str, noexp_place: str) -> Row:
    for column in SHARED_COLUMNS:
        if exp.get(column) != noexp.get(column):
            raise KDError(f"{exp_place} and {noexp_place} differ in {column!r}, which both views must share.")
    teacher_view, response = _split_response(exp, exp_place)
    student_view, _ = _split_response(noexp, noexp_place)
    for row, place in ((exp, exp_place), (noexp, noexp_place)):
        if row.get(RESPONSE_COLUMN) is not None:
            if not isinstance(row[RESPONSE_COLUMN], str):
                raise KDError(f"{place} needs a text in its column {RESPONSE_COLUMN!r}.")
            response = {"role": "assistant", "content": row[RESPONSE_COLUMN]}
    if response is None:
        raise KDError(f"{exp_place} has neither a final assistant turn nor a column {RESPONSE_COLUMN!r}.")
    merged = {key: value for key, value in noexp.items() if key != RESPONSE_COLUMN}
    views = {"messages": [*student_view, response], "teacher_messages": teacher_view}
    return {**merged, **views, **_own_columns(exp, noexp)}


def _own_columns(exp: Row, noexp: Row) -> Row:
    columns = {}
    for column, absent in OWN_COLUMNS.items():
        mine = absent if exp.get(column) is None else exp[column]
        theirs = absent if noexp.get(column) is None else noexp[column]
        if mine != theirs:
            columns[f"teacher_{column}"] = copy.deepcopy(mine)
    return columns


def _split_response(row: Row, place: str) -> tuple[list[Message], Message | None]:
    """The turns before the final assistant turn, and that turn if the messages end with one."""
    messages = row.get("messages")
    if not isinstance(messages, list) or not all(_is_message(message) for message in messages):
        raise KDError(f"{place} needs a column 'messages': a list of objects with a role and a content.")
    ends_with_response = bool(messages) and messages[-1]["role"] == "assistant"
    view = [dict(message) for message in (messages[:-1] if ends_with_response else messages)]
    if not view or view[-1]["role"] in ("system", "assistant"):
        raise KDError(f"{place} asks nothing: its messages need a user (or tool) turn before the response.")
    return view, dict(messages[-1]) if ends_with_response else None


def _is_message(message: Any) -> bool:
    return isinstance(message, dict) and isinstance(message.get("role"), str) and message.get("content") is not None
