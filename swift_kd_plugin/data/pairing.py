"""Makes one row with two views out of a row with the experience and a row without it.

The student sees the row without the experience, the teacher the row with it; both score the same response.
"""

import re
import unicodedata
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from typing import Any, Literal

import numpy as np
from datasets import Dataset

from swift_kd_plugin.config.typed_keys import suggest
from swift_kd_plugin.data.column_names import QUERY
from swift_kd_plugin.data.columns import COLUMNS, RESPONSE_COLUMNS, SHARED_COLUMNS, TEACHER_COLUMNS
from swift_kd_plugin.data.gold_answers import gold_answer, gold_text
from swift_kd_plugin.data.joining import JoinKeys, join
from swift_kd_plugin.data.leaks import Suspicions
from swift_kd_plugin.data.row_report import Report
from swift_kd_plugin.data.row_store import to_rows
from swift_kd_plugin.data.rows import (
    SPEAKS,
    Message,
    Place,
    Row,
    RowError,
    digest,
    last_user_text,
    response_of,
    response_text,
    split_response,
    text_of,
    without_response,
)
from swift_kd_plugin.data.think_block import split_thought
from swift_kd_plugin.data.turn_keys import weights_of
from swift_kd_plugin.data.turns import put_thought
from swift_kd_plugin.data.validate import check_answer
from swift_kd_plugin.errors import KDError

ANSWERS_SEEN = 1000
LAST_USER_MESSAGE, ORDER = "last_user_message", "order"


@dataclass(frozen=True)
class ResponseRule:
    """Where the shared response comes from.

    Args:
        kind: "exp" that of the row with the experience, "gold" what a column holds, "none" nothing
            (the student will write it).
        gold: that column, with a text or a conversation; of the row without the experience if it has one, else of the
            other.
        thought: a column with the response's thought, of the row that has the response.
    """

    kind: Literal["exp", "gold", "none"] = "exp"
    gold: str = "gold"
    thought: str | None = None

    def choose(self, response: list[Message], *rows: Row) -> list[Message]:
        """The turns of the response. Raises RowError if there are none where there should be some.

        Args:
            rows: where columns are looked for; the row of the response is the last.
        """
        if self.kind == "none":
            return []
        if self.kind == "gold":
            answer = self._with_thought(self._gold_answer(rows), rows)
            check_answer(text_of(answer["content"]), f"the answer in its column {self.gold!r}")
            return [answer]
        if not response:
            raise RowError("no response", "its messages do not end with an answer (a turn of the assistant)")
        return self._in_front(response, rows[-1:])

    def _in_front(self, response: list[Message], rows: Sequence[Row]) -> list[Message]:
        """The turns of a response with the thought at their start; calls may stand there alone."""
        if not self.has_thought(*rows):
            return response
        said, rest = response[0], response[1:]
        if said["role"] == "tool_call":
            said, rest = {"role": "assistant", "content": "", **weights_of(said)}, response
        return [self._with_thought(said, rows, bool(rest)), *rest]

    def _with_thought(self, answer: Message, rows: Sequence[Row], calls_tools: bool = False) -> Message:
        thought = _first_value(rows, self.thought)
        if thought in (None, ""):
            return answer
        what = f"thought in the column {self.thought!r}"
        return {**answer, "content": put_thought(answer["content"], thought, what, calls_tools, "its response")}

    def has_thought(self, *rows: Row) -> bool:
        """Whether the column that is to hold the thought has something."""
        return _first_value(rows, self.thought) not in (None, "")

    def gold_of(self, *rows: Row) -> Any:
        return _first_value(rows, self.gold)

    def _gold_answer(self, rows: Sequence[Row]) -> Message:
        row = next((row for row in rows if _first_value([row], self.gold) is not None), rows[0])
        return gold_answer(_first_value([row], self.gold), self.gold, row)


def _first_value(rows: Iterable[Row], column: str | None) -> Any:
    values = (row.get("columns", {}).get(column) for row in rows)
    return next((value for value in values if value is not None), None)


def with_response(rows: Iterable[Row], rule: ResponseRule, report: Report) -> Iterator[Row]:
    """Rows with the response of a rule; a row that has none of its own stays without one."""
    for row in rows:
        try:
            prompt, response = split_response(row["messages"])
            if rule.kind == "exp" and not response:
                made = row
            else:
                made = {**row, "messages": [*prompt, *rule.choose(response, row)]}
        except RowError as error:
            report.leave_out(error, Place.of(row))
        else:
            yield made


def told_thoughts(rows: Iterable[Row], rule: ResponseRule, name: str) -> Iterator[Row]:
    """The rows.

    Raises:
        KDError: none of those that answer has a thought in the rule's column: at their end, or where the first
            ANSWERS_SEEN have a column that is called nearly so.
    """
    answers, others = 0, set()
    thoughts = False
    for row in rows:
        if not thoughts:
            answers += row["messages"][-1]["role"] in SPEAKS
            thoughts = rule.has_thought(row)
            others |= row.get("columns", {}).keys()
            if answers == ANSWERS_SEEN and not thoughts and (near := suggest(rule.thought, others - {rule.thought})):
                raise _no_thoughts(name, rule, near)
        yield row
    if answers and not thoughts:
        raise _no_thoughts(name, rule, suggest(rule.thought, others))


def _no_thoughts(name: str, rule: ResponseRule, near: str) -> KDError:
    return KDError(f"{name}: no row has text in its column {rule.thought!r}{near}, which is to hold the thoughts.")


def key_of(row: Row, on: str) -> str | None:
    """What joins a row with its partner, as text; None if it has no such thing."""
    if on == ORDER:
        return str(row["kd_row"])
    if on == LAST_USER_MESSAGE:
        return normalise_key(last_user_text(row["messages"])) or None
    value = row.get("columns", {}).get(on)
    if isinstance(value, bool) or not isinstance(value, (str, int)) or value == "":
        return None
    return str(value)


def normalise_key(text: str) -> str:
    """Text in which width, case and white space make no difference."""
    return re.sub(r"\s+", " ", unicodedata.normalize("NFKC", text).casefold()).strip()


@dataclass(frozen=True)
class PairSide:
    """One of the two stored sources and what messages call it."""

    rows: Dataset
    name: str

    def numbered(self, numbers: np.ndarray) -> Iterator[Row]:
        return iter(to_rows(self.rows.select(numbers)))


def join_sides(
    exp: PairSide, noexp: PairSide, on: str, duplicates: str, report: Report, unmatched: Report
) -> np.ndarray:
    """Row numbers of the partners [pairs, 2], in the order of the rows without the experience.

    Args:
        on: a column, or LAST_USER_MESSAGE, or ORDER (the row's number in its file).
        duplicates: see `joining.join`.
        report: takes rows without a key and rows that share one.
        unmatched: takes rows that only one side has.
    """
    (exp_numbers, exp_keys), (noexp_numbers, noexp_keys) = (_read_keys(side, on, report) for side in (exp, noexp))
    result = join(exp_keys, noexp_keys, duplicates)
    for which, side, numbers, other in ((0, exp, exp_numbers, noexp), (1, noexp, noexp_numbers, exp)):
        fates = (
            (unmatched, result.lonely, f"only in {side.name}", f"{other.name} has no row to pair it with, by"),
            (report, result.repeated, "duplicate", "it is the same as another row with"),
            (report, result.conflicting, "conflicting duplicates", "it differs from another row with"),
        )
        for page, rows, kind, reason in fates:
            for row in side.numbered(numbers[rows[which]]):
                page.leave_out(RowError(kind, f"{reason} {describe(on)} {key_of(row, on)!r}"), Place.of(row))
    return np.stack([exp_numbers[result.pairs[:, 0]], noexp_numbers[result.pairs[:, 1]]], axis=1)


def describe(on: str) -> str:
    """How a sentence names what joins the rows."""
    names = {LAST_USER_MESSAGE: "the last user message", ORDER: "the row number"}
    return names.get(on, f"the {on}")


def _read_keys(side: PairSide, on: str, report: Report) -> tuple[np.ndarray, JoinKeys]:
    """Numbers and keys of the rows that have a key; the others go into the report."""
    needed = ["messages" if on == LAST_USER_MESSAGE else "columns", "kd_source", "kd_row", "kd_id"]
    numbers, keys = array("q"), bytearray()
    for number, row in enumerate(to_rows(side.rows.select_columns(needed))):
        key = key_of(row, on)
        if key is None:
            report.leave_out(_no_key(row, on), Place.of(row))
            continue
        numbers.append(number)
        keys += digest(key)
    chosen = np.array(numbers, np.int64)
    return chosen, JoinKeys.of(keys, lambda repeated: [_content(row) for row in side.numbered(chosen[repeated])])


def _content(row: Row) -> bytes:
    return digest({**row, "kd_source": None, "kd_row": None})


def _no_key(row: Row, on: str) -> RowError:
    if on == LAST_USER_MESSAGE:
        return RowError("no key", "it has no user message to be joined by")
    value = row.get("columns", {}).get(on)
    if value is None and on in QUERY:
        return RowError("no key", f"its column {on!r} became the user's turn; join by last_user_message")
    if value is None:
        return RowError("no key", f"it has no column {on!r} to be joined by")
    return RowError("no key", f"it needs a text or a whole number in its column {on!r}, not {value!r}")


def paired_rows(
    exp: PairSide, noexp: PairSide, pairs: np.ndarray, rule: ResponseRule, suspicions: Suspicions, report: Report
) -> Iterator[Row]:
    """The merged rows; a row that is in none of them goes into the report."""
    tolerant = report.but(strict=False)
    both = zip(pairs[:, 1], exp.numbered(pairs[:, 0]), noexp.numbered(pairs[:, 1]), strict=True)
    for _, partners in groupby(both, key=itemgetter(0)):
        used, refused = False, []
        for _, exp_row, noexp_row in partners:
            try:
                row = merge_rows(exp_row, noexp_row, rule)
                error, page = suspicions.sift(row, report), tolerant
            except RowError as reason:
                error, page = reason, report
            if error:
                page.leave_out(error, Place.of(exp_row))
                refused.append((error, page))
                continue
            _note_conflict(exp_row, noexp_row, row, rule, report)
            used = True
            yield row
        if not used:  # of several reasons one that does not depend on the order of the lines
            error, page = min(refused, key=lambda refusal: (refusal[0].kind, str(refusal[0])))
            page.leave_out(error, Place.of(noexp_row))


def merge_rows(exp: Row, noexp: Row, rule: ResponseRule) -> Row:
    """One row with two views.

    Args:
        exp: with the experience in view, in a system prompt, a history or the question.
        noexp: the same question as the student will meet it. A final assistant turn is left out.

    Returns:
        The row without the experience, with
        `messages`: its turns and the response, if the rule has one;
        `teacher_messages`: the row with the experience up to its last user (or tool) turn;
        and the teacher's other columns: its tools, images and template settings where they are not those of the row
        without it.

    Raises:
        RowError: the response is missing, or the two differ in videos, audios or objects, or a row is a pair already.
    """
    if exp.get("teacher_messages") or noexp.get("teacher_messages"):
        raise RowError("views", "one of its two rows has teacher_messages already, so the teacher's view is not clear")
    for column in SHARED_COLUMNS:
        if exp.get(column) != noexp.get(column):
            raise RowError("views", f"its two rows differ in {column!r}, which both views must share")
    response = rule.choose(response_of(exp), noexp, exp)
    views = {
        "messages": [*without_response(noexp["messages"]), *response],
        "teacher_messages": without_response(exp["messages"]),
    }
    merged = {key: value for key, value in noexp.items() if key not in RESPONSE_COLUMNS}
    if rule.kind != "gold":
        merged |= {key: exp[key] for key in RESPONSE_COLUMNS if key in exp}
    return {**merged, **views, **_own_columns(exp, noexp)}


def _own_columns(exp: Row, noexp: Row) -> Row:
    columns = {}
    for name in TEACHER_COLUMNS:
        column, nothing = COLUMNS[name].stands_for, COLUMNS[name].nothing
        exp_value, noexp_value = (nothing if row.get(column) is None else row[column] for row in (exp, noexp))
        if nothing is not None and exp_value != noexp_value:
            columns[name] = exp_value
    return columns


def _note_conflict(exp: Row, noexp: Row, row: Row, rule: ResponseRule, report: Report) -> None:
    taken = response_text(row)
    if taken is None:
        return
    for other in (response_text(exp), response_text(noexp), gold_text(rule.gold_of(noexp, exp))):
        if isinstance(other, str) and other != taken and normalised_answer(other) != normalised_answer(taken):
            text = f"{normalised_answer(taken)!r} is used, another says {normalised_answer(other)!r}"
            report.note("conflicting answers", text, Place.of(row))
            return


def normalised_answer(content: Any) -> str:
    """A response without its think block, normalised for comparison."""
    return normalise_key(split_thought(text_of(content))[1])
