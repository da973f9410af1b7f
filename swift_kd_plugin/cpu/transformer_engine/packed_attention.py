"""Attention over packed sequences: rows of many sequences one after the other, each attending to itself.

Shapes: t rows of the pack, n sequences of equal length, s rows of one sequence, h query heads, g key/value heads,
d key channels, e value channels.
"""

from dataclasses import dataclass
from itertools import groupby, pairwise

import torch
from torch.nn import functional as F

from swift_kd_plugin.cpu.transformer_engine.attention_core import AttentionSettings, attend


@dataclass(frozen=True)
class Lengths:
    """Rows that one sequence takes up, and how many of them are real; the rest is padding behind them."""

    rows_q: int
    real_q: int
    rows_kv: int
    real_kv: int


@dataclass(frozen=True)
class Run:
    """Neighbouring sequences of equal lengths: they are computed as one batch."""

    count: int
    lengths: Lengths


def find_runs(cu_seqlens_q, cu_seqlens_kv=None, cu_seqlens_q_padded=None, cu_seqlens_kv_padded=None) -> list[Run]:
    """Reads cumulative lengths, [sequences + 1] each; those that are None are as the queries', and unpadded.

    The tail by which ms-swift fills a pack is many sequences of one row, hence the runs.
    """
    if cu_seqlens_q is None:
        raise ValueError("the thd layout needs cu_seqlens_q")
    real_q = _lengths(cu_seqlens_q)
    rows_q = real_q if cu_seqlens_q_padded is None else _lengths(cu_seqlens_q_padded)
    real_kv = real_q if cu_seqlens_kv is None else _lengths(cu_seqlens_kv)
    if cu_seqlens_kv_padded is not None:
        rows_kv = _lengths(cu_seqlens_kv_padded)
    else:
        rows_kv = rows_q if cu_seqlens_kv is None or real_kv == real_q else real_kv
    if not len(rows_q) == len(real_q) == len(rows_kv) == len(real_kv):
        raise ValueError("cu_seqlens of queries and keys, padded or not, must name the same number of sequences")
    lengths = [Lengths(*each) for each in zip(rows_q, real_q, rows_kv, real_kv, strict=True)]
    if any(each.real_q > each.rows_q or each.real_kv > each.rows_kv for each in lengths):
        raise ValueError("cu_seqlens_padded leaves a sequence fewer rows than cu_seqlens says it has")
    return [Run(sum(1 for _ in run), each) for each, run in groupby(lengths)]


def _lengths(cu_seqlens: torch.Tensor) -> list[int]:
    lengths = [stop - start for start, stop in pairwise(cu_seqlens.tolist())]
    if any(length < 0 for length in lengths):
        raise ValueError("cu_seqlens must not decrease")
    return lengths


def attend_packed(
    q_thd: torch.Tensor,
    k_tgd: torch.Tensor,
    v_tge: torch.Tensor,
    runs: list[Run],
    settings: AttentionSettings,
    bottom_right: bool = False,
) -> torch.Tensor:
    """[t, h, e]; rows of padding, and rows behind the last sequence, give zeros.

    bottom_right: the last query is aligned with the last key, rather than the first with the first.
    """
    sizes_q = [run.count * run.lengths.rows_q for run in runs]
    sizes_kv = [run.count * run.lengths.rows_kv for run in runs]
    # One split, whose backward is one concatenation; a slice per sequence would each add a gradient of all rows.
    parts_q = split_rows(q_thd, sizes_q, "queries")
    parts_k = split_rows(k_tgd, sizes_kv, "keys")
    parts_v = split_rows(v_tge, sizes_kv, "values")
    outs = []
    for run, q, k, v in zip(runs, parts_q, parts_k, parts_v, strict=False):
        real_q, real_kv = run.lengths.real_q, run.lengths.real_kv
        out = attend(
            in_batches(q, run.count, real_q),
            in_batches(k, run.count, real_kv),
            in_batches(v, run.count, real_kv),
            real_kv - real_q if bottom_right else 0,
            settings,
        )
        outs.append(in_rows(out, run.lengths.rows_q))
    return stack_rows(outs, q_thd, k_tgd, v_tge)


def split_rows(x: torch.Tensor, sizes: list[int], name: str, dim: int = 0) -> tuple[torch.Tensor, ...]:
    """Splits the rows, with whatever is behind the last sequence as one part more."""
    tail = x.shape[dim] - sum(sizes)
    if tail < 0:
        raise ValueError(f"cu_seqlens reach {sum(sizes)} rows, but there are {x.shape[dim]} {name}")
    return x.split([*sizes, tail], dim=dim)


def in_batches(x_thd: torch.Tensor, count: int, real: int) -> torch.Tensor:
    """[count * s, h, d] to [count, h, real, d]."""
    rows = x_thd.shape[0] // count
    return x_thd.view(count, rows, *x_thd.shape[1:])[:, :real].transpose(1, 2)


def in_rows(out_nhse: torch.Tensor, rows: int) -> torch.Tensor:
    """[n, h, real, e] to [n * rows, h, e], padded with zeros."""
    out = F.pad(out_nhse, (0, 0, 0, rows - out_nhse.shape[2])) if out_nhse.shape[2] < rows else out_nhse
    return out.transpose(1, 2).flatten(0, 1)


def stack_rows(outs: list[torch.Tensor], q_thd: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Puts the sequences' rows together again, with zeros for the rows behind the last."""
    missing = q_thd.shape[0] - sum(out.shape[0] for out in outs)
    if missing or not outs:
        outs = [*outs, q_thd.new_zeros(missing, q_thd.shape[1], v.shape[-1])]
    out = outs[0] if len(outs) == 1 else torch.cat(outs)
    if out.requires_grad or not any(x.requires_grad for x in (q_thd, k, v)):
        return out
    # Only padding: the gradients are zero, but they must exist, since other ranks wait for this one in the backward
    # pass of the collectives behind.
    return out + q_thd[:0].sum() + k[:0].sum() + v[:0].sum()
