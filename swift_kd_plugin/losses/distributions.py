"""Teacher and student probabilities of one chunk of tokens, side by side."""

from functools import cached_property

import torch
from torch import Tensor

from swift_kd_plugin.losses.shards import VocabShard


class Pair:
    """P (teacher) and Q (student) over the same columns: [C, v], one entry per token id or bucket.

    An entry that both sides lack has probability 0 but a finite log-probability, which may be any: a term must vanish
    with the probability.

    Args:
        p, q: probabilities [C, v].
        logits_p, logits_q: what they are the softmax of, temperature applied [C, v].
        lse_p, lse_q: logsumexp of those over all ranks, float64 [C].
        shard: who holds the other columns.
        complete: False where the entries do not add up to one (a top-k teacher whose tail is ignored).
    """

    def __init__(
        self,
        p: Tensor,
        q: Tensor,
        logits_p: Tensor,
        logits_q: Tensor,
        lse_p: Tensor,
        lse_q: Tensor,
        shard: VocabShard,
        complete: bool = True,
    ):
        self.p, self.q, self.shard, self.complete = p, q, shard, complete
        self._logits_p, self._logits_q, self._lse_p, self._lse_q = logits_p, logits_q, lse_p, lse_q

    @cached_property
    def log_ratio(self) -> Tensor:
        """log(P/Q) [C, v]. The logits are subtracted first: where the two sides are close that is exact, and their
        large common part is gone before anything is rounded."""
        return _minus(self._logits_p - self._logits_q, self._lse_p - self._lse_q)

    @cached_property
    def log_p(self) -> Tensor:
        return _minus(self._logits_p.clone(), self._lse_p)

    @cached_property
    def log_q(self) -> Tensor:
        return _minus(self._logits_q.clone(), self._lse_q)

    @property
    def eps(self) -> float:
        """The distance from 1 to the next larger number of the working precision."""
        return torch.finfo(self.p.dtype).eps

    def add_times_p(self, base: Tensor, values: Tensor, factor: float) -> Tensor:
        """base + factor * P * values [C, v], written over `values`."""
        return torch.addcmul(base, values, self.p, value=factor, out=values)

    def relative_gap(self, beta: float) -> Tensor:
        """(P - Q) / M with M = beta P + (1-beta) Q [C, v]. P/M = 1 + (1-beta) gap and Q/M = 1 - beta gap, which keeps
        full precision where the two sides are close; entries that both sides lack give 0."""
        mixture = torch.lerp(self.q, self.p, beta).clamp_min_(torch.finfo(self.p.dtype).tiny)
        return (self.p - self.q).div_(mixture)


def _minus(values: Tensor, scalar: Tensor) -> Tensor:
    """values - scalar, in place, for a float64 scalar per token [C]: what its rounding leaves over is taken off too."""
    rounded = scalar.to(values.dtype)
    rest = (scalar - rounded.double()).to(values.dtype)
    return values.sub_(rounded[:, None]).sub_(rest[:, None])
