"""What each side sees of a row in front of the response that both share."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from swift_kd_plugin.data.columns import TEACHER_COLUMN_OF, TEACHER_ONLY, VIEW_COLUMNS
from swift_kd_plugin.data.rows import Message, Row, without_response


@dataclass(frozen=True)
class View:
    """One side's prompt; an absent column is None.

    Args:
        messages: its turns, without the response.
    """

    messages: list[Message]
    tools: list[Any] | None = None
    images: list[dict[str, Any]] | None = None
    videos: list[str] | None = None
    audios: list[str] | None = None
    objects: dict[str, Any] | None = None
    chat_template_kwargs: dict[str, Any] | None = None


def teacher_view(row: Row) -> View:
    """What the teacher sees: its own columns, where it has them, and the student's."""
    teacher_columns = teachers_own(row)
    columns = {name: teacher_columns.get(name, row.get(name)) for name in VIEW_COLUMNS}
    return View(**columns | {"messages": without_response(columns["messages"])})


def teachers_own(row: Mapping[str, Any]) -> dict[str, Any]:
    """What the teacher sees in place of the student's, by the student's column; an empty value takes it away."""
    values = {name: row.get(column) for name, column in TEACHER_COLUMN_OF.items()}
    return {name: value for name, value in values.items() if value is not None}


def has_teacher_view(row: Mapping[str, Any]) -> bool:
    """Whether the teacher sees or reads anything else than the student."""
    return any(row.get(name) is not None for name in TEACHER_ONLY)
