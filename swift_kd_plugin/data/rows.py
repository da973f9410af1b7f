"""The one row type that every source becomes, and how a row on disk is named.

A row is a dict with the columns of `data/columns.py`; a key that is absent or None says that there is no such thing:

    messages                       what the student sees, and the response as its last assistant turn if there is one
    tools, images, videos, audios, objects, chat_template_kwargs     as in ms-swift
    teacher_messages               what the teacher sees in place of it, up to its last user (or tool) turn
    teacher_tools, teacher_images, teacher_chat_template_kwargs      what the teacher has in place of the student's
    teacher_thought                what stands in the think block in front of the answer for the teacher alone
    think_loss                     weight of the loss on the response's think block, 0 to 1; absent: 1
    columns                        every other column of the source, by name
    kd_source, kd_row, kd_id       file or dataset, row counted from 1 (of a .jsonl file: the line), text of column id
"""

import hashlib
import json
from dataclasses import dataclass
from typing import Any

Row = dict[str, Any]
Message = dict[str, Any]
SPEAKS = ("assistant", "tool_call")


class Filler(dict):
    """A row that fills a batch and counts nothing: a copy of another one, with a response."""

    @classmethod
    def of(cls, row: Row) -> "Filler":
        turns = row["messages"]
        return cls({**row, "messages": turns if response_of(row) else [*turns, {"role": "assistant", "content": "."}]})


@dataclass(frozen=True)
class Place:
    """Where a row stands: its file or dataset, its number there counted from 1, and the text of its column `id`."""

    source: str
    row: int
    id: str | None = None

    @classmethod
    def of(cls, row: Row) -> "Place":
        return cls(row["kd_source"], row["kd_row"], row.get("kd_id"))

    def __str__(self) -> str:
        unit = "line" if self.source.endswith(".jsonl") else "row"
        return f"{self.source}, {unit} {self.row}" + ("" if self.id is None else f" (id {self.id!r})")


class RowError(ValueError):
    """A row that cannot be used. `kind` is a short name to count it under, the message the reason ("it has no ...")."""

    def __init__(self, kind: str, reason: str):
        super().__init__(reason)
        self.kind = kind

    def __reduce__(self):
        return type(self), (self.kind, str(self))


def last_user_text(messages: list[Message]) -> str:
    """The text of the last user turn, '' if there is none."""
    return next((text_of(m["content"]) for m in reversed(messages) if m["role"] == "user"), "")


def text_of(content: Any) -> str:
    """A content as text: the text parts of a list of parts, JSON of a tool call's object."""
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        return "".join(part["text"] for part in content if isinstance(part, dict) and part.get("type") == "text")
    return json.dumps(content, ensure_ascii=False)


def without_response(messages: list[Message]) -> list[Message]:
    """The turns before the response."""
    return split_response(messages)[0]


def split_response(messages: list[Message]) -> tuple[list[Message], list[Message]]:
    """The turns before the response, and its own: all of the assistant's at the end, answers and calls of tools."""
    start = len(messages)
    while start and messages[start - 1]["role"] in SPEAKS:
        start -= 1
    return messages[:start], messages[start:]


def response_of(row: Row) -> list[Message]:
    """The turns of the response; none if the row has none."""
    return split_response(row["messages"])[1]


def response_text(row: Row) -> str | None:
    """What the response says, without its calls of tools; None if it only calls, or there is none."""
    said = [text_of(turn["content"]) for turn in response_of(row) if turn["role"] == "assistant"]
    return "".join(said) if said else None


def digest(value: Any) -> bytes:
    """16 bytes that two values share if and only if they are equal as JSON (128 bits of BLAKE2b)."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, sort_keys=True, default=repr)
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()
