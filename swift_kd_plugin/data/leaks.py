"""Finds what a pair should not have: the experience in the student's view, responses that speak of it, equal views."""

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Literal

from swift_kd_plugin.data.row_report import Report, shorten
from swift_kd_plugin.data.rows import Place, Row, RowError, response_text, text_of, without_response
from swift_kd_plugin.data.views import teachers_own
from swift_kd_plugin.errors import KDError

SAME, MORE, SWAPPED = "same views", "student sees more", "exp and noexp look swapped"
# A shorter piece of the experience proves nothing (bytes of UTF-8, so that a Chinese character counts three).
LEAST_BYTES = 24
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+|[。！？\n]+")
# A response without any of these words quotes nothing; looking for them is twenty times faster than for the phrases.
_SIGNS = ("hint", "experience", "tip", "guideline", "notes", "context", "code book", "reference")
_SIGNS += ("提示", "经验", "指南", "参考资料", "背景信息", "密码本")
_NOUNS = "hint|hints|experience|experiences|tip|tips|guideline|guidelines|notes|context|code book|reference"
QUOTES = (
    rf"\b(according to|based on|following|as stated in|as mentioned in|from) (the|your|this|these|given|provided)"
    rf"( \w+)? ({_NOUNS})\b",
    rf"\b(the|your|this) ({_NOUNS}) (say|says|state|states|suggest|suggests|mention|mentions|tell|tells|note|notes)\b",
    r"(根据|按照|依据|参考|基于|结合|遵循)(上述|以上|所给|给出的|提供的|你的|您的|该|这些|这条|已有的?)?(提示|经验|指南|参考资料|背景信息|密码本)",
    r"(提示|经验|指南|参考资料)(中|里|所)?(提到|说|指出|建议|写道)",
)


@dataclass(frozen=True)
class Suspicions:
    """What to look for in a row with two views, and what to do about it.

    Args:
        leaks: the student's view contains the experience's text: "report" it, or "drop" the row and report it.
        quotes: the response speaks of the experience ("according to the hint"): the same.
        patterns: regular expressions of the user that find such responses, besides QUOTES.
    """

    leaks: Literal["report", "drop"] = "report"
    quotes: Literal["report", "drop"] = "report"
    patterns: tuple[str, ...] = field(default=())

    @cached_property
    def _own(self) -> re.Pattern | None:
        return _any_of(self.patterns) if self.patterns else None

    def sift(self, row: Row, report: Report) -> RowError | None:
        """The finding for which the row is to be dropped, which is no error; otherwise all findings are noted."""
        findings = (("leak", self.leaks, self.find_leak(row)), ("quote", self.quotes, self.find_quote(row)))
        for kind, rule, finding in findings:
            if finding is not None and rule == "drop":
                return RowError(kind, finding)
        for kind, _, finding in findings:
            if finding is not None:
                report.note(kind, finding, Place.of(row))
        return None

    def find_leak(self, row: Row) -> str | None:
        pieces = experience_pieces(row)
        view = _flat(text_of(turn["content"]) for turn in without_response(row["messages"])) if pieces else ""
        for piece in pieces:
            if piece in view:
                return f"the student's view contains the experience's text {shorten(piece, 60)!r}"
        return None

    def find_quote(self, row: Row) -> str | None:
        text = response_text(row)
        if text is None:
            return None
        match = self._own.search(text) if self._own else None
        if not match and any(sign in text.lower() for sign in _SIGNS):
            match = _QUOTE.search(text)
        return f"the response speaks of the experience: {match[0]!r}" if match else None


def _any_of(patterns: Iterable[str]) -> re.Pattern:
    return re.compile("|".join(f"(?:{pattern})" for pattern in patterns), re.IGNORECASE)


_QUOTE = _any_of(QUOTES)


def experience_pieces(row: Row) -> list[str]:
    """The sentences and lines that the teacher sees in turns of its own, normalised.

    What both views have at the same place is no experience: whole turns, and the text of the student's turn that stands
    in the teacher's of the same role, counted from the end (the question, a system prompt that both share); of system
    prompts also the sentences that begin or end both.
    """
    view = row.get("teacher_messages")
    if not view:
        return []
    students = [(turn["role"], text_of(turn["content"])) for turn in without_response(row["messages"])]
    shared, by_role = set(students), {}
    for role, text in students:
        by_role.setdefault(role, []).append(text)
    pieces = []
    for turn in reversed(view):
        role, text = turn["role"], text_of(turn["content"])
        other = by_role[role].pop() if by_role.get(role) else ""
        if (role, text) not in shared:
            pieces = [*_own_sentences(text, other, role == "system"), *pieces]
    return pieces


@lru_cache(maxsize=256)
def _own_sentences(text: str, other: str, is_prompt: bool) -> tuple[str, ...]:
    """The sentences and lines of a text that are long enough and not the other's; many rows have the same."""
    if other.strip():
        text = text.replace(other.strip(), "\n")
    mine, others = _sentences(text), _sentences(other) if is_prompt else []
    start = _same_at_start(mine, others)
    end = _same_at_start(mine[start:][::-1], others[start:][::-1])
    own = mine[start : len(mine) - end]
    return tuple(dict.fromkeys(part for part in own if len(part.encode()) >= LEAST_BYTES))


def _same_at_start(mine: list[str], others: list[str]) -> int:
    return next(
        (at for at, (a, b) in enumerate(zip(mine, others, strict=False)) if a != b), min(map(len, (mine, others)))
    )


def _sentences(text: str) -> list[str]:
    return [part for part in (_flat([part]) for part in _SENTENCE_END.split(text)) if part]


def _flat(texts: Iterable[str]) -> str:
    return " ".join(" ".join(texts).casefold().split())


def with_two_views(rows: Iterable[Row], exp: str, noexp: str, report: Report) -> Iterator[Row]:
    """The rows as they are; those in which the teacher sees nothing of its own are noted, and if it is so in all, that.

    Args:
        exp, noexp: what messages call the two sources.

    Raises:
        KDError: both see the same in every row.
    """
    count, found, first = 0, Counter(), None
    for row in rows:
        first = first or Place.of(row)
        if finding := find_no_experience(row):
            report.note(finding.kind, str(finding), Place.of(row))
            found[finding.kind] += 1
        count += 1
        yield row
    if count and found[MORE] == count:
        text = f"the student's view holds the teacher's and more in all {count:,} rows; are {exp} and {noexp} swapped?"
        report.note(SWAPPED, text, first)
    if count and found[SAME] == count:
        raise KDError(
            f"teacher and student see the same in all {count:,} rows of {exp} and {noexp}, so that there is no "
            "experience to learn; give the rows with the experience as exp and those without it as noexp."
        )


def find_no_experience(row: Row) -> RowError | None:
    """Whether teacher and student see the same, or the student all that the teacher sees, and more."""
    own = teachers_own(row)
    teacher = own.pop("messages", None) or []
    student = without_response(row["messages"])
    if own or row.get("teacher_thought") is not None:
        return None
    if teacher == student:
        return RowError(SAME, "teacher and student see the same")
    texts = [(turn["role"], text_of(turn["content"])) for turn in student]
    if all(_is_part(turn["role"], text_of(turn["content"]), texts) for turn in teacher):
        return RowError(MORE, "the student sees all that the teacher sees, and more; are exp and noexp exchanged?")
    return None


def _is_part(role: str, text: str, turns: list[tuple[str, str]]) -> bool:
    return any(role == other and text in longer for other, longer in turns)
