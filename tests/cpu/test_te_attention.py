"""`DotProductAttention` against a float64 softmax with the mask written out, for every layout and mask."""

import pytest
import torch

from swift_kd_plugin.cpu.transformer_engine.attention import DotProductAttention
from swift_kd_plugin.cpu.transformer_engine.rng import CudaRNGStatesTracker
from swift_kd_plugin.cpu.transformer_engine.unsupported import NotOnCPUBackend
from tests.cpu.reference_attention import HEADS, D, band, cumulative, layer, naive, packed_naive, per_sample, qkv
from tests.cpu.reference_layers import close, leaf

F64 = torch.float64


def twins(tensors):
    return tuple(x.detach().clone().requires_grad_() for x in tensors)


def compare(out, inputs, expected, expected_inputs, tolerance_name=""):
    close(out, expected, tolerance_name)
    up = leaf(*out.shape, seed=9).detach()
    out.backward(up)
    expected.backward(up)
    for x, y in zip(inputs, expected_inputs, strict=True):
        close(x.grad, y.grad, tolerance_name)


def in_layout(inputs, layout):
    return tuple(x.transpose(0, 1) for x in inputs) if layout == "bshd" else inputs


DENSE = [
    # mask type, window, (queries, keys), what a query sees
    ("no_mask", None, (7, 7), band(7, 7)),
    ("no_mask", (2, 1), (7, 7), band(7, 7, 2, 1)),
    ("causal", None, (7, 7), band(7, 7, right=0)),
    ("causal", None, (4, 7), band(4, 7, right=0)),
    ("causal", None, (7, 4), band(7, 4, right=0)),
    ("causal", (2, 0), (7, 7), band(7, 7, 2, 0)),
    ("causal", (0, -1), (7, 7), band(7, 7, 0, 0)),
    ("causal_bottom_right", None, (4, 7), band(4, 7, right=0, offset=3)),
    ("causal_bottom_right", None, (1, 7), band(1, 7)),
    ("causal_bottom_right", None, (7, 4), band(7, 4, right=0, offset=-3)),
    ("causal_bottom_right", (2, 0), (4, 7), band(4, 7, 2, 0, offset=3)),
]


@pytest.mark.parametrize(("mask_type", "window", "sizes", "visible"), DENSE)
@pytest.mark.parametrize("layout", ["sbhd", "bshd"])
@pytest.mark.parametrize("groups", [1, HEADS])
def test_dense(mask_type, window, sizes, visible, layout, groups):
    inputs = qkv(*sizes, batch=(2,), groups=groups)
    copies = twins(inputs)
    attention = layer(qkv_format=layout, attn_mask_type=mask_type, window_size=window, num_gqa_groups=groups)
    out = attention(*in_layout(inputs, layout))
    out = out.transpose(0, 1) if layout == "bshd" else out
    compare(out, inputs, per_sample(*copies, visible), copies)


def test_settings_of_the_call_win():
    inputs = qkv(5, batch=(2,))
    attention = layer(attn_mask_type="no_mask", softmax_scale=0.7)
    out = attention(
        *(x.transpose(0, 1) for x in inputs), qkv_format="bshd", attn_mask_type="causal", window_size=(1, 0)
    )
    close(out.transpose(0, 1), per_sample(*inputs, band(5, 5, 1, 0), scale=0.7))


def test_value_channels_may_differ():
    inputs = qkv(5, batch=(2,), channels=(D, 3))
    copies = twins(inputs)
    attention = layer(kv_channels=(D, 3))
    assert attention.hidden_size_per_attention_head_v == 3
    compare(attention(*inputs), inputs, per_sample(*copies, band(5, 5, right=0)), copies)


@pytest.mark.parametrize("mask_type", ["padding", "padding_causal", "padding_causal_bottom_right"])
@pytest.mark.parametrize("lengths", ["mask", "cu_seqlens"])
def test_padding(mask_type, lengths):
    real = [4, 6]
    inputs = qkv(6, batch=(2,))
    copies = twins(inputs)
    if lengths == "mask":
        mask = torch.stack([torch.arange(6) >= n for n in real]).view(2, 1, 1, 6)
        out = layer(attn_mask_type=mask_type)(*inputs, mask)
    else:
        out = layer(attn_mask_type=mask_type)(*inputs, cu_seqlens_q=torch.tensor([0, 4, 10]))
    right = 0 if "causal" in mask_type else -1
    seen = [band(6, 6, right=right) & (torch.arange(6) < n) & (torch.arange(6) < n).unsqueeze(1) for n in real]
    compare(out, inputs, per_sample(*copies, seen), copies)


@pytest.mark.parametrize(
    ("mask_type", "offsets"), [("padding_causal", (0, 0)), ("padding_causal_bottom_right", (3, 1))]
)
def test_padding_of_queries_and_keys(mask_type, offsets):
    real_q, real_kv = (2, 4), (5, 5)
    inputs = qkv(4, 6, batch=(2,))
    copies = twins(inputs)
    pair = tuple(
        torch.stack([torch.arange(size) >= n for n in real]).view(2, 1, 1, size)
        for real, size in ((real_q, 4), (real_kv, 6))
    )
    out = layer(attn_mask_type=mask_type)(*inputs, pair)
    seen = [
        band(4, 6, right=0, offset=offset) & (torch.arange(6) < kv) & (torch.arange(4) < q).unsqueeze(1)
        for q, kv, offset in zip(real_q, real_kv, offsets, strict=True)
    ]
    compare(out, inputs, per_sample(*copies, seen), copies)


def test_mask_of_ones_own():
    inputs = qkv(6, batch=(2,))
    copies = twins(inputs)
    hidden = torch.rand(2, 1, 6, 6, generator=torch.Generator().manual_seed(0)) < 0.4
    hidden[0, :, 2] = True
    out = layer(attn_mask_type="arbitrary")(*inputs, hidden)
    assert out[2, 0].abs().max() == 0
    compare(out, inputs, per_sample(*copies, [~hidden[0], ~hidden[1]]), copies)


@pytest.mark.parametrize("mask_type", ["causal", "arbitrary", "padding"])
def test_bias_is_added_to_the_scaled_scores(mask_type):
    inputs = (*qkv(6, batch=(2,)), leaf(1, HEADS, 6, 6, seed=5))
    copies = twins(inputs)
    mask, visible = None, band(6, 6, right=0)
    if mask_type == "arbitrary":
        mask = ~visible
    elif mask_type == "padding":
        mask, visible = torch.zeros(2, 1, 1, 6, dtype=torch.bool), band(6, 6)
    out = layer(attn_mask_type=mask_type)(
        *inputs[:3], mask, core_attention_bias_type="post_scale_bias", core_attention_bias=inputs[3]
    )
    compare(out, inputs, per_sample(*copies[:3], visible, bias=copies[3][0]), copies)


ROWS = [5, 3, 3, 8, 1, 1, 1, 1]  # ends as a pack that ms-swift has filled up


@pytest.mark.parametrize("mask_type", ["padding_causal", "causal", "padding", "no_mask"])
@pytest.mark.parametrize("window", [None, (2, 0), (0, 0)])
def test_packed(mask_type, window):
    inputs = qkv(sum(ROWS))
    copies = twins(inputs)
    cu = cumulative(ROWS)
    out = layer(qkv_format="thd")(
        *inputs, cu_seqlens_q=cu, cu_seqlens_kv=cu, attn_mask_type=mask_type, window_size=window, max_seqlen_q=8
    )
    left, right = window or (-1, -1)
    right = 0 if "causal" in mask_type else right
    compare(out, inputs, packed_naive(*copies, ROWS, ROWS, left, right), copies)


@pytest.mark.parametrize("mask_type", ["padding_causal", "padding"])
def test_packed_with_padding_between_sequences(mask_type):
    rows, real = [6, 4, 4, 8, 2], [5, 4, 3, 0, 2]
    inputs = qkv(sum(rows) + 3)  # and rows that belong to no sequence
    copies = twins(inputs)
    lengths = {"cu_seqlens_q": cumulative(real), "cu_seqlens_kv": cumulative(real)}
    padded = {"cu_seqlens_q_padded": cumulative(rows), "cu_seqlens_kv_padded": cumulative(rows)}
    out = layer()(*inputs, qkv_format="thd", attn_mask_type=mask_type, **lengths, **padded)
    expected = packed_naive(*copies, rows, real, right=0 if "causal" in mask_type else -1)
    assert out[5].abs().max() == 0
    assert out[-3:].abs().max() == 0
    compare(out, inputs, expected, copies)


def test_a_pack_of_padding_has_gradients_of_zero():
    inputs = qkv(4)
    lengths = {"cu_seqlens_q": cumulative([0]), "cu_seqlens_q_padded": cumulative([4])}
    layer()(*inputs, qkv_format="thd", **lengths).sum().backward()
    assert all(torch.equal(x.grad, torch.zeros_like(x)) for x in inputs)


@pytest.mark.parametrize(
    ("mask_type", "offsets"), [("padding_causal", (0, 0)), ("padding_causal_bottom_right", (3, -1))]
)
def test_packed_with_other_keys(mask_type, offsets):
    inputs = qkv(6, 8)
    copies = twins(inputs)
    out = layer()(
        *inputs,
        qkv_format="thd",
        attn_mask_type=mask_type,
        cu_seqlens_q=cumulative([2, 4]),
        cu_seqlens_kv=cumulative([5, 3]),
    )
    q, k, v = copies
    first = naive(q[:2], k[:5], v[:5], band(2, 5, right=0, offset=offsets[0]))
    second = naive(q[2:], k[5:], v[5:], band(4, 3, right=0, offset=offsets[1]))
    compare(out, inputs, torch.cat([first, second]), copies)


def test_bf16_stays_close_to_float64():
    q, k, v = (x.detach().bfloat16() for x in qkv(64, batch=(2,)))
    out = layer()(q, k, v)
    assert out.dtype == torch.bfloat16
    expected = per_sample(q.double(), k.double(), v.double(), band(64, 64, right=0))
    torch.testing.assert_close(out.double(), expected, rtol=0.02, atol=0.02)


def dropped(attention, inputs, layout):
    lengths = {"cu_seqlens_q": cumulative(ROWS)} if layout == "thd" else {}
    return attention(*inputs, qkv_format=layout, **lengths)


@pytest.mark.parametrize("layout", ["sbhd", "thd"])
def test_dropout_draws_from_the_tracker(layout):
    inputs = qkv(sum(ROWS), batch=(2,) if layout == "sbhd" else ())
    tracker = CudaRNGStatesTracker()
    tracker.add("model-parallel-rng", 5)
    start = tracker.get_states()
    attention = layer(attention_dropout=0.5, get_rng_state_tracker=lambda: tracker)
    before = torch.get_rng_state()
    first, second = dropped(attention, inputs, layout), dropped(attention, inputs, layout)
    assert torch.equal(before, torch.get_rng_state())
    assert not torch.equal(first, second)
    tracker.set_states(start)
    torch.manual_seed(77)
    assert torch.equal(first, dropped(attention, inputs, layout))
    plain = dropped(layer(), inputs, layout)
    assert not torch.allclose(first, plain)
    assert torch.equal(dropped(attention.eval(), inputs, layout), plain)


def test_dropout_keeps_the_mean():
    inputs = [x.detach() for x in qkv(4, batch=(1,))]
    attention = layer(attention_dropout=0.3)
    torch.manual_seed(0)
    mean = torch.stack([attention(*inputs) for _ in range(4000)]).mean(0)
    torch.testing.assert_close(mean, layer()(*inputs), atol=0.06, rtol=0)


@pytest.mark.parametrize(
    ("settings", "hint"),
    [
        ({"softmax_type": "learnable"}, "softmax_type"),
        ({"return_max_logit": True}, "return_max_logit"),
        ({"cp_group": [None, None]}, "hierarchical"),
    ],
)
def test_settings_that_are_refused(settings, hint):
    with pytest.raises(NotOnCPUBackend, match=hint):
        layer(**settings)


@pytest.mark.parametrize(
    ("options", "hint"),
    [
        ({"num_splits": 2}, "num_splits"),
        ({"inference_params": object()}, "inference_params"),
        ({"alibi_slopes": torch.ones(HEADS)}, "alibi_slopes"),
        ({"cp_partition_mode": "contiguous"}, "cp_partition_mode"),
        ({"core_attention_bias_type": "alibi"}, "alibi"),
        ({"qkv_format": "thd", "cu_seqlens_q": cumulative([4]), "attn_mask_type": "arbitrary"}, "thd"),
    ],
)
def test_options_that_are_refused(options, hint):
    batch = () if "qkv_format" in options else (2,)
    with pytest.raises(NotOnCPUBackend, match=hint):
        layer()(*qkv(4, batch=batch), **options)


def test_contradictions_are_errors():
    attention = layer()
    with pytest.raises(ValueError, match="qkv_format"):
        attention(*qkv(4, batch=(2,)), qkv_format="bhsd")
    with pytest.raises(ValueError, match="attn_mask_type"):
        attention(*qkv(4, batch=(2,)), attn_mask_type="diagonal")
    with pytest.raises(ValueError, match="cu_seqlens_q"):
        attention(*qkv(4), qkv_format="thd")
    with pytest.raises(ValueError, match="reach 6 rows"):
        attention(*qkv(4), qkv_format="thd", cu_seqlens_q=cumulative([3, 3]))
    with pytest.raises(ValueError, match="looks ahead"):
        attention(*qkv(4, batch=(2,)), window_size=(1, 1))
    with pytest.raises(ValueError, match="divide"):
        DotProductAttention(4, 8, num_gqa_groups=3)
    with pytest.raises(ValueError, match="padding mask"):
        attention(*qkv(4, batch=(2,)), torch.zeros(2, 1, 4, 4), attn_mask_type="padding")
