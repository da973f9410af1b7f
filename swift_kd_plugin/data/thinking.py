"""Thinking and non-thinking rows for models that know both, such as Qwen3: which mode, and what it makes of a row.

The mode of a side is `enable_thinking` of its chat template settings. A thinking response is `<think>\n…\n</think>\n\n`
and the answer; a non-thinking one is the answer alone, and the model's template puts its empty think block there.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

from swift_kd_plugin.data.row_report import Report
from swift_kd_plugin.data.rows import (
    Message,
    Place,
    Row,
    RowError,
    digest,
    last_user_text,
    response_of,
    response_text,
    split_response,
)
from swift_kd_plugin.data.think_block import NON_THINKING, SWITCH, THINKING, mode_of, place_thought, split_thought

KEEP = "keep"
SWITCHES = {THINKING: "/think", NON_THINKING: "/no_think"}
_SWITCH_AT_END = re.compile(r"(?<!\s)\s*/(no_)?think\s*$")
_COLUMN_VALUES = {THINKING: THINKING, NON_THINKING: NON_THINKING, KEEP: KEEP, "true": THINKING, "false": NON_THINKING}
_WORDS = "thinking, non_thinking, keep, true or false"


@dataclass(frozen=True)
class Modes:
    """Who thinks in which rows.

    Args:
        mode: of the student in every row: "thinking", "non_thinking", or "keep" what the row says or shows.
        column: a column with the mode of each row (one of those words, or true and false), instead of `mode`.
        share: the share of thinking rows, drawn by `seed` and each row's content, instead of `mode`.
        teacher: the teacher's mode, or "same".
        switch: also write /think or /no_think at the end of the last user turn, in place of what stands there.
        think_loss: weight of the loss on the think block, 0 to 1; None leaves it at 1.
        without_thought: what becomes of a row whose response should have a thought and has none: "leave_out", or
            "non_thinking" makes it non-thinking for both sides.
    """

    mode: Literal["thinking", "non_thinking", "keep"] = KEEP
    column: str | None = None
    share: float | None = None
    teacher: Literal["same", "thinking", "non_thinking"] = "same"
    switch: bool = False
    think_loss: float | None = None
    without_thought: Literal["leave_out", "non_thinking"] = "leave_out"
    seed: int = 42

    def student_mode(self, row: Row) -> str | None:
        """The row's mode; None if nothing tells it. Raises RowError for an unknown word in the column."""
        if self.column is not None:
            value = row.get("columns", {}).get(self.column)
            word = str(value).lower() if isinstance(value, (str, bool)) else None
            if word not in _COLUMN_VALUES:
                raise RowError("mode", f"its column {self.column!r} is {value!r}, not {_WORDS}")
            mode = _COLUMN_VALUES[word]
        elif self.share is not None:
            texts = (f"{turn['role']}:{turn['content']}" for turn in row["messages"])
            draw = digest(f"{self.seed}:{row.get('kd_id')}:" + "\0".join(texts))
            mode = THINKING if int.from_bytes(draw[:8]) < self.share * 2**64 else NON_THINKING
        else:
            mode = self.mode
        return own_mode(row) if mode == KEEP else mode

    def apply(self, row: Row) -> tuple[Row, str | None]:
        """The row in its mode, and the mode. Raises RowError if it cannot have it."""
        student = self.student_mode(row)
        if student is None:
            return row, None
        teacher = student if self.teacher == "same" else self.teacher
        thought, answer = self._split_response(row)
        if THINKING in (student, teacher) and answer is not None and not thought:
            if self.without_thought == "leave_out":
                raise RowError("no thought", f"its response has no <think> block, which {THINKING} needs")
            student = teacher = NON_THINKING
        row = self._with_views({**row, **_template_settings(row, student, teacher)}, student, teacher)
        if answer is not None:
            row = self._with_response(row, thought, answer, student, teacher)
        return row, student

    def _split_response(self, row: Row) -> tuple[str | None, str | None]:
        response = response_of(row)
        if not response:
            return None, None
        said = response[0]
        if said["role"] == "tool_call":
            return None, ""
        if not isinstance(said["content"], str):
            raise RowError("format", "its response is not a text, so that its think block cannot be told")
        return split_thought(said["content"])

    def _with_response(self, row: Row, thought: str | None, answer: str, student: str, teacher: str) -> Row:
        content, teacher_thought = place_thought(thought, answer, teacher, student)
        turns, response = split_response(row["messages"])
        if response[0]["role"] == "assistant":
            said, rest = response[0], response[1:]
            response = [{**said, "content": content}, *rest] if content or not rest else rest
        row["messages"] = [*turns, *response]
        if teacher_thought is not None:
            row["teacher_thought"] = teacher_thought
        elif self.think_loss is not None:
            row["think_loss"] = self.think_loss
        return row

    def _with_views(self, row: Row, student: str, teacher: str) -> Row:
        """The row with the thoughts of earlier turns removed, as the chat template does, and the switches set."""
        turns, response = split_response(_without_old_thoughts(row["messages"], student))
        view = row.get("teacher_messages")
        teacher_turns = _without_old_thoughts(view, teacher) if view else None
        if self.switch:
            if teacher_turns is not None or teacher != student:
                teacher_turns = _with_switch(teacher_turns or turns, teacher)
            turns = _with_switch(turns, student)
        views = {"messages": [*turns, *response]} | (
            {} if teacher_turns is None else {"teacher_messages": teacher_turns}
        )
        return {**row, **views}


def own_mode(row: Row) -> str | None:
    """The mode that a row says (its template settings, a switch in its last user turn) or shows (its response)."""
    if mode := mode_of(row.get("chat_template_kwargs")):
        return mode
    if switch := _SWITCH_AT_END.search(last_user_text(row["messages"])):
        return NON_THINKING if switch[1] else THINKING
    response = response_of(row)
    if not response or (response[0]["role"] == "assistant" and not isinstance(response[0]["content"], str)):
        return None
    return THINKING if split_thought(response_text(row) or "")[0] else NON_THINKING


def rows_in_modes(rows: Iterable[Row], modes: Modes, name: str, report: Report) -> Iterator[Row]:
    """Each row in its mode; what cannot have it goes into the report, and the realised shares with it."""
    counts = dict.fromkeys((THINKING, NON_THINKING), 0)
    for row in rows:
        try:
            row, mode = modes.apply(row)
        except RowError as error:
            report.leave_out(error, Place.of(row))
            continue
        counts[mode or "unknown"] = counts.get(mode or "unknown", 0) + 1
        yield row
    total = sum(counts.values())
    report.state(name, **counts, thinking_share=counts[THINKING] / total if total else 0.0)


def _template_settings(row: Row, student: str, teacher: str) -> Row:
    student_settings = row.get("chat_template_kwargs") or {}
    teacher_settings = row.get("teacher_chat_template_kwargs")
    settings = {"chat_template_kwargs": {**student_settings, SWITCH: student == THINKING}}
    if teacher_settings is not None or teacher != student:
        teacher_settings = student_settings if teacher_settings is None else teacher_settings
        settings["teacher_chat_template_kwargs"] = {**teacher_settings, SWITCH: teacher == THINKING}
    return settings


def _without_old_thoughts(turns: list[Message], mode: str) -> list[Message]:
    """Without the thoughts before the last question; those behind it led to calls, and stay where the side thinks."""
    last = max((index for index, turn in enumerate(turns) if turn["role"] == "user"), default=0)
    return [
        {**turn, "content": split_thought(turn["content"])[1]}
        if turn["role"] == "assistant" and isinstance(turn["content"], str) and (index < last or mode != THINKING)
        else turn
        for index, turn in enumerate(turns)
    ]


def _with_switch(turns: list[Message], mode: str) -> list[Message]:
    last = max((index for index, turn in enumerate(turns) if turn["role"] == "user"), default=None)
    if last is None or not isinstance(turns[last]["content"], str):
        raise RowError("format", f"it has no user turn of text where {SWITCHES[mode]} could stand")
    text = _SWITCH_AT_END.sub("", turns[last]["content"])
    return [*turns[:last], {**turns[last], "content": f"{text} {SWITCHES[mode]}"}, *turns[last + 1 :]]
