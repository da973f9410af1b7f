"""Logits that are not there yet: what they will be made of, row by row."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor


def flatten_hint(shapes: Iterable[tuple[int, ...]]) -> str:
    """How tensors of more than two dimensions become rows of tokens, for the end of a message."""
    return "; flatten(0, -2) makes that of more dimensions" if any(len(shape) > 2 for shape in shapes) else ""


@dataclass(frozen=True)
class LMHead:
    """The output layer of a model and what goes into it: logits = sum of inputs[i] @ weights[i].T.

    One part is a plain head; a LoRA adapter on it adds a second one, of the adapter's rank. Shape, precision and
    device are those of the logits that it stands for, and its rows are picked as theirs are.

    Args:
        inputs: [N, H_i] each, the same rows on all ranks of a tensor-parallel group.
        weights: [v, H_i] each, this rank's rows of the vocabulary.

    Raises:
        ValueError: shapes that do not fit.
    """

    inputs: tuple[Tensor, ...]
    weights: tuple[Tensor, ...]

    def __post_init__(self) -> None:
        inputs, weights = ([tuple(part.shape) for part in side] for side in (self.inputs, self.weights))
        matrices = bool(inputs) and len(inputs) == len(weights) and {len(shape) for shape in inputs + weights} == {2}
        if not matrices or any(len({shape[0] for shape in side}) > 1 for side in (inputs, weights)):
            raise ValueError(
                "A head needs inputs [tokens, hidden size] and as many weights [vocabulary, hidden size], with the "
                f"same tokens and the same vocabulary; the shapes are {inputs} and {weights}{flatten_hint(inputs)}."
            )
        for states, weight in zip(inputs, weights, strict=True):
            if states[1] != weight[1]:
                raise ValueError(
                    f"A head of shape {weight} takes hidden states of {weight[1]} features; these have shape {states}."
                )

    @property
    def width(self) -> int:
        """The number of this rank's columns of the logits."""
        return self.weights[0].shape[0]

    @property
    def shape(self) -> torch.Size:
        return torch.Size((len(self), self.width))

    @property
    def dtype(self) -> torch.dtype:
        return self.weights[0].dtype

    @property
    def device(self) -> torch.device:
        return self.weights[0].device

    def __len__(self) -> int:
        return len(self.inputs[0])

    def __getitem__(self, rows: Tensor | slice) -> "LMHead":
        return LMHead(tuple(part[rows] for part in self.inputs), self.weights)

    def logits(self, out: Tensor) -> Tensor:
        """Writes the logits into `out` [N, v], in the weights' precision as a model's output layer does."""
        torch.mm(self.inputs[0].to(self.dtype), self.weights[0].t(), out=out)
        for inputs, weight in zip(self.inputs[1:], self.weights[1:], strict=True):
            out.addmm_(inputs.to(self.dtype), weight.t().to(self.dtype))
        return out


def flatten(sides: Iterable[Tensor | LMHead]) -> tuple[list[Tensor], list[int]]:
    """The tensors of all sides, and how many parts each side has: 0 for one that is a tensor itself."""
    tensors, parts = [], []
    for side in sides:
        is_head = isinstance(side, LMHead)
        tensors += (*side.inputs, *side.weights) if is_head else (side,)
        parts.append(len(side.inputs) if is_head else 0)
    return tensors, parts


def unflatten(tensors: Iterable[Tensor], parts: list[int]) -> list[Tensor | LMHead]:
    """The sides that `flatten` took apart."""
    left = iter(tensors)

    def take(count: int) -> tuple[Tensor, ...]:
        return tuple(next(left) for _ in range(count))

    return [LMHead(take(count), take(count)) if count else next(left) for count in parts]
