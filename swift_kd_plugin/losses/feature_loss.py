"""How far hidden states are from a teacher's, token by token, as a loss that lies in the middle of a network.

n tokens, H the student's hidden size, W the teacher's. With y = projection @ student (or the student itself) and a
teacher that is not differentiated, the loss per token is

    mse        mean over the W entries of (y - t)^2                       FitNets (arXiv 1412.6550) and TinyBERT
                                                                          (1909.10351) as both train it: MSELoss
    cosine     1 - y.t / (|y| |t|)                                        DistilBERT (1910.01108)
    smooth_l1  mean over the W entries of 0.5 d^2 where |d| < 1, else |d| - 0.5, d = y - t     Fast R-CNN (1504.08083)

A mean over entries, not a sum, so that a weight means the same for every hidden size. Computed in float32 at least, but
for the products with a projection, which are those of a linear layer of its type.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

CHUNK = 2048  # tokens worked on at once
SMALLEST_NORM = 1e-12


def mse(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor, Tensor | float]:
    """Loss per token [n], and its slope in the student as a product of [n, W] and a factor, [n, 1] or a number.

    Args:
        student: float32 or float64 [n, W], whose memory the slope takes.
        teacher: of any type [n, W].
    """
    apart = student.sub_(teacher.to(student.dtype))
    return torch.linalg.vector_norm(apart, dim=-1).square() / apart.shape[-1], apart, 2 / apart.shape[-1]


def cosine(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor, Tensor | float]:
    length = student.norm(dim=-1, keepdim=True).clamp_min(SMALLEST_NORM)
    student, teacher = student.div_(length), teacher.to(student.dtype)
    teacher = teacher / teacher.norm(dim=-1, keepdim=True).clamp_min(SMALLEST_NORM)
    alike = (student * teacher).sum(-1, keepdim=True)
    return 1 - alike[:, 0], student.mul_(alike).sub_(teacher), 1 / length


def smooth_l1(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor, Tensor | float]:
    apart = student.sub_(teacher.to(student.dtype))
    slope = apart.clamp(-1, 1)
    return (slope * apart.sub_(slope, alpha=0.5)).mean(-1), slope, 1 / apart.shape[-1]


FEATURE_LOSSES = {"mse": mse, "cosine": cosine, "smooth_l1": smooth_l1}


@dataclass(frozen=True)
class FeatureTask:
    """What a layer's output is compared with.

    Args:
        loss: a key of FEATURE_LOSSES.
        rows: where the n tokens lie in the hidden states, which are taken as [-1, H]; each once.
        teacher: gives the teacher's rows [n, W] when they are needed, in the backward pass; asked once, also where n
            is 0, since other ranks may take part in the answer.
        weights: what each token's loss counts [n].
        scale: gives what all gradients are multiplied by, as the loss above is.
        report: is told the losses [n], without their weights, once per pass.
    """

    loss: str
    rows: Tensor
    teacher: Callable[[], Tensor]
    weights: Tensor
    scale: Callable[[], float]
    report: Callable[[Tensor], None]


def match_features(hidden: Tensor, projection: Tensor | None, task: FeatureTask) -> Tensor:
    """`hidden` [..., H] as it is; backward adds the gradients of `scale * sum(weights * loss)` to those from above.

    So the loss needs no way of its own to the end of the network, which may lie on another pipeline stage. Equivalent
    to adding `(weights * loss(hidden.view(-1, H)[rows] @ projection.T, teacher)).sum()` to the scalar that is
    differentiated. Nothing is computed before the backward pass, for which `hidden` is kept, as the next layer does.

    Args:
        projection: [W, H], or None where both sizes are equal.
    """
    return _Match.apply(hidden, projection, task)


@torch.no_grad()
def measure_features(hidden: Tensor, projection: Tensor | None, task: FeatureTask) -> None:
    """Reports the losses without a backward pass."""
    task.report(torch.cat([task.weights[:0], *(part.losses for part in _chunks(hidden, projection, task))]))


class _Match(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, projection: Tensor | None, task: FeatureTask) -> Tensor:
        ctx.task = task
        ctx.save_for_backward(hidden, projection)
        return hidden.view_as(hidden)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor):
        hidden, projection = ctx.saved_tensors
        task, ctx.task = ctx.task, None
        of_hidden, of_projection = ctx.needs_input_grad[:2]
        gradient = upstream.clone(memory_format=torch.contiguous_format) if of_hidden else None
        slopes = torch.zeros_like(projection, dtype=_precision(projection)) if of_projection else None
        losses, scale = [task.weights[:0]], task.scale()
        for part in _chunks(hidden, projection, task):
            losses.append(part.losses)
            weights = (task.weights[part.tokens] * scale)[:, None] * part.factor
            slope = part.slope.mul_(weights.to(part.slope.dtype))
            if projection is not None:
                slope = slope.to(projection.dtype)
            if slopes is not None:
                slopes += slope.T @ part.student
            if gradient is not None:
                own = slope if projection is None else slope @ projection
                flat, rows = gradient.view(-1, gradient.shape[-1]), task.rows[part.tokens]
                flat[rows] = own.add_(flat[rows]).to(gradient.dtype)
        task.report(torch.cat(losses))
        return gradient, None if slopes is None else slopes.to(projection.dtype), None


@dataclass(frozen=True)
class _Part:
    """A chunk of c tokens: which, the student's rows [c, H], losses [c] and slopes in the projected rows [c, W], which
    are still to be multiplied by a factor."""

    tokens: slice
    student: Tensor
    losses: Tensor
    slope: Tensor
    factor: Tensor | float


def _chunks(hidden: Tensor, projection: Tensor | None, task: FeatureTask) -> Iterator[_Part]:
    teacher, hidden = task.teacher(), hidden.detach().flatten(0, -2)
    dtype = _precision(hidden)
    for start in range(0, len(task.rows), CHUNK):
        tokens = slice(start, start + CHUNK)
        student = hidden[task.rows[tokens]]
        if projection is not None:
            student = student.to(projection.dtype)
        projected = student if projection is None else student @ projection.detach().T
        yield _Part(tokens, student, *FEATURE_LOSSES[task.loss](projected.to(dtype), teacher[tokens]))


def _precision(tensor: Tensor) -> torch.dtype:
    return torch.promote_types(tensor.dtype, torch.float32)
