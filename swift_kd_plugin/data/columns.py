"""The columns of a row, described once: how each is read and stored, and what it means to both views.

Whoever needs to know which columns there are reads it from here; a new column for the teacher is an entry in this
table and a field of `KDSample`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

from datasets import Features, Json, List, Value

from swift_kd_plugin.data.column_readers import (
    to_images,
    to_number,
    to_objects,
    to_paths,
    to_settings,
    to_text,
)
from swift_kd_plugin.data.tool_columns import to_tools
from swift_kd_plugin.data.turns import to_turns

Reader = Callable[[Any, str], Any]
TURNS, TOOLS, SETTINGS = List(Json()), List(Json()), Json()
IMAGES, PATHS = List({"bytes": Value("binary"), "path": Value("string")}), List(Value("string"))


@dataclass(frozen=True, kw_only=True)
class Column:
    """One column of a row.

    Args:
        feature: its type in a stored dataset.
        read: makes its value from what a source holds and the name that it has there; None: it is made, not read.
        aliases: other names that a source may use for it.
        stands_for: the column in whose place the teacher has this one.
        nothing: the value by which the teacher has nothing of what the student has; None where an empty value says
            no more than an absent one.
        medium: what it holds, as its tag in a text says; None for no media.
        role: "view" what the student sees (and the teacher, where no other column stands for it), "teacher" what the
            teacher sees in its place, "response" what belongs to the response, "place" where the row comes from and
            what else stood there, which no other tool needs.
    """

    feature: Any
    role: Literal["view", "teacher", "response", "place"]
    read: Reader | None = None
    aliases: tuple[str, ...] = ()
    stands_for: str | None = None
    nothing: list | dict | str | None = None
    medium: Literal["image", "video", "audio"] | None = None


def _view(feature: Any, read: Reader | None, *aliases: str, **more: Any) -> Column:
    return Column(feature=feature, role="view", read=read, aliases=aliases, **more)


def _teacher(
    stands_for: str, feature: Any, read: Reader, nothing: list | dict | None = None, *aliases: str, **more: Any
) -> Column:
    names = {"stands_for": stands_for, "aliases": aliases}
    return Column(feature=feature, role="teacher", read=read, nothing=nothing, **names, **more)


COLUMNS: Mapping[str, Column] = MappingProxyType(
    {
        "messages": _view(TURNS, None),
        "tools": _view(TOOLS, to_tools, "functions"),
        "images": _view(IMAGES, to_images, "image", medium="image"),
        "videos": _view(PATHS, to_paths, "video", medium="video"),
        "audios": _view(PATHS, to_paths, "audio", medium="audio"),
        "objects": _view(Json(), to_objects),
        "chat_template_kwargs": _view(SETTINGS, to_settings),
        "teacher_messages": _teacher("messages", TURNS, to_turns),
        "teacher_tools": _teacher("tools", TOOLS, to_tools, [], "teacher_functions"),
        "teacher_images": _teacher("images", IMAGES, to_images, [], medium="image"),
        "teacher_chat_template_kwargs": _teacher("chat_template_kwargs", SETTINGS, to_settings, {}),
        "teacher_thought": Column(feature=Value("string"), role="response", read=to_text, nothing=""),
        "think_loss": Column(feature=Value("float64"), role="response", read=to_number),
        "columns": Column(feature=Json(), role="place"),
        "kd_source": Column(feature=Value("string"), role="place"),
        "kd_row": Column(feature=Value("int64"), role="place"),
        "kd_id": Column(feature=Value("string"), role="place"),
    }
)
FEATURES = Features({name: column.feature for name, column in COLUMNS.items()})


def _named(test: Callable[[Column], Any]) -> tuple[str, ...]:
    return tuple(name for name, column in COLUMNS.items() if test(column))


VIEW_COLUMNS = _named(lambda column: column.role == "view")
TEACHER_COLUMNS = _named(lambda column: column.role == "teacher")
RESPONSE_COLUMNS = _named(lambda column: column.role == "response")
# Of these the student knows nothing.
TEACHER_ONLY = (*TEACHER_COLUMNS, "teacher_thought")
PLACE_COLUMNS = _named(lambda column: column.role == "place")
MEDIA_COLUMNS = _named(lambda column: column.medium is not None)
IMAGE_COLUMNS = _named(lambda column: column.medium == "image")
# By the student's column: the one that the teacher has in its place.
TEACHER_COLUMN_OF: Mapping[str, str] = MappingProxyType({COLUMNS[name].stands_for: name for name in TEACHER_COLUMNS})
# What both views share.
SHARED_COLUMNS = tuple(name for name in VIEW_COLUMNS if name not in TEACHER_COLUMN_OF)
# By the name that a source may use: the column.
READ_AS: Mapping[str, str] = MappingProxyType(
    {alias: name for name, column in COLUMNS.items() if column.read for alias in (name, *column.aliases)}
)
