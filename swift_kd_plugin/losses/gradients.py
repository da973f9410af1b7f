"""Where the gradient of a loss goes while it is computed: into logits that are there, or on into the head behind them.

C tokens of a block, N rows of the student, H hidden size, v this rank's columns.
"""

import torch
from torch import Tensor

from swift_kd_plugin.losses.chunked import BlockwiseLoss, working_dtype
from swift_kd_plugin.losses.lm_head import LMHead

# Rows of a head whose product is there in full precision before it is added.
SLAB_ROWS = 2**13


class LogitsGradient:
    """The gradient in logits [N, v]: a row for each token, whose weight can be left until backward."""

    def __init__(self, task: BlockwiseLoss, logits: Tensor):
        self._task, self._rows = task, task.request.student_rows
        self._values = logits if task.inplace else torch.empty_like(logits)

    def place(self, tokens: slice, logits: Tensor) -> Tensor:
        return self._values[tokens] if self._rows is None else self._values

    def take(self, tokens: slice, written: Tensor, parts: dict[str, Tensor]) -> None:
        """It was written where it belongs."""

    def finish(self) -> None:
        """Rows that are no tokens have no gradient."""
        if self._rows is not None:
            untouched = torch.ones(len(self._values), dtype=torch.bool, device=self._values.device)
            untouched[self._rows] = False
            self._values[untouched] = 0

    def times(self, upstream: Tensor) -> tuple[Tensor, ...]:
        """The gradient for what comes from above [T]. Used once: it takes the memory."""
        factors = upstream if self._task.weights is None else upstream * self._task.weights
        if self._rows is not None:
            factors = factors.new_zeros(len(self._values)).index_copy_(0, self._rows, factors)
        for part, factor in zip(self._values.split(4096), factors.split(4096), strict=True):
            part.mul_(factor[:, None])
        return (self._values,)


class HeadGradient:
    """The gradients in a head's inputs [N, H] and weights [v, H]: sums over tokens, each times its weight.

    Frozen parts have none. A block's gradient in the logits is written over the logits, rounded as they are.

    Args:
        upstream: what each token counts besides its weight [T], or None.
    """

    def __init__(self, task: BlockwiseLoss, head: LMHead, upstream: Tensor | None = None):
        self._task, self._head, self._upstream = task, head, upstream
        self._inputs = [torch.zeros_like(part) if part.requires_grad else None for part in head.inputs]
        self._weights = [
            torch.zeros_like(part, dtype=working_dtype(part)) if part.requires_grad else None for part in head.weights
        ]

    def place(self, tokens: slice, logits: Tensor) -> Tensor:
        return logits

    def take(self, tokens: slice, written: Tensor, parts: dict[str, Tensor]) -> None:
        """Adds a block's part, given the gradient in its logits [C, v]."""
        rows = self._task.request.student_rows
        picked, factors = tokens if rows is None else rows[tokens], self._factors(tokens, parts)
        for index, weight in enumerate(self._head.weights):
            if self._inputs[index] is not None:
                gradient = _scale(written @ weight.to(written.dtype), factors)
                self._inputs[index][picked] = gradient.to(self._inputs[index].dtype)
            if self._weights[index] is not None:
                inputs = _scale(self._head.inputs[index][picked], factors)
                add_product(self._weights[index], written, inputs.to(written.dtype))

    def _factors(self, tokens: slice, parts: dict[str, Tensor]) -> Tensor | None:
        upstream = None if self._upstream is None else self._upstream[tokens]
        if self._task.weigh is None:
            return upstream
        weights = self._task.weigh(tokens, parts)
        return weights if upstream is None else weights * upstream

    def finish(self) -> None:
        for gradient in self._inputs:
            if gradient is not None:
                self._task.request.student.sum_input_gradient(gradient)

    def times(self, upstream: Tensor) -> tuple[Tensor | None, ...]:
        """The gradients for what comes from above, the same for every token [T]. Used once: it takes the memory."""
        factor = upstream[:1].sum()
        inputs = [None if gradient is None else gradient.mul_(factor) for gradient in self._inputs]
        weights = [
            None if gradient is None else hand_over(weight, gradient.mul_(factor))
            for weight, gradient in zip(self._head.weights, self._weights, strict=True)
        ]
        return *inputs, *weights


def _scale(values: Tensor, factors: Tensor | None) -> Tensor:
    """A number for each row [C, H], rounded only where it is stored."""
    return values if factors is None else values * factors.to(working_dtype(values))[:, None]


def add_product(total: Tensor, gradient: Tensor, inputs: Tensor) -> None:
    """total += gradient.T @ inputs, added in the precision of `total`: [v, H], [C, v], [C, H]."""
    if total.dtype == gradient.dtype:
        total.addmm_(gradient.t(), inputs)
        return
    for part, columns in zip(total.split(SLAB_ROWS), gradient.split(SLAB_ROWS, dim=1), strict=True):
        if total.is_cuda:
            part.add_(torch.mm(columns.t(), inputs, out_dtype=total.dtype))
        else:  # no product of half precisions in a finer one
            part.addmm_(columns.t().to(total.dtype), inputs.to(total.dtype))


def hand_over(weight: Tensor, gradient: Tensor) -> Tensor:
    """What autograd gets for `weight` [v, H]: the gradient in its precision.

    Megatron's DDP keeps `weight.main_grad`, in fp32 as a rule. There the gradient is added unrounded, and autograd gets
    zeros, to which it adds what other uses of the weight send back (an embedding that is tied to the head). DDP's hook
    runs once they are all added up and adds the sum to `main_grad`. `grad_added_to_main_grad` is left as it is: it
    would tell the hook to drop that sum, now and until the next step, unless the weight has `zero_out_wgrad`, which
    Megatron does not set on every weight with more than one use. Megatron's FSDP, which makes `main_grad` only once
    autograd is done, gets the gradient itself.
    """
    if getattr(weight, "main_grad", None) is None or hasattr(weight, "__fsdp_param__"):
        return gradient.to(weight.dtype)
    weight.main_grad.add_(gradient)
    return torch.zeros_like(weight)
