"""Rows with the experience in a column of their own: it is put into the teacher's view only."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

from swift_kd_plugin.data.leaks import Suspicions
from swift_kd_plugin.data.pairing import ResponseRule
from swift_kd_plugin.data.row_report import Report
from swift_kd_plugin.data.rows import Message, Place, Row, RowError, response_of, without_response

MARK = "{experience}"


@dataclass(frozen=True)
class Placement:
    """Where the teacher sees the experience.

    Args:
        column: the column that holds it, a text or a list of texts (joined by new lines).
        place: "system" behind the system prompt's text, "before" or "after" the text of the last user turn.
        template: the text that is put there, with MARK where the experience goes.
        separator: between it and the text that is there already.
    """

    column: str = "experience"
    place: Literal["system", "before", "after"] = "system"
    template: str = MARK
    separator: str = "\n\n"

    def teacher_view(self, row: Row) -> list[Message]:
        """The turns before the response, with the experience. Raises RowError if there is no experience or no place."""
        if row.get("teacher_messages"):
            raise RowError("views", "it has teacher_messages already, beside which the experience has no place")
        text = self.template.replace(MARK, self._experience(row))
        turns = [dict(turn) for turn in without_response(row["messages"])]
        if self.place == "system":
            if turns[0]["role"] == "system":
                turns[0]["content"] = self.separator.join(filter(None, (turns[0]["content"], text)))
                return turns
            return [{"role": "system", "content": text}, *turns]
        last = next(turn for turn in reversed(turns) if turn["role"] == "user")
        last["content"] = self._beside(last["content"], text)
        return turns

    def _experience(self, row: Row) -> str:
        value = row.get("columns", {}).get(self.column)
        texts = value if isinstance(value, list) else [value]
        if not all(isinstance(text, str) and text.strip() for text in texts) or not texts:
            raise RowError("no experience", f"it needs a text in its column {self.column!r}, not {value!r}")
        return "\n".join(texts)

    def _beside(self, content, text: str):
        parts = [text, self.separator] if self.place == "before" else [self.separator, text]
        if isinstance(content, list):
            added = {"type": "text", "text": "".join(parts)}
            return [added, *content] if self.place == "before" else [*content, added]
        return "".join([*parts, content] if self.place == "before" else [content, *parts])


def experienced_rows(
    rows: Iterable[Row], placement: Placement, rule: ResponseRule, suspicions: Suspicions, report: Report
) -> Iterator[Row]:
    """Rows with the experience in the teacher's view; what cannot be used goes into the report."""
    for row in rows:
        try:
            response = rule.choose(response_of(row), row)
            row = {**row, "teacher_messages": placement.teacher_view(row)}
        except RowError as error:
            report.leave_out(error, Place.of(row))
            continue
        row["messages"] = [*without_response(row["messages"]), *response]
        if finding := suspicions.sift(row, report):
            report.but(strict=False).leave_out(finding, Place.of(row))
        else:
            yield row
