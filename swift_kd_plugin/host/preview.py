"""A row as both models will see it: pieces of text with what is trained and what only the teacher sees."""

from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Any

from swift_kd_plugin.host.sample import KDSample
from swift_kd_plugin.host.views import encode_views
from swift_kd_plugin.teacher.matching import IGNORED


@dataclass(frozen=True)
class Piece:
    """Some tokens of a view that belong together.

    Args:
        text: they decoded.
        ids: the tokens, several where one alone is no whole character.
        weight: of the loss on them; 0 is context.
        own: whether the other view lacks them.
    """

    text: str
    ids: tuple[int, ...]
    weight: float
    own: bool


def load_template(model: str, template: str | None, model_type: str | None = None, **kwargs) -> Any:
    """ms-swift's template in training mode, from a model's tokenizer; no weights are read."""
    from swift.model import get_processor
    from swift.template import get_template

    made = get_template(get_processor(model, model_type=model_type), template_type=template, **kwargs)
    made.set_mode("train")
    return made


def preview(row: dict[str, Any], template) -> dict[str, list[Piece]]:
    """The pieces of the student's view, and of the teacher's if it has one of its own.

    Raises:
        KDError: the row has no response; its prompt is shown without a template's help only.
    """
    sample = KDSample.from_row(row)
    (student,), teachers = encode_views([sample], template)
    if teachers is None:
        return {"student and teacher": _pieces(student, [False] * len(student["input_ids"]), template.tokenizer)}
    (teacher,) = teachers
    lacks = _compare(student["input_ids"], teacher["input_ids"])
    return {
        "student": _pieces(student, lacks[0], template.tokenizer),
        "teacher": _pieces(teacher, lacks[1], template.tokenizer),
    }


def _compare(first: list[int], second: list[int]) -> tuple[list[bool], list[bool]]:
    """Which tokens of each sequence the other lacks."""
    own = [True] * len(first), [True] * len(second)
    for a, b, size in SequenceMatcher(None, first, second, autojunk=False).get_matching_blocks():
        own[0][a : a + size] = own[1][b : b + size] = [False] * size
    return own


def _pieces(view: dict[str, Any], own: list[bool], tokenizer) -> list[Piece]:
    weights = view.get("loss_scale") or [1.0] * len(own)
    pieces, waiting = [], []
    for token, label, weight, is_own in zip(view["input_ids"], view["labels"], weights, own, strict=True):
        waiting.append(token)
        text = tokenizer.decode(waiting)
        if text.endswith("�"):
            continue
        pieces.append(Piece(text, tuple(waiting), 0.0 if label == IGNORED else float(weight), is_own))
        waiting = []
    return pieces
