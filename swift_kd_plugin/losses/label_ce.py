"""Both sides' cross-entropy with the labels at temperature 1, measured beside the loss.

C tokens of a chunk, v this rank's columns.
"""

import torch
from torch import Tensor

STUDENT_CE, TEACHER_CE = "student_ce", "teacher_ce"


def label_ce(labels: Tensor, vocab: int, lse: Tensor, label_logits: Tensor) -> Tensor:
    """The cross-entropy per token [C]; infinite where the side has no such id.

    Args:
        vocab: the number of the side's ids.
        lse: logsumexp of all of the side's logits over the ranks [C].
        label_logits: every rank's `local_label_logit` [ranks, C].
    """
    return torch.where((labels >= 0) & (labels < vocab), lse - label_logits.sum(0), torch.inf)


def listed_ce(labels: Tensor, log_probs: Tensor, ids: Tensor) -> Tensor:
    """The cross-entropy of a top-k teacher [C]: exact where the label is listed, else the least that it can be.

    An id that is not listed has no more than the least listed one, nor than all that are not listed have together.

    Args:
        log_probs: over the teacher's whole vocabulary, float64 [C, K]; -inf marks a missing entry.
    """
    tail = (1 - log_probs.exp().sum(-1)).clamp_min(torch.finfo(torch.float32).eps / 2).log()
    least = torch.where(torch.isneginf(log_probs), torch.inf, log_probs).amin(-1)
    listed = (ids == labels[:, None]) & ~torch.isneginf(log_probs)
    found = torch.where(listed, log_probs, -torch.inf).amax(-1)
    known = torch.where(listed.any(-1), found, torch.minimum(tail, least))
    return torch.where(labels >= 0, -known, torch.inf)
