"""A loss over tokens in two loops: over blocks, where a head makes the logits, and within one over chunks.

T tokens, C tokens of a block or chunk, N rows of a side, v this rank's columns of the vocabulary.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from swift_kd_plugin.losses.assemble import loss_of
from swift_kd_plugin.losses.lm_head import LMHead
from swift_kd_plugin.losses.request import Request


class Chunk(Protocol):
    """A loss over the tokens of a chunk, which lie in memory at once."""

    def values(self) -> dict[str, Tensor]:
        """What each token's loss is made of, all float64 [C]."""

    def gradient(self) -> Tensor:
        """This rank's gradient of their losses in the student's logits [C, v]; called after `values`."""


class LossRows:
    """Per token: the mixed `loss` [T] and its `parts` [T] each, all in the working precision."""

    def __init__(self, request: Request, student: Tensor | LMHead):
        rows = student if request.student_rows is None else request.student_rows
        self.request = request
        self.loss = torch.zeros(len(rows), dtype=working_dtype(student), device=student.device)
        self.parts: dict[str, Tensor] = {}

    def put(self, tokens: slice, parts: dict[str, Tensor]) -> None:
        self.copy(tokens, loss_of(self.request, tokens, parts), parts)

    def copy(self, tokens: slice, loss: Tensor, parts: dict[str, Tensor]) -> None:
        self.loss[tokens] = loss.to(self.loss.dtype)
        for name, values in parts.items():
            row = self.parts.setdefault(name, torch.zeros_like(self.loss))
            row[tokens] = values.to(row.dtype)


def losses_by_chunks(
    make: Callable[..., Chunk], request: Request, student: Tensor, teacher: Iterable[Tensor], gradient: Tensor | None
) -> LossRows:
    """Fills `gradient` (this rank's [T, v], or None) and returns what `request` asks for, per token.

    Args:
        make: `make(request, student, *teacher, tokens)` with the rows of the tokens of a slice.
        student: [N, v] logits of this rank; may be the same memory as `gradient`.
        teacher: the tensors of the teacher's side [M, ...].
    """
    rows = LossRows(request, student)
    for tokens in slices(len(rows.loss), request.chunk):
        others = [_rows_of(part, request.teacher_rows, tokens) for part in teacher]
        chunk = make(request, _rows_of(student, request.student_rows, tokens), *others, tokens)
        rows.put(tokens, chunk.values())
        if gradient is not None:
            _write_rows(gradient, request.student_rows, tokens, chunk.gradient())
    return rows


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
        total = len(rows.loss)
        size = min(request.block or total, total)
        student_window = Window(student, request.student_rows, size)
        others = [Window(side, request.teacher_rows, size) for side in teacher]
        for tokens in slices(total, request.block or total):
            logits, student_rows = student_window.show(tokens)
            shown, (teacher_rows, *_) = zip(*(other.show(tokens) for other in others), strict=True)
            place = None if gradient is None else gradient.place(tokens, logits)
            result = self.losses(request.part(tokens, student_rows, teacher_rows), logits, *shown, place)
            rows.copy(tokens, result.loss, result.parts)
            if gradient is not None:
                gradient.take(tokens, place, result.parts)
        if gradient is not None:
            gradient.finish()
        return rows


class Window:
    """One side's rows of a block of tokens, as the losses take them: a tensor, and which of its rows they are.

    What is there already is looked at where it lies; a head's logits are made in one buffer, block after block.

    Args:
        side: [N, v] logits, entries of a top-k teacher, or a head.
        rows: which rows are the T tokens [T]; None means all in order.
        size: the most tokens of a block.
    """

    def __init__(self, side: Tensor | LMHead, rows: Tensor | None, size: int):
        self._side, self._rows = side, rows
        self._buffer = side.weights[0].new_empty(size, side.width) if isinstance(side, LMHead) else None

    def show(self, tokens: slice) -> tuple[Tensor, Tensor | None]:
        picked = tokens if self._rows is None else self._rows[tokens]
        if self._buffer is not None:
            return self._side[picked].logits(out=self._buffer[: tokens.stop - tokens.start]), None
        if self._rows is None:
            return self._side[tokens], None
        return self._side, picked


def slices(total: int, size: int) -> Iterator[slice]:
    """[0, total) in pieces of `size`, of which the last may be shorter."""
    for start in range(0, total, max(size, 1)):
        yield slice(start, min(start + size, total))


def working_dtype(logits: Tensor | LMHead) -> torch.dtype:
    """fp32 for half precisions and fp32, float64 for float64."""
    return torch.float64 if logits.dtype == torch.float64 else torch.float32


def _rows_of(side: Tensor, rows: Tensor | None, tokens: slice) -> Tensor:
    """The chunk's rows: a view, or a copy where rows are picked."""
    return side[tokens] if rows is None else side.index_select(0, rows[tokens])


def _write_rows(gradient: Tensor, rows: Tensor | None, tokens: slice, values: Tensor) -> None:
    """Writes a chunk's gradient, rounding it to the buffer's precision; columns beyond `values` become zero."""
    width = values.shape[1]
    if rows is None:
        gradient[tokens, :width] = values.to(gradient.dtype)
        gradient[tokens, width:] = 0
    else:
        if width < gradient.shape[1]:
            values = torch.nn.functional.pad(values, (0, gradient.shape[1] - width))
        gradient.index_copy_(0, rows[tokens], values.to(gradient.dtype))
