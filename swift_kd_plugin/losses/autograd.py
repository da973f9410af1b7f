"""Chunked losses as a function that autograd knows.

Value and gradient are computed together, chunk by chunk, when the loss is called; backward only multiplies the stored
gradient by what comes from above.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from swift_kd_plugin.losses.request import Request, Rows


@dataclass
class Task:
    """What is to be computed: `losses(request, student, *teacher, gradient)`; `parts` is filled on the way."""

    losses: Callable[..., Rows]
    request: Request
    inplace: bool = False
    parts: dict[str, Tensor] | None = None

    def run(self, student: Tensor, teacher: tuple[Tensor, ...], differentiate: bool) -> tuple[Tensor, Tensor | None]:
        gradient = None
        if differentiate:
            gradient = student if self.inplace else torch.empty_like(student)
            if self.request.student_rows is not None:
                untouched = torch.ones(len(student), dtype=torch.bool, device=student.device)
                untouched[self.request.student_rows] = False
        rows = self.losses(self.request, student, *teacher, gradient)
        if gradient is not None and self.request.student_rows is not None:
            gradient[untouched] = 0
        self.parts = rows.parts
        return rows.loss, gradient


class _ChunkedLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, task: Task, differentiate: bool, student: Tensor, *teacher: Tensor) -> Tensor:
        loss, ctx.gradient = task.run(student.detach(), teacher, differentiate)
        ctx.task = task
        if differentiate and not task.inplace:
            ctx.save_for_backward(student, *teacher)
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_loss: Tensor):
        gradient, ctx.gradient = ctx.gradient, None
        if gradient is None:
            if ctx.task.inplace:
                raise RuntimeError(
                    "backward was called twice on a loss with inplace_grad=True, whose gradient and logits are gone "
                    "after the first call; pass inplace_grad=False."
                )
            student, *teacher = ctx.saved_tensors
            gradient = ctx.task.run(student.detach(), tuple(teacher), True)[1]
        rows = ctx.task.request.student_rows
        if rows is not None:
            grad_loss = grad_loss.new_zeros(len(gradient)).index_copy_(0, rows, grad_loss)
        for part, factor in zip(gradient.split(4096), grad_loss.split(4096), strict=True):
            part.mul_(factor[:, None])
        return None, None, gradient, *[None] * (len(ctx.needs_input_grad) - 3)


def run(task: Task, student: Tensor, *teacher: Tensor) -> Tensor:
    """The loss per token [T], differentiable in `student`; `task.parts` then holds what it is made of."""
    differentiate = torch.is_grad_enabled() and student.requires_grad
    return _ChunkedLoss.apply(task, differentiate, student, *teacher)
