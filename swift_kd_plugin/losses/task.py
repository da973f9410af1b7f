"""A loss over tokens, worked on block by block where the logits of all of them are not there at once."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from swift_kd_plugin.losses.lm_head import LMHead, Window
from swift_kd_plugin.losses.request import LossRows, Request


class Sink(Protocol):
    """Where a gradient goes while it is computed."""

    def place(self, tokens: slice, logits: Tensor) -> Tensor:
        """Where the losses shall write the gradient in a block's logits; it may be the logits themselves."""

    def take(self, tokens: slice, written: Tensor, parts: dict[str, Tensor]) -> None:
        """Called once it is written there; `parts` are those of the block's tokens."""

    def finish(self) -> None:
        """Called after the last block."""


@dataclass
class BlockwiseLoss:
    """What is to be computed: `losses(request, student, *teacher, gradient)`, all of them tensors.

    Args:
        inplace: write the gradient into the student's logits.
        weigh: what the tokens of a slice count, given `parts` of those tokens; None where they all count alike.
        parts, weights: filled on the way, [T] each.
    """

    losses: Callable[..., LossRows]
    request: Request
    inplace: bool = False
    weigh: Callable[[slice, dict[str, Tensor]], Tensor] | None = None
    parts: dict[str, Tensor] | None = None
    weights: Tensor | None = None

    def values(self, student: Tensor | LMHead, teacher: list[Tensor | LMHead], gradient: Sink | None) -> Tensor:
        """The weighted loss per token [T]."""
        rows = self.run(student, teacher, gradient)
        self.parts = rows.parts
        if self.weigh is None:
            return rows.loss
        self.weights = self.weigh(slice(0, len(rows.loss)), rows.parts)
        return rows.loss * self.weights

    def run(self, student: Tensor | LMHead, teacher: list[Tensor | LMHead], gradient: Sink | None) -> LossRows:
        """Logits that are there already make a single block."""
        request, rows = self.request, LossRows(self.request, student)
        size = min(request.block or len(rows.loss), len(rows.loss))
        own = Window(student, request.student_rows, size)
        others = [Window(side, request.teacher_rows, size) for side in teacher]
        for tokens in request.blocks(len(rows.loss)):
            logits, student_rows = own.show(tokens)
            shown, (teacher_rows, *_) = zip(*(other.show(tokens) for other in others), strict=True)
            place = None if gradient is None else gradient.place(tokens, logits)
            found = self.losses(request.part(tokens, student_rows, teacher_rows), logits, *shown, place)
            rows.put(tokens, found.loss, found.parts)
            if gradient is not None:
                gradient.take(tokens, place, found.parts)
        if gradient is not None:
            gradient.finish()
        return rows
