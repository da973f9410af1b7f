"""Whether the entries of a top-k teacher that a user passes are what they are taken for. T tokens, K entries."""

import torch
from torch import Tensor

SUM_TOLERANCE = 1e-3  # of log-probabilities that were rounded on their way; those of half precisions are rounded more


@torch.no_grad()
def check_entries(log_probs: Tensor, ids: Tensor, vocab: int) -> None:
    """Refuses entries [T, K] that are no log-probabilities or no ids below `vocab`. One synchronisation of a GPU.

    Raises:
        ValueError: what is wrong, at which token, and what to pass.
    """
    if not log_probs.is_floating_point() or ids.is_floating_point():
        raise ValueError(
            f"teacher_log_probs are {log_probs.dtype} and teacher_ids {ids.dtype}; log-probabilities are floating "
            "point and ids whole numbers: are the two swapped?"
        )
    if not ids.numel():
        return
    sums = log_probs.to(torch.promote_types(log_probs.dtype, torch.float32)).exp().sum(-1)
    too_much = ~(sums <= 1 + SUM_TOLERANCE + 16 * torch.finfo(log_probs.dtype).eps)  # so that NaN is, too
    outside = ((ids < 0) | (ids >= vocab)) & ~torch.isneginf(log_probs)
    if not torch.any(too_much | outside.any(-1)):
        return
    if too_much.any():
        token = int(too_much.int().argmax())
        raise ValueError(
            f"The teacher_log_probs of token {token} add up to a probability of {sums[token].item():.4g}, and it is at "
            "most 1; pass what logits.log_softmax(-1) over all ids has at the listed, and -inf where one is missing."
        )
    token, entry = outside.nonzero()[0].tolist()
    raise ValueError(
        f"The teacher_ids of token {token} have the id {int(ids[token, entry])}, and the teacher's vocabulary has "
        f"{vocab} ids, from 0 on; pass teacher_vocab where it has more than the student's."
    )
