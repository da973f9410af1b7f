"""`LayerNorm` and `RMSNorm` against the formula in float64."""

import pytest
import torch

from swift_kd_plugin.cpu.transformer_engine.norm import LayerNorm, RMSNorm
from swift_kd_plugin.cpu.transformer_engine.unsupported import NotOnCPUBackend
from tests.cpu.reference_layers import close, fill, leaf, naive_norm

H = 7
LAYERS = [LayerNorm, RMSNorm]


@pytest.mark.parametrize("layer_class", LAYERS)
@pytest.mark.parametrize("zero_centered_gamma", [False, True])
def test_value_and_gradients(layer_class, zero_centered_gamma):
    layer = layer_class(hidden_size=H, eps=1e-3, zero_centered_gamma=zero_centered_gamma, params_dtype=torch.float64)
    x, up = leaf(2, 3, H, seed=1), leaf(2, 3, H, seed=2).detach()
    fill(layer, weight=leaf(H, seed=3))
    if layer.bias is not None:
        fill(layer, bias=leaf(H, seed=4))
    copies = {name: p.detach().clone().requires_grad_() for name, p in layer.named_parameters()}
    x2 = x.detach().clone().requires_grad_()
    expected = naive_norm(x2, copies["weight"] + zero_centered_gamma, copies.get("bias"), 1e-3)
    expected.backward(up)
    out = layer(x)
    assert out.dtype == torch.float64
    close(out, expected)
    out.backward(up)
    close(x.grad, x2.grad)
    for name, p in layer.named_parameters():
        close(p.grad, copies[name].grad, name)


@pytest.mark.parametrize("layer_class", LAYERS)
def test_bf16_is_computed_in_fp32(layer_class):
    layer = layer_class(hidden_size=512, params_dtype=torch.bfloat16, zero_centered_gamma=True)
    fill(layer, weight=0.0037)  # 1 + 0.0037 rounds to 1 in bf16
    x = (leaf(4, 512) * 30 + 100).bfloat16()
    bias = None if layer.bias is None else layer.bias.double()
    expected = naive_norm(x.double(), 1 + layer.weight.double(), bias, 1e-5)
    out = layer(x)
    assert out.dtype == torch.bfloat16
    # One rounding to bf16 at the end, which is off by as much upwards as downwards.
    torch.testing.assert_close(out.double(), expected, rtol=2**-8, atol=1e-3)
    ratio = (out.double() * expected).sum() / expected.square().sum()
    assert ratio.item() == pytest.approx(1, abs=5e-4)


@pytest.mark.parametrize("layer_class", LAYERS)
def test_mark_and_state(layer_class):
    assert all(p.sequence_parallel for p in layer_class(hidden_size=H, sequence_parallel=True).parameters())
    assert not any(hasattr(p, "sequence_parallel") for p in layer_class(H).parameters())
    assert layer_class(H).state_dict()["_extra_state"].numel() == 0


def test_refusals():
    with pytest.raises(ValueError, match="hidden_size"):
        RMSNorm()
    with pytest.raises(NotOnCPUBackend, match="gated"):
        RMSNorm(H, gated=True)
