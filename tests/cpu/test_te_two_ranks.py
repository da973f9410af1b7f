"""Layers split over two ranks against the whole layer in plain PyTorch: values and every gradient.

The checks run one after the other in one pair of processes, since starting them takes longer than the checks.
"""

from itertools import product

import pytest
import torch
from torch import distributed as dist
from torch.nn import functional as F

from swift_kd_plugin.cpu.transformer_engine import collectives
from swift_kd_plugin.cpu.transformer_engine.attention import DotProductAttention
from swift_kd_plugin.cpu.transformer_engine.layernorm_linear import LayerNormLinear
from swift_kd_plugin.cpu.transformer_engine.linear import Linear
from swift_kd_plugin.cpu.transformer_engine.unsupported import NotOnCPUBackend
from tests.cpu.reference_attention import HEADS, D, band, cumulative, layer, packed_naive, per_sample, qkv
from tests.cpu.reference_layers import F64, IN, OUT, B, S, close, fill, leaf, naive_norm
from tests.gloo_ranks import run_distributed


def split(x, rank, dim):
    return x.chunk(2, dim=dim)[rank]


def check_linear(rank):
    for mode, sequence_parallel, bias in product(("column", "row"), (False, True), (False, True)):
        _compare_with_whole(rank, mode, sequence_parallel, bias)


def _compare_with_whole(rank, mode, sequence_parallel, bias):
    name = f"{mode}, sequence_parallel={sequence_parallel}, bias={bias}"
    x, w, b, up = leaf(S, B, IN, seed=1), leaf(OUT, IN, seed=2), leaf(OUT, seed=3), leaf(S, B, OUT, seed=4).detach()
    expected = F.linear(x, w, b if bias else None)
    expected.backward(2 * up)

    layer = Linear(
        IN,
        OUT,
        tp_group=dist.group.WORLD,
        tp_size=2,
        sequence_parallel=sequence_parallel,
        parallel_mode=mode,
        bias=bias,
        params_dtype=F64,
    )
    column = mode == "column"
    fill(layer, weight=split(w, rank, 0 if column else 1))
    if bias:
        fill(layer, bias=split(b, rank, 0) if column else b)
    # What a rank holds of the input and of the output.
    part_in = (0 if sequence_parallel else None) if column else 2
    part_out = 2 if column else (0 if sequence_parallel else None)

    def mine(t, dim):
        return t if dim is None else split(t, rank, dim)

    x2 = mine(x.detach(), part_in).clone().requires_grad_()
    out = layer(x2)
    close(out, mine(expected, part_out), name)
    out.backward(mine(2 * up, part_out))
    close(x2.grad, mine(x.grad, part_in), name)
    close(layer.weight.grad, split(w.grad, rank, 0 if column else 1), name)
    if bias:
        got = layer.bias.grad.clone()
        if not column and sequence_parallel:
            assert layer.bias.sequence_parallel
            dist.all_reduce(got)
        close(got, split(b.grad, rank, 0) if column else b.grad, name)


def check_gradients_of_any_stride(rank):
    # A column-major input has a column-major gradient, which must not be lost on its way through a collective.
    x, w = leaf(IN, S, seed=1), leaf(OUT, IN, seed=2)
    up = leaf(OUT, S, seed=3).detach()
    F.linear(x.t(), w).backward(up.t())
    layer = Linear(IN, OUT, tp_group=dist.group.WORLD, tp_size=2, parallel_mode="column", bias=False, params_dtype=F64)
    fill(layer, weight=split(w, rank, 0))
    x2 = x.detach().clone().requires_grad_()
    layer(x2.t()).backward(split(up.t(), rank, 1))
    close(x2.grad, x.grad)


def check_layernorm_linear(rank):
    for sequence_parallel, lora in product((False, True), (False, True)):
        x, up = leaf(S, B, IN, seed=1), leaf(S, B, OUT, seed=4).detach()
        g, w = leaf(IN, seed=5), leaf(OUT, IN, seed=6)
        a = leaf(IN, seed=7).detach()
        normed = naive_norm(x, g, None, 1e-5)
        expected = F.linear(normed, w)
        # A LoRA branch takes the norm's output, which lies on the ranks as the input does.
        loss = (expected * up).sum() + ((normed * a).sum() if lora else 0.0)
        loss.backward()

        layer = LayerNormLinear(
            IN,
            OUT,
            normalization="RMSNorm",
            tp_group=dist.group.WORLD,
            tp_size=2,
            sequence_parallel=sequence_parallel,
            parallel_mode="column",
            bias=False,
            params_dtype=F64,
            return_layernorm_output=True,
        )
        fill(layer, layer_norm_weight=g, weight=split(w, rank, 0))
        assert layer.layer_norm_weight.sequence_parallel is sequence_parallel
        rows = (lambda t: split(t, rank, 0)) if sequence_parallel else (lambda t: t)
        x2 = rows(x.detach()).clone().requires_grad_()
        out, ln_out = layer(x2)
        close(ln_out, rows(normed))
        close(out, split(expected, rank, 2))
        loss = (out * split(up, rank, 2)).sum() + ((ln_out * a).sum() if lora else 0.0)
        loss.backward()
        close(x2.grad, rows(x.grad))
        close(layer.weight.grad, split(w.grad, rank, 0))
        gradient = layer.layer_norm_weight.grad.clone()
        if sequence_parallel:
            dist.all_reduce(gradient)
        close(gradient, g.grad)


def zigzag(rows, rank):
    """Where this rank's rows lie in the pack: of each sequence its first and fourth, or second and third, quarter."""
    index, start = [], 0
    for length in rows:
        quarters = torch.arange(start, start + length).chunk(4)
        index += [quarters[rank], quarters[3 - rank]]
        start += length
    return torch.cat(index)


def _compare_part(rank, index, dim, run, inputs, expected):
    """`run` on this rank's part of the inputs must give its part of the output and of every gradient."""
    up = leaf(*expected.shape, seed=9).detach()
    gradients = torch.autograd.grad(expected, inputs, up)
    parts = [x.detach().index_select(dim, index).requires_grad_() for x in inputs]
    out = run(*parts)
    close(out, expected.index_select(dim, index))
    out.backward(up.index_select(dim, index))
    for part, whole in zip(parts, gradients, strict=True):
        close(part.grad, whole.index_select(dim, index))


def check_context_parallel_batch(rank):
    attention = layer(cp_group=dist.group.WORLD)
    index = zigzag([12], rank)
    for mask_type, window in (("causal", None), ("no_mask", None), ("causal", (4, 0)), ("no_mask", (3, 5))):
        left, right = window or (-1, -1)
        visible = band(12, 12, left, 0 if mask_type == "causal" else right)
        inputs = qkv(12, batch=(2,), channels=(D, 3))
        settings = {"attn_mask_type": mask_type, "window_size": window}
        expected = per_sample(*inputs, visible)
        _compare_part(rank, index, 0, lambda *x, s=settings: attention(*x, **s), inputs, expected)
        inputs = [x.detach().transpose(0, 1).requires_grad_() for x in inputs]
        expected = per_sample(*(x.transpose(0, 1) for x in inputs), visible).transpose(0, 1)
        _compare_part(rank, index, 1, lambda *x, s=settings: attention(*x, qkv_format="bshd", **s), inputs, expected)


def check_context_parallel_pack(rank):
    packs = [
        ([8, 4, 4, 12, 4, 4], [8, 4, 4, 12, 4, 4]),
        ([8, 4, 4, 12, 4], [7, 4, 4, 1, 0]),
        ([8], [2]),  # the second rank holds padding only, and still has to take part in the gather's backward
    ]
    attention = layer(qkv_format="thd", cp_group=dist.group.WORLD)
    for (rows, real), window, mask_type in product(packs, (None, (3, 0)), ("padding_causal", "padding")):
        left, right = window or (-1, -1)
        inputs = qkv(sum(rows))
        right = 0 if mask_type == "padding_causal" else right
        expected = packed_naive(*inputs, rows, real, left, right)
        lengths = {"cu_seqlens_q": cumulative(real), "cu_seqlens_kv": cumulative(real)}
        if rows != real:
            lengths |= {"cu_seqlens_q_padded": cumulative(rows), "cu_seqlens_kv_padded": cumulative(rows)}
        settings = {"attn_mask_type": mask_type, "window_size": window, **lengths}
        _compare_part(rank, zigzag(rows, rank), 0, lambda *x, s=settings: attention(*x, **s), inputs, expected)


def check_context_parallel_can_be_switched_off(rank):
    attention = layer(cp_group=dist.group.WORLD)
    attention.set_context_parallel_group(None, None, None, "p2p")
    inputs = qkv(5, batch=(2,))
    close(attention(*inputs), per_sample(*inputs, band(5, 5, right=0)))


def check_context_parallel_refusals(rank):
    attention = DotProductAttention(HEADS, D, num_gqa_groups=2, cp_group=dist.group.WORLD)
    for mask_type in ("padding", "arbitrary"):
        with pytest.raises(NotOnCPUBackend, match=mask_type):
            attention(*qkv(4, batch=(2,)), torch.zeros(2, 1, 1, 4), attn_mask_type=mask_type)
    with pytest.raises(ValueError, match="multiple of 4"):
        attention(*qkv(3, batch=(2,)))
    lengths = {"cu_seqlens_q": cumulative([4, 4]), "cu_seqlens_kv": cumulative([4, 8])}
    with pytest.raises(ValueError, match="as many keys"):
        attention(*qkv(4), qkv_format="thd", **lengths)
    with pytest.raises(ValueError, match="3 rows"):
        collectives.scatter_sum_of_rows(torch.zeros(3, 2), dist.group.WORLD)


CHECKS = [
    check_linear,
    check_gradients_of_any_stride,
    check_layernorm_linear,
    check_context_parallel_batch,
    check_context_parallel_pack,
    check_context_parallel_can_be_switched_off,
    check_context_parallel_refusals,
]


def run_checks(rank):
    for check in CHECKS:
        try:
            check(rank)
        except Exception as error:
            error.add_note(f"in {check.__name__} on rank {rank}")
            raise


def test_on_two_ranks():
    run_distributed(run_checks, 2)
