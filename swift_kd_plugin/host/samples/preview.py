"""A row as both models will see it: pieces of text with what is trained and what only the teacher sees."""

import logging
from dataclasses import dataclass
from difflib import SequenceMatcher
from itertools import takewhile
from typing import Any

from swift.template import get_template
from swift.utils import get_logger

from swift_kd_plugin.errors import KDError
from swift_kd_plugin.generation.codec import load_processor
from swift_kd_plugin.generation.tool_text import write_tools_as_the_model
from swift_kd_plugin.host.samples.encode_views import EncodingError, encode_views
from swift_kd_plugin.host.samples.response_labels import IGNORED, loss_scale_of
from swift_kd_plugin.host.samples.sample import KDSample

# Pairs of tokens; comparing takes seconds where all are alike.
MOST_COMPARED = 20_000_000


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


def load_training_template(
    model: str, template: str | None, model_type: str | None, loss_scale: str, enable_thinking: bool | None
) -> Any:
    """ms-swift's template in training mode, as GKD makes it, from a model's tokenizer; no weights are read.

    Raises:
        KDError: ms-swift does not know the model or the template.
    """
    get_logger().setLevel(logging.WARNING)
    processor, meta = load_processor(model, template, model_type)
    if meta.is_thinking and meta.non_thinking_prefix and "ignore_empty_think" not in loss_scale:
        loss_scale += "+ignore_empty_think"
    made = get_template(processor, template_type=template, loss_scale=loss_scale, enable_thinking=enable_thinking)
    write_tools_as_the_model(made)
    made.max_length = None  # not the model's
    made.set_mode("train")
    return made


def preview(row: dict[str, Any], template) -> dict[str, list[Piece]]:
    """The pieces of the student's view, and of the teacher's if it has one of its own.

    Raises:
        KDError: the template cannot encode the row; show it without a model.
    """
    sample = KDSample.from_row(row)
    try:
        (student,), teachers = encode_views([sample], template)
    except EncodingError as error:
        raise KDError(f"{error.what}; without --model it is shown as text.") from error
    if teachers is None:
        return {"student and teacher": _pieces(student, [False] * len(student["input_ids"]), template.tokenizer)}
    (teacher,) = teachers
    lacks = _compare(student["input_ids"], teacher["input_ids"])
    return {
        "student": _pieces(student, lacks[0], template.tokenizer),
        "teacher": _pieces(teacher, lacks[1], template.tokenizer),
    }


def _compare(first: list[int], second: list[int]) -> tuple[list[bool], list[bool]]:
    """Which tokens of each sequence the other lacks; of very long ones all from the first difference to the last."""
    end = _count_equal(first[::-1], second[::-1])
    start = _count_equal(first[: len(first) - end], second[: len(second) - end])
    masks = tuple([start <= index < len(ids) - end for index in range(len(ids))] for ids in (first, second))
    inner = [ids[start : len(ids) - end] for ids in (first, second)]
    if len(inner[0]) * len(inner[1]) <= MOST_COMPARED:
        for a, b, size in SequenceMatcher(None, *inner, autojunk=False).get_matching_blocks():
            for mask, at in zip(masks, (a, b), strict=True):
                mask[start + at : start + at + size] = [False] * size
    return masks


def _count_equal(first: list[int], second: list[int]) -> int:
    """How many tokens at the start are the same."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(first, second, strict=False)))


def _pieces(view: dict[str, Any], mask: list[bool], tokenizer) -> list[Piece]:
    weights = loss_scale_of(view)
    pieces, waiting = [], []
    for token, label, weight, is_own in zip(view["input_ids"], view["labels"], weights, mask, strict=True):
        waiting.append(token)
        text = tokenizer.decode(waiting)
        if text.endswith("�"):
            continue
        pieces.append(Piece(text, tuple(waiting), 0.0 if label == IGNORED else float(weight), is_own))
        waiting = []
    return pieces
