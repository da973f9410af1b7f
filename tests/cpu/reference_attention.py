"""Attention as a float64 softmax with the mask written out, and what goes into it."""

from itertools import accumulate

import torch

from swift_kd_plugin.cpu.transformer_engine.attention import DotProductAttention
from tests.cpu.reference_layers import leaf

HEADS, GROUPS, D, E = 4, 2, 8, 8


def naive(q, k, v, visible, *, scale=D**-0.5, bias=None):
    """q [s, h, d], k [t, g, d], v [t, g, e], visible [s, t] or [h, s, t] to [s, h * e]; zeros where nothing is seen."""
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))
    scores = torch.einsum("shd,thd->hst", q, k) * scale
    scores = scores + (0 if bias is None else bias)
    weights = torch.where(visible, scores.exp(), 0.0)
    total = weights.sum(-1, keepdim=True)
    probabilities = weights / torch.where(total > 0, total, 1.0)
    return torch.einsum("hst,the->she", probabilities, v).flatten(1)


def band(queries, keys, left=-1, right=-1, offset=0):
    i, j = torch.arange(queries).unsqueeze(1) + offset, torch.arange(keys)
    return ((j <= i + right) | (right < 0)) & ((j >= i - left) | (left < 0))


def qkv(rows_q, rows_kv=None, batch=(), groups=GROUPS, channels=(D, E)):
    rows_kv = rows_q if rows_kv is None else rows_kv
    return (
        leaf(rows_q, *batch, HEADS, channels[0], seed=1),
        leaf(rows_kv, *batch, groups, channels[0], seed=2),
        leaf(rows_kv, *batch, groups, channels[1], seed=3),
    )


def layer(**settings):
    settings = {"num_gqa_groups": GROUPS, **settings}
    return DotProductAttention(HEADS, settings.pop("kv_channels", D), **settings)


def per_sample(q, k, v, visible, **settings):
    """The naive attention of [s, b, ...] tensors; visible is one mask or one per sample."""
    masks = visible if isinstance(visible, list) else [visible] * q.shape[1]
    outs = [naive(q[:, b], k[:, b], v[:, b], masks[b], **settings) for b in range(q.shape[1])]
    return torch.stack(outs, dim=1)


def packed_naive(q, k, v, rows, real, left=-1, right=0):
    """Each sequence by itself; what lies behind its real rows is 0."""
    out = torch.zeros(q.shape[0], HEADS * v.shape[2], dtype=q.dtype)
    for start, length in zip([0, *accumulate(rows)], real, strict=False):
        part = slice(start, start + length)
        out[part] = naive(q[part], k[part], v[part], band(length, length, left, right))
    return out


def cumulative(lengths):
    return torch.tensor([0, *accumulate(lengths)], dtype=torch.int32)
