"""Attention under context parallelism: every rank gathers all keys and values, and keeps its own queries.

Each sequence is cut into 2 * ranks equal chunks, and rank r holds chunks r and 2 * ranks - 1 - r (zigzag), so that
causal work is the same on every rank. Shapes as in packed_attention, with r ranks and c rows of a chunk.
"""

import torch

from swift_kd_plugin.cpu.transformer_engine import collectives
from swift_kd_plugin.cpu.transformer_engine.attention_core import AttentionSettings, attend
from swift_kd_plugin.cpu.transformer_engine.packed_attention import Run, in_rows, split_rows, stack_rows


def attend_over_ranks(
    q_thd: torch.Tensor, k_tgd: torch.Tensor, v_tge: torch.Tensor, runs: list[Run], settings: AttentionSettings, group
) -> torch.Tensor:
    """[t, h, e] of this rank's rows. Lengths in `runs` are those of whole sequences, over all ranks.

    Raises:
        ValueError: a sequence whose rows do not divide into 2 * ranks chunks, or that has other keys than queries.
    """
    ranks = group.size()
    for run in runs:
        _check(run, ranks)
    sizes = [run.count * run.lengths.rows_q // ranks for run in runs]
    # One gather for both. Its backward sums a key's gradient over the ranks, each of which had other queries.
    kv_local = torch.cat([k_tgd, v_tge], dim=-1)
    kv_all = collectives.gather_rows(kv_local, group).view(ranks, *kv_local.shape)
    parts_q = split_rows(q_thd, sizes, "queries")
    parts_kv = split_rows(kv_all, sizes, "keys", dim=1)
    outs = []
    for run, q, kv in zip(runs, parts_q, parts_kv, strict=False):
        k, v = in_sequence_order(kv, run.count).split([k_tgd.shape[-1], v_tge.shape[-1]], dim=-1)
        outs += [_attend_run(q, k, v, run, settings, group.rank(), ranks)]
    return stack_rows(outs, q_thd, *kv_all.split([k_tgd.shape[-1], v_tge.shape[-1]], dim=-1))


def _check(run: Run, ranks: int) -> None:
    lengths = run.lengths
    if lengths.rows_q % (2 * ranks):
        raise ValueError(
            f"a sequence takes up {lengths.rows_q} rows, which context parallelism over {ranks} ranks cannot cut into "
            f"{2 * ranks} equal chunks: pad sequences to a multiple of {2 * ranks}"
        )
    if (lengths.rows_kv, lengths.real_kv) != (lengths.rows_q, lengths.real_q):
        raise ValueError("context parallelism needs as many keys as queries in every sequence")


def in_sequence_order(x_rtgd: torch.Tensor, count: int) -> torch.Tensor:
    """[ranks, count * 2c, g, d] as gathered to [count, g, ranks * 2c, d], in the order of the sequence."""
    ranks, rows = x_rtgd.shape[:2]
    chunks = x_rtgd.reshape(ranks, count, 2, rows // count // 2, *x_rtgd.shape[2:])
    # First chunks ascend with the rank, second chunks descend.
    ordered = torch.cat([chunks[:, :, 0], chunks[:, :, 1].flip(0)])
    return ordered.transpose(0, 1).flatten(1, 2).transpose(1, 2)


def _attend_run(q_thd, k_ngsd, v_ngse, run: Run, settings: AttentionSettings, rank: int, ranks: int) -> torch.Tensor:
    chunk = run.lengths.rows_q // (2 * ranks)
    real = run.lengths.real_q
    k, v = k_ngsd[:, :, :real], v_ngse[:, :, :real]
    q = q_thd.view(run.count, 2, chunk, *q_thd.shape[1:])
    halves = []
    for half, index in enumerate((rank, 2 * ranks - 1 - rank)):
        first = index * chunk
        rows = min(max(real - first, 0), chunk)
        out = attend(q[:, half, :rows].transpose(1, 2), k, v, first, settings)
        halves.append(in_rows(out, chunk).view(run.count, chunk, q_thd.shape[1], v.shape[-1]))
    return torch.cat(halves, dim=1).flatten(0, 1)
