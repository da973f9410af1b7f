"""Adaptive KL (AKL): forward KL where the head of the teacher's distribution is missed, reverse KL for its tail."""

import torch
from torch import Tensor

from swift_kd_plugin.losses.shards import VocabShard

# How many of a rank's largest probabilities are sorted first, and next where these do not reach the mass.
CANDIDATES = (64, 4096)


def mix_adaptive(sums: Tensor) -> tuple[Tensor, Tensor]:
    """[4, C] sums -> value [C] and its derivatives in the sums [4, C]; half and half where both sides are equal."""
    forward, reverse, head, tail = sums
    total = head + tail
    equal = total == 0
    safe = total.masked_fill(equal, 1.0)
    weight = (head / safe).masked_fill(equal, 0.5)
    value = weight * forward + (1 - weight) * reverse
    toward_head = (forward - value) / safe
    toward_tail = (reverse - value) / safe
    return value, torch.stack([weight, 1 - weight, toward_head, toward_tail])


def head_of(p: Tensor, shard: VocabShard, mass: float) -> Tensor:
    """Marks the most probable ids whose probabilities add up to at most `mass`, and always the most probable: [C, v].

    Equally probable ids go in or stay out together, so that the head depends neither on the order of the vocabulary
    nor on how it is cut. One gather of the ranks' largest probabilities; another of more of them, and a last one of
    all, only where these do not reach `mass`.
    """
    widest = max(max(shard.widths), p.shape[1])
    for count in sorted({min(count, widest) for count in (*CANDIDATES, widest)}):
        local = torch.full((p.shape[0], count), -1.0, dtype=p.dtype, device=p.device)
        held = min(count, p.shape[1])
        local[:, :held] = p.topk(held, dim=-1).values
        gathered = shard.gather(local)
        ordered = gathered.transpose(0, 1).flatten(1).sort(dim=-1, descending=True).values
        # Below the smallest candidate of a rank that holds more, ids may be missing from the list.
        known = count == widest
        floor = -1.0 if known else gathered[:, :, -1].amax(0)[:, None]
        reached = ordered.clamp_min(0).double().cumsum(-1)
        last_of_equals = torch.ones_like(ordered, dtype=torch.bool)
        last_of_equals[:, :-1] = ordered[:, 1:] != ordered[:, :-1]
        listed = last_of_equals & (ordered > floor)
        if known or bool((listed & (reached > mass)).any(-1).all()):
            break
    within = listed & (reached <= mass)
    threshold = torch.where(within, ordered, ordered[:, :1]).amin(-1, keepdim=True)
    return p >= threshold
