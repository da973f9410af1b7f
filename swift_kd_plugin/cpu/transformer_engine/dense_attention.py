"""Attention over a batch of sequences of one length, with masks and an additive bias.

Shapes: b batch, h query heads, g key/value heads, q queries, k keys, d key channels, e value channels.
"""

import torch

from swift_kd_plugin.cpu.transformer_engine.attention_core import (
    AttentionSettings,
    attend,
    softmax_attention,
    within_reach,
)


def attend_dense(q_bhqd, k_bgkd, v_bgke, settings: AttentionSettings, *, bottom_right: bool, hidden=None, bias=None):
    """[b, h, q, e].

    Args:
        hidden: bool, broadcastable to [b, h, q, k]: True where a query must not look.
        bias: added to the scaled scores, broadcastable to [b, h, q, k].
    """
    queries, keys = q_bhqd.shape[2], k_bgkd.shape[2]
    first = keys - queries if bottom_right else 0
    if hidden is None and bias is None:
        return attend(q_bhqd, k_bgkd, v_bgke, first, settings)
    visible = within_reach(queries, keys, first, settings, q_bhqd.device)
    if hidden is not None:
        visible = visible & ~hidden
    mask = visible if bias is None else bias.to(q_bhqd.dtype).masked_fill(~visible, float("-inf"))
    return softmax_attention(q_bhqd, k_bgkd, v_bgke, settings, mask=mask)


def attend_padded(
    q_bhqd, k_bgkd, v_bgke, settings: AttentionSettings, *, bottom_right: bool, padding_bq, padding_bk, bias=None
):
    """[b, h, q, e] with padding at the end of each sequence: no query sees a padded key, and padded queries give zeros.

    Args:
        padding_bq, padding_bk: bool, True at padding.
        bottom_right: a sequence's last real query is aligned with its last real key.
    """
    queries, keys = q_bhqd.shape[2], k_bgkd.shape[2]
    first = 0
    if bottom_right:
        first = (~padding_bk).sum(1).sub((~padding_bq).sum(1)).view(-1, 1, 1)
    visible_bqk = within_reach(queries, keys, first, settings, q_bhqd.device) & ~padding_bk.unsqueeze(1)
    visible = visible_bqk.unsqueeze(1)
    mask = visible if bias is None else bias.to(q_bhqd.dtype).masked_fill(~visible, float("-inf"))
    out = softmax_attention(q_bhqd, k_bgkd, v_bgke, settings, mask=mask)
    return out.masked_fill(padding_bq[:, None, :, None], 0.0)


def read_padding(attention_mask, cu_seqlens_q, cu_seqlens_kv, queries: int, keys: int, device):
    """Padding of queries [b, q] and keys [b, k], from a mask or from cumulative lengths [b + 1].

    A mask is [b, 1, 1, q] for queries and keys alike, or a pair of masks; True is padding.
    """
    if cu_seqlens_q is not None:
        cu_seqlens_kv = cu_seqlens_q if cu_seqlens_kv is None else cu_seqlens_kv
        return _behind(cu_seqlens_q, queries, device), _behind(cu_seqlens_kv, keys, device)
    if attention_mask is None:
        raise ValueError("a padding mask type needs attention_mask or cu_seqlens_q")
    pair = attention_mask if isinstance(attention_mask, tuple) else (attention_mask, attention_mask)
    for mask, length in zip(pair, (queries, keys), strict=True):
        if mask.dim() != 4 or tuple(mask.shape[1:]) != (1, 1, length):
            raise ValueError(f"a padding mask must be [batch, 1, 1, {length}], got {tuple(mask.shape)}")
    return tuple(mask[:, 0, 0].bool() for mask in pair)


def _behind(cu_seqlens: torch.Tensor, length: int, device) -> torch.Tensor:
    return torch.arange(length, device=device) >= cu_seqlens.diff().to(device).unsqueeze(1)
