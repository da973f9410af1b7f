"""Chunked losses as a function that autograd knows.

Value and gradient are computed together, chunk by chunk, when the loss is called; backward only multiplies the stored
gradient by what comes from above.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from swift_kd_plugin.losses.chunked import BlockwiseLoss
from swift_kd_plugin.losses.gradients import HeadGradient, LogitsGradient
from swift_kd_plugin.losses.lm_head import LMHead, flatten, unflatten


class _ChunkedLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, task: BlockwiseLoss, differentiate: bool, parts: list[int], *tensors: Tensor) -> Tensor:
        student, *teacher = _sides(tensors, parts)
        ctx.task, ctx.parts = task, parts
        ctx.gradient = _gradient_of(task, student) if differentiate else None
        if differentiate and not task.inplace:
            ctx.save_for_backward(*tensors)
        return task.values(student, teacher, ctx.gradient)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor):
        gradient, ctx.gradient = ctx.gradient, None
        # A head's gradient is a sum over the tokens, which cannot be weighted any more.
        apart = upstream if ctx.parts[0] and not _uniform(upstream) else None
        if gradient is None or apart is not None:
            if ctx.task.inplace:
                raise RuntimeError(
                    "backward was called twice on a loss with inplace_grad=True, whose gradient and logits are gone "
                    "after the first call; pass inplace_grad=False."
                )
            student, *teacher = _sides(ctx.saved_tensors, ctx.parts)
            gradient = _gradient_of(ctx.task, student, apart)
            ctx.task.run(student, teacher, gradient)
        gradients = gradient.times(upstream if apart is None else torch.ones_like(upstream))
        return None, None, None, *gradients, *[None] * (len(ctx.needs_input_grad) - 3 - len(gradients))


def _sides(tensors: tuple[Tensor, ...], parts: list[int]) -> list[Tensor | LMHead]:
    """Student and teacher; logits are detached, since a gradient may be written into them."""
    return [side if isinstance(side, LMHead) else side.detach() for side in unflatten(tensors, parts)]


def _gradient_of(
    task: BlockwiseLoss, student: Tensor | LMHead, upstream: Tensor | None = None
) -> LogitsGradient | HeadGradient:
    return HeadGradient(task, student, upstream) if isinstance(student, LMHead) else LogitsGradient(task, student)


def _uniform(upstream: Tensor) -> bool:
    """Whether all tokens get the same from above, as from a sum or a mean."""
    return not any(upstream.stride()) or bool((upstream == upstream[:1]).all())


def run_loss(task: BlockwiseLoss, student: Tensor | LMHead, *teacher: Tensor | LMHead) -> Tensor:
    """The loss per token [T], differentiable in `student`; `task.parts` then holds what it is made of."""
    tensors, parts = flatten([student, *teacher])
    count = len(flatten([student])[0])
    differentiate = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors[:count])
    others = [tensor.detach() for tensor in tensors[count:]]
    return _ChunkedLoss.apply(task, differentiate, parts, *tensors[:count], *others)
