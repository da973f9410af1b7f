"""`GroupedLinear` against one plain linear layer per expert."""

import pytest
import torch
from torch.nn import functional as F

from swift_kd_plugin.cpu.transformer_engine.grouped_linear import GroupedLinear
from swift_kd_plugin.cpu.transformer_engine.unsupported import NotOnCPUBackend
from tests.cpu.reference_layers import close, fill, leaf

IN, OUT = 6, 10
SIZES = [3, 0, 4]
F64 = torch.float64


def filled(**settings):
    layer = GroupedLinear(3, IN, OUT, params_dtype=F64, **settings)
    for i in range(3):
        fill(layer, **{f"weight{i}": leaf(OUT, IN, seed=10 + i)})
        if layer.use_bias:
            fill(layer, **{f"bias{i}": leaf(OUT, seed=20 + i)})
    return layer


@pytest.mark.parametrize("splits", [SIZES, torch.tensor(SIZES)])
@pytest.mark.parametrize(("bias", "return_bias"), [(False, False), (True, False), (True, True)])
def test_value_and_gradients(splits, bias, return_bias):
    layer = filled(bias=bias, return_bias=return_bias)
    x, up = leaf(7, IN, seed=1), leaf(7, OUT, seed=2).detach()
    copies = {name: p.detach().clone().requires_grad_() for name, p in layer.named_parameters()}
    x2 = x.detach().clone().requires_grad_()
    added = bias and not return_bias
    rows = [(0, slice(0, 3)), (2, slice(3, 7))]
    expected = torch.cat(
        [F.linear(x2[part], copies[f"weight{i}"], copies[f"bias{i}"] if added else None) for i, part in rows]
    )
    expected.backward(up)
    out = layer(x, splits)
    if return_bias:
        out, biases = out
        assert [b is getattr(layer, f"bias{i}") for i, b in enumerate(biases)] == [True] * 3
    close(out, expected)
    out.backward(up)
    close(x.grad, x2.grad)
    for i in (0, 2):
        close(getattr(layer, f"weight{i}").grad, copies[f"weight{i}"].grad)
        if added:
            close(getattr(layer, f"bias{i}").grad, copies[f"bias{i}"].grad)
    # Megatron-Core reads the gradient of every expert, also of one that saw no token.
    close(layer.weight1.grad, torch.zeros(OUT, IN, dtype=F64))
    if added:
        close(layer.bias1.grad, torch.zeros(OUT, dtype=F64))


def test_a_rank_without_tokens_still_has_gradients():
    layer = filled(bias=True)
    x = torch.zeros(0, IN, dtype=F64, requires_grad=True)
    out = layer(x, [0, 0, 0])
    assert out.shape == (0, OUT)
    out.sum().backward()
    assert all(torch.equal(p.grad, torch.zeros_like(p)) for p in layer.parameters())
    assert x.grad.shape == (0, IN)


def test_splits_must_match():
    layer = filled()
    for splits in ([3, 4], [3, 3, 3]):
        with pytest.raises(ValueError, match="m_splits"):
            layer(torch.zeros(7, IN, dtype=F64), splits)


def test_sizes_marks_and_state():
    layer = GroupedLinear(2, IN, OUT, parallel_mode="column", tp_size=2)
    assert layer.weight1.shape == (OUT // 2, IN)
    assert layer.weight1.partition_dim == 0
    assert layer.bias1.tensor_model_parallel
    layer = GroupedLinear(2, IN, OUT, parallel_mode="row", tp_size=2, bias=False)
    assert layer.weight0.shape == (OUT, IN // 2)
    assert layer.weight0.partition_dim == 1
    assert layer.bias0.numel() == 0
    assert [layer.fp8_meta["fp8_checkpoint"], layer.fp8, layer.fp8_calibration] == [False] * 3
    assert [name for name, _ in layer.named_parameters()] == ["weight0", "weight1"]
    assert layer.state_dict()["_extra_state"].numel() == 0


@pytest.mark.parametrize("option", ["fuse_wgrad_accumulation", "delay_wgrad_compute", "ub_overlap_ag"])
def test_options_that_are_refused(option):
    with pytest.raises(NotOnCPUBackend, match=option):
        GroupedLinear(2, IN, OUT, **{option: True})
