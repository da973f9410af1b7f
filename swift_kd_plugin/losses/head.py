"""Logits that are not there yet: what they will be made of, row by row."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Head:
    """The output layer of a model and what goes into it: logits = sum of inputs[i] @ weights[i].T.

    One part is a plain head; a LoRA adapter on it adds a second one, of the adapter's rank.

    Args:
        inputs: [N, H_i] each, the same rows on all ranks of a tensor-parallel group.
        weights: [v, H_i] each, this rank's rows of the vocabulary.
    """

    inputs: tuple[Tensor, ...]
    weights: tuple[Tensor, ...]

    @property
    def width(self) -> int:
        """The number of this rank's columns of the logits."""
        return self.weights[0].shape[0]

    def __len__(self) -> int:
        return len(self.inputs[0])

    def __getitem__(self, rows: Tensor) -> "Head":
        """The head of the chosen rows."""
        return Head(tuple(part[rows] for part in self.inputs), self.weights)

    def detach(self) -> "Head":
        return Head(tuple(part.detach() for part in self.inputs), tuple(weight.detach() for weight in self.weights))
