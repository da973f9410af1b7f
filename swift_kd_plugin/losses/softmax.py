"""A softmax over a vocabulary of which this rank holds some columns, in the steps that the collectives need."""

import torch
from torch import Tensor

from swift_kd_plugin.losses.shards import VocabShard


class SoftmaxSide:
    """One model's logits of a chunk, temperature applied: [C, v] of this rank.

    Args:
        logits: [C, v] in any precision.
        dtype: precision to work in.
    """

    def __init__(self, logits: Tensor, temperature: float, dtype: torch.dtype):
        self.logits = self.scaled(logits, temperature, dtype)
        lowest = torch.finfo(dtype).min
        if logits.shape[1] == 0:
            self.peak = self.logits.new_full((len(logits),), lowest)
            self._exps, self._mass = self.logits, self.logits.new_zeros(len(logits))
            return
        self.peak = self.logits.amax(-1).clamp_min_(lowest)
        self._exps = torch.sub(self.logits, self.peak[:, None]).exp_()
        self._mass = self._exps.sum(-1, dtype=torch.float64)

    @staticmethod
    def scaled(logits: Tensor, temperature: float, dtype: torch.dtype) -> Tensor:
        logits = logits.to(dtype)
        return logits if temperature == 1.0 else logits / temperature

    def local_lse(self) -> Tensor:
        """logsumexp over this rank's columns, float64 [C]; -inf where it has none."""
        return torch.where(self._mass > 0, self.peak.double() + self._mass.double().log(), -torch.inf)

    def plain_lse(self, temperature: float) -> Tensor:
        """`local_lse` of the logits before they were divided by the temperature."""
        if temperature == 1.0:
            return self.local_lse()
        mass = torch.sub(self.logits, self.peak[:, None]).mul_(temperature).exp_().sum(-1).double()
        return torch.where(self._mass > 0, self.peak.double() * temperature + mass.log(), -torch.inf)

    def mean_logit(self, lse: Tensor) -> Tensor:
        """This rank's part of sum softmax(logits) * logits for the logsumexp over all ranks, float64 [C]."""
        factor = torch.where(self._mass > 0, (self.peak.double() - lse).exp(), 0.0)
        weighted = self._exps * self.logits.clamp_min(torch.finfo(self.logits.dtype).min)
        return weighted.sum(-1).double() * factor

    def probabilities(self, lse: Tensor) -> Tensor:
        """exp(logits - lse) for the logsumexp over all ranks, float64 [C] -> [C, v]. Used once: it takes the buffer."""
        factor = torch.where(self._mass > 0, (self.peak.double() - lse).exp(), 0.0)
        return self._exps.mul_(factor.to(self._exps.dtype)[:, None])


def logsumexp(gathered: Tensor) -> Tensor:
    """Joins the ranks' local values: [ranks, C] -> [C]. Every rank adds in the same order and gets the same bits."""
    return torch.logsumexp(gathered, 0)


class CrossEntropy:
    """Cross-entropy of the student with the labels of a chunk, at temperature 1, over all ids the student has.

    Args:
        logits: [C, v] of this rank, raw.
        labels: [C] global ids; a negative one has no cross-entropy.
        weights: what each token's cross-entropy counts [C].
    """

    def __init__(self, logits: Tensor, labels: Tensor, weights: Tensor, shard: VocabShard, dtype: torch.dtype):
        self.side = SoftmaxSide(logits[:, : shard.width], 1.0, dtype)
        self.weights = torch.where(labels >= 0, weights, 0.0).double()
        column, self._here = find_columns(labels, shard)
        self._column = torch.where(self._here, column, 0)

    def label_logit(self) -> Tensor:
        """As of `local_label_logit`."""
        return _logit_of(self.side.logits, self._column, self._here)

    def add_gradient(self, lse: Tensor, other: Tensor) -> Tensor:
        """weights * (softmax - onehot(label)) [C, v], and `other` added to its first columns. Used once."""
        grad = self.side.probabilities(lse)
        if grad.shape[1]:
            grad.scatter_add_(1, self._column[:, None], -self._here.to(grad.dtype)[:, None])
        grad.mul_(self.weights.to(grad.dtype)[:, None])
        grad[:, : other.shape[1]] += other
        return grad


def find_columns(ids: Tensor, shard: VocabShard) -> tuple[Tensor, Tensor]:
    """The columns of global ids on this rank, and where it holds them."""
    column = ids - shard.start
    return column, (column >= 0) & (column < shard.width)


def local_label_logit(logits: Tensor, shard: VocabShard, labels: Tensor, rows: Tensor | None = None) -> Tensor:
    """The label's logit where this rank holds it, else 0: float64 [C], of which the ranks' sum is the logit.

    Args:
        rows: the row of `logits` that each label is about; None: one row each, in order.
    """
    column, here = find_columns(labels, shard)
    return _logit_of(logits, torch.where(here, column, 0), here, rows)


def _logit_of(logits: Tensor, column: Tensor, here: Tensor, rows: Tensor | None = None) -> Tensor:
    if logits.shape[1] == 0:
        return torch.zeros(len(here), dtype=torch.float64, device=logits.device)
    logit = logits.gather(1, column[:, None])[:, 0] if rows is None else logits[rows, column]
    return torch.where(here, logit.double(), 0.0)


def cross_entropy(labels: Tensor, lse: Tensor, label_logit: Tensor) -> Tensor:
    """From the sums over all ranks the cross-entropy per token, 0 without a label. float64 [C]."""
    return torch.where(labels >= 0, lse - label_logit, 0.0)
