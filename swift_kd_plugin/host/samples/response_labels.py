"""Response tokens of two views of a sample, matched by id."""

from dataclasses import dataclass
from itertools import zip_longest

IGNORED = -100


@dataclass(frozen=True)
class Mismatch:
    """Where two views of one response part.

    Args:
        position: first response token that differs, counted from 0.
        student, teacher: the ids at that position, None where a side has no more tokens.
        student_count, teacher_count: response tokens of each view.
    """

    position: int
    student: int | None
    teacher: int | None
    student_count: int
    teacher_count: int


def loss_scale_of(view: dict) -> list[float]:
    """The weight of every position of an encoded view, in a new list: its loss_scale, else 1 where it is trained."""
    return list(view.get("loss_scale") or [float(label != IGNORED) for label in view["labels"]])


def trained_tokens(labels: list[int]) -> list[int]:
    """The ids that a view is trained on, in order."""
    return [label for label in labels if label != IGNORED]


def match_tokens(student: list[int], teacher: list[int]) -> Mismatch | None:
    """None if both views have the same tokens, else the first place where they differ."""
    for position, (student_token, teacher_token) in enumerate(zip_longest(student, teacher)):
        if student_token != teacher_token:
            return Mismatch(position, student_token, teacher_token, len(student), len(teacher))
    return None
