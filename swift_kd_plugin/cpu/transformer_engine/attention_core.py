"""Attention of a block of queries over a block of keys.

Shapes: b batch, h query heads, g key/value heads, q queries, k keys, d key channels, e value channels.
"""

from dataclasses import dataclass

import torch
from torch.nn import functional as F

NO_LIMIT = -1


@dataclass(frozen=True)
class AttentionSettings:
    """What is the same for every block: the reach of a query, the scale, and the dropout probability.

    A query at key position p sees the keys from p - left to p + right; -1 is no limit, and right = 0 is causal.
    """

    left: int
    right: int
    scale: float
    dropout: float


def attend(q_bhqd: torch.Tensor, k_bgkd: torch.Tensor, v_bgke: torch.Tensor, first: int, settings: AttentionSettings):
    """[b, h, q, e]; the query of index i sits at key position first + i, and queries that see no key give zeros."""
    queries, keys = q_bhqd.shape[2], k_bgkd.shape[2]
    left, right = settings.left, settings.right
    start = 0 if left == NO_LIMIT else max(0, first - left)
    stop = keys if right == NO_LIMIT else min(keys, first + queries + right)
    if stop <= start or queries == 0:
        return q_bhqd.new_zeros(*q_bhqd.shape[:3], v_bgke.shape[3])
    k_bgkd, v_bgke, first = k_bgkd[:, :, start:stop], v_bgke[:, :, start:stop], first - start
    keys = stop - start
    nothing_cut_left = left == NO_LIMIT or first + queries - 1 <= left
    nothing_cut_right = right == NO_LIMIT or first + right >= keys - 1
    if nothing_cut_left and nothing_cut_right:
        return softmax_attention(q_bhqd, k_bgkd, v_bgke, settings)
    if nothing_cut_left and right == 0 and first == 0:
        return softmax_attention(q_bhqd, k_bgkd, v_bgke, settings, is_causal=True)
    visible_qk = within_reach(queries, keys, first, settings, q_bhqd.device)
    return softmax_attention(q_bhqd, k_bgkd, v_bgke, settings, mask=visible_qk)


def within_reach(
    queries: int, keys: int, first: int | torch.Tensor, settings: AttentionSettings, device
) -> torch.Tensor:
    """[..., q, k] bool: which keys a query reaches. `first` is a number, or a tensor [..., 1, 1] of numbers."""
    distance = torch.arange(keys, device=device) - torch.arange(queries, device=device).unsqueeze(1) - first
    visible = torch.ones_like(distance, dtype=torch.bool)
    if settings.right != NO_LIMIT:
        visible &= distance <= settings.right
    if settings.left != NO_LIMIT:
        visible &= distance >= -settings.left
    return visible


def softmax_attention(
    q_bhqd, k_bgkd, v_bgke, settings: AttentionSettings, mask=None, is_causal: bool = False
) -> torch.Tensor:
    """softmax(scale q kᵀ + mask) v, [b, h, q, e]; a bool mask tells what is visible, and a row of nothing gives zeros.

    torch's CPU kernel accumulates bf16 and fp16 in fp32 and keeps float64.
    """
    return F.scaled_dot_product_attention(
        q_bhqd,
        k_bgkd,
        v_bgke,
        attn_mask=mask,
        dropout_p=settings.dropout,
        is_causal=is_causal,
        scale=settings.scale,
        enable_gqa=q_bhqd.shape[1] != k_bgkd.shape[1],
    )
