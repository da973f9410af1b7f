"""Heads for the tests of the fused losses: hidden states and weights, what ranks do with them, and the naive truth."""

from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch import distributed as dist

from swift_kd_plugin.losses import fused_linear_divergence
from tests.losses import reference
from tests.losses.collective_counts import counted
from tests.losses.divergence_cases import ONE_OF_EACH, name_of
from tests.losses.random_logits import F64, random_logits
from tests.losses.sharded_losses import Layout, padded, same

HIDDEN, TEACHER_HIDDEN = 5, 7


@dataclass
class Inputs:
    """Hidden states and weights of student and teacher, whole, and a gradient from above."""

    hidden: Tensor
    weight: Tensor
    teacher_hidden: Tensor
    teacher_weight: Tensor
    upstream: Tensor
    vocabularies: dict[str, int] = field(default_factory=dict)

    def to(self, dtype: torch.dtype) -> "Inputs":
        tensors = (self.hidden, self.weight, self.teacher_hidden, self.teacher_weight)
        return Inputs(*(tensor.to(dtype) for tensor in tensors), self.upstream, self.vocabularies)


def random_inputs(tokens: int, vocab: int, teacher_vocab: int | None = None, hidden: int = HIDDEN) -> Inputs:
    shapes = [(tokens, hidden), (vocab, hidden), (tokens, TEACHER_HIDDEN), (teacher_vocab or vocab, TEACHER_HIDDEN)]
    tensors = [random_logits(*shape, seed=seed, spread=1.0) for seed, shape in enumerate(shapes)]
    vocabularies = {"student_vocab": vocab, "teacher_vocab": teacher_vocab} if teacher_vocab else {}
    return Inputs(*tensors, random_logits(tokens, seed=9, spread=1.0), vocabularies)


def fused(inputs: Inputs, upstream: Tensor, **options) -> tuple[Tensor, Tensor, Tensor]:
    """Ours: the loss per token, and its gradients in hidden states and weight."""
    hidden, weight = (tensor.detach().clone().requires_grad_() for tensor in (inputs.hidden, inputs.weight))
    options = {**inputs.vocabularies, **options}
    value = fused_linear_divergence(hidden, weight, inputs.teacher_hidden, inputs.teacher_weight, **options)
    value.backward(upstream.to(value.dtype))
    return value.detach(), hidden.grad, weight.grad


def naive(inputs: Inputs, upstream: Tensor, divergence: str, **options) -> tuple[Tensor, Tensor, Tensor]:
    """The same with all logits in float64, by autograd."""
    exact = inputs.to(F64)
    hidden, weight = (tensor.detach().clone().requires_grad_() for tensor in (exact.hidden, exact.weight))
    logits, teacher = hidden @ weight.T, exact.teacher_hidden @ exact.teacher_weight.T
    value = reference.dense(logits, teacher, divergence, **{**inputs.vocabularies, **options})
    value.backward(upstream.double())
    return value.detach(), hidden.grad, weight.grad


def upstreams(inputs: Inputs) -> dict[str, Tensor]:
    """What comes from above: the same for all tokens, twice that, and different."""
    ones = torch.ones_like(inputs.upstream)
    return {"sum": ones, "twice the sum": 2 * ones, "each its own": inputs.upstream}


def kinds(case) -> list[str]:
    """What comes from above where several ranks take part: all for one divergence, a sum for the others."""
    return ["twice the sum", "each its own"] if case[0] == "jsd" else ["sum"]


def layouts(size: int) -> list[Layout]:
    even, odd, holes = (16,) * size, (16, 15, 4, 11)[:size], (0, 19, 7, 0)[:size]
    return [
        Layout("equal shards", **same(even, sum(even) - 3), tokens=5),
        Layout("uneven shards", **same(odd, sum(odd)), tokens=7, chunk_size=3),
        Layout("a rank without columns", **same(holes, sum(holes)), tokens=7, chunk_size=2),
        Layout("teacher larger", **padded(size, 50, 70), tokens=7, chunk_size=4),
        Layout("teacher smaller", **padded(size, 70, 50), tokens=7, chunk_size=8),
        Layout("no tokens", **padded(size, 50, 70), tokens=0),
    ]


def whole(layout: Layout) -> Inputs:
    """What all ranks hold together, without padding."""
    inputs = random_inputs(layout.tokens, layout.student_vocab, layout.teacher_vocab)
    inputs.vocabularies = layout.vocabularies
    return inputs


def shard(layout: Layout, rank: int) -> Inputs:
    """What a rank holds: all hidden states, and its rows of the weights; padding holds large numbers."""
    inputs, sides = whole(layout), []
    for weight, widths in ((inputs.weight, layout.student_widths), (inputs.teacher_weight, layout.teacher_widths)):
        padding = random_logits(sum(widths) - len(weight), weight.shape[1], seed=50, spread=300.0)
        sides.append(torch.cat([weight, padding]).split(widths)[rank])
    inputs.weight, inputs.teacher_weight = sides
    return inputs


def run_rank(rank: int, size: int) -> dict:
    """By layout, divergence and what comes from above: value and both gradients; and numbers of collectives."""
    found = {}
    for layout in layouts(size):
        inputs = shard(layout, rank)
        options = {"group": dist.group.WORLD, "chunk_size": layout.chunk_size}
        for case in ONE_OF_EACH:
            for kind in kinds(case):
                name, params = case
                key = layout.name, name_of(case), kind
                found[key] = fused(inputs, upstreams(inputs)[kind], divergence=name, **params, **options)
    return {"losses": found, "counts": count(layouts(size)[1], rank)}


def count(layout: Layout, rank: int) -> dict[str, int]:
    """Collectives of a loss, of backward from a sum, and of backward where each token has its own factor."""
    inputs, numbers = shard(layout, rank), {}
    hidden, weight = inputs.hidden.requires_grad_(), inputs.weight.requires_grad_()
    with counted() as calls:
        value = fused_linear_divergence(
            hidden, weight, inputs.teacher_hidden, inputs.teacher_weight,
            group=dist.group.WORLD, chunk_size=layout.chunk_size,
        )  # fmt: skip
        numbers["loss"] = len(calls)
        value.backward(torch.ones_like(value), retain_graph=True)
        numbers["sum"] = len(calls) - numbers["loss"]
        value.backward(inputs.upstream)
        numbers["each its own"] = len(calls) - numbers["loss"] - numbers["sum"]
    return numbers
