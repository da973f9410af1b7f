"""Which tokens count, and how much."""

import math

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from swift_kd_plugin.losses.shards import all_gather

POLICIES = ("none", "teacher_entropy", "student_top_rho", "clip", "position")


def teacher_entropy_weights(entropy: Tensor, vocab: int) -> Tensor:
    """1 - H(P) / log(vocab): a teacher that is sure counts fully, one that knows nothing not at all. [T] -> [T]"""
    return 1 - entropy / math.log(vocab)


def top_rho_weights(entropy: Tensor, sample: Tensor, rho: float, group: ProcessGroup | None) -> Tensor:
    """1 for the share `rho` of each response's tokens where the student is least sure (at least one), 0 for the rest.

    Args:
        entropy: of the student [T].
        sample: which response each token belongs to [T], the same number on all ranks of `group`.
        group: context-parallel group, over whose ranks a response is spread, or None. Tokens of all its ranks are
            ranked together, so that the choice does not depend on the layout: one gather of counts, one of values.
    """
    count = torch.tensor([len(entropy)], device=entropy.device)
    longest = int(all_gather(count, group).max())
    padded = torch.full((2, longest), -1.0, dtype=torch.float64, device=entropy.device)
    padded[0, : len(entropy)] = entropy.double()
    padded[1, : len(entropy)] = sample.double()
    everyone = all_gather(padded, group).transpose(0, 1).flatten(1)
    weights = torch.zeros_like(entropy)
    for number in sample.unique().tolist():
        values = everyone[0][everyone[1] == number]
        keep = max(1, round(rho * len(values)))
        threshold = values.topk(keep).values[-1]
        weights[(sample == number) & (entropy.double() >= threshold)] = 1.0
    return weights


def position_weights(length: int, final: float) -> list[float]:
    """From 1 at a response's first token in a straight line to `final` at its last."""
    return [1 + (final - 1) * index / max(length - 1, 1) for index in range(length)]
