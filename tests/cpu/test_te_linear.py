"""`Linear` and `LayerNormLinear` against plain PyTorch: values and every gradient. On two ranks: test_te_two_ranks."""

import pytest
import torch
from torch.nn import functional as F

from swift_kd_plugin.cpu.transformer_engine.layernorm_linear import LayerNormLinear
from swift_kd_plugin.cpu.transformer_engine.linear import Linear
from swift_kd_plugin.cpu.transformer_engine.rng import CudaRNGStatesTracker
from swift_kd_plugin.cpu.transformer_engine.unsupported import NotOnCPUBackend
from tests.cpu.reference_layers import F64, IN, OUT, B, S, close, fill, leaf, naive_norm


@pytest.mark.parametrize(("bias", "return_bias"), [(True, False), (True, True), (False, False), (False, True)])
def test_linear_on_one_rank(bias, return_bias):
    x, w, b, up = leaf(S, B, IN, seed=1), leaf(OUT, IN, seed=2), leaf(OUT, seed=3), leaf(S, B, OUT, seed=4).detach()
    expected = F.linear(x, w, b if bias and not return_bias else None)
    expected.backward(up)

    layer = Linear(IN, OUT, bias=bias, return_bias=return_bias, params_dtype=F64)
    fill(layer, weight=w, **({"bias": b} if bias else {}))
    x2 = x.detach().clone().requires_grad_()
    out = layer(x2)
    if return_bias:
        out, returned = out
        assert returned is layer.bias
        assert returned.numel() == (OUT if bias else 0)
    close(out, expected)
    out.backward(up)
    close(x2.grad, x.grad)
    close(layer.weight.grad, w.grad)
    if bias and not return_bias:
        close(layer.bias.grad, b.grad)


@pytest.mark.parametrize("normalization", ["LayerNorm", "RMSNorm"])
@pytest.mark.parametrize("zero_centered_gamma", [False, True])
def test_layernorm_linear_on_one_rank(normalization, zero_centered_gamma):
    x, up = leaf(S, B, IN, seed=1), leaf(S, B, OUT, seed=4).detach()
    layer = LayerNormLinear(
        IN,
        OUT,
        eps=1e-3,
        normalization=normalization,
        zero_centered_gamma=zero_centered_gamma,
        params_dtype=F64,
    )
    offset = 1 if zero_centered_gamma else 0
    close(layer.layer_norm_weight.detach() + offset, torch.ones(IN, dtype=F64))
    fill(layer, layer_norm_weight=leaf(IN, seed=5), weight=leaf(OUT, IN, seed=6), bias=leaf(OUT, seed=7))
    if normalization == "LayerNorm":
        fill(layer, layer_norm_bias=leaf(IN, seed=8))
    else:
        assert layer.layer_norm_bias is None

    copies = {name: p.detach().clone().requires_grad_() for name, p in layer.named_parameters()}
    x2 = x.detach().clone().requires_grad_()
    normed = naive_norm(x2, copies["layer_norm_weight"] + offset, copies.get("layer_norm_bias"), 1e-3)
    expected = F.linear(normed, copies["weight"], copies["bias"])
    expected.backward(up)
    out = layer(x)
    close(out, expected)
    out.backward(up)
    close(x.grad, x2.grad)
    for name, p in layer.named_parameters():
        close(p.grad, copies[name].grad, name)


def test_layernorm_linear_returns_in_transformer_engines_order():
    x = leaf(S, B, IN)
    layer = LayerNormLinear(IN, OUT, params_dtype=F64)
    assert isinstance(layer(x), torch.Tensor)
    layer.return_layernorm_output = True
    out, normed = layer(x)
    assert out.shape[-1] == OUT
    assert normed.shape[-1] == IN
    layer = LayerNormLinear(IN, OUT, params_dtype=F64, return_bias=True, return_layernorm_output=True)
    out, bias, normed = layer(x)
    assert bias is layer.bias
    close(normed, F.layer_norm(x, (IN,)))
    layer.return_layernorm_output = False
    assert len(layer(x)) == 2


def test_parameters_are_marked_for_megatron():
    def mark(**settings):
        p = Linear(IN, OUT, params_dtype=F64, **settings).weight
        return p.tensor_model_parallel, p.partition_dim, p.partition_stride

    assert mark(parallel_mode="column") == (True, 0, 1)
    assert mark(parallel_mode="row") == (True, 1, 1)
    # One copy per rank: LoRA must see False, and the gradient norm must count it once.
    assert mark(rng_tracker_name="data-parallel-rng") == (False, -1, 1)
    # An expert, which the host has split itself.
    assert mark(rng_tracker_name="expert-parallel-rng") == (True, 0, 1)


def test_initialisation_draws_from_the_named_state():
    tracker = CudaRNGStatesTracker()
    tracker.add("model-parallel-rng", 1)
    tracker.add("other", 2)

    def weight(**settings):
        before = torch.get_rng_state()
        layer = Linear(IN, OUT, get_rng_state_tracker=lambda: tracker, init_method=torch.nn.init.normal_, **settings)
        assert torch.equal(before, torch.get_rng_state())
        assert torch.equal(layer.bias, torch.zeros(OUT))
        return layer.weight.detach()

    expected = torch.empty(OUT, IN).normal_(generator=torch.Generator().manual_seed(1))
    close(weight(), expected)
    expected = torch.empty(OUT, IN).normal_(generator=torch.Generator().manual_seed(2))
    close(weight(rng_tracker_name="other"), expected)


def test_parameters_lie_on_the_device_of_the_host():
    layer = LayerNormLinear(IN, OUT, device="meta")
    assert {p.device.type for p in layer.parameters()} == {"meta"}
    layer = layer.to_empty(device="cpu")
    layer.reset_parameters()
    assert layer.weight.partition_dim == -1
    assert torch.equal(layer.layer_norm_weight, torch.ones(IN))


def test_bf16_stays_close_to_float64():
    x, w = leaf(S, B, IN, seed=1), leaf(OUT, IN, seed=2)
    layer = LayerNormLinear(IN, OUT, normalization="RMSNorm", bias=False, params_dtype=torch.bfloat16)
    fill(layer, weight=w)
    out = layer(x.bfloat16())
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.double(), F.linear(F.rms_norm(x, (IN,)), w), rtol=0.02, atol=0.05)


@pytest.mark.parametrize(
    ("option", "hint"),
    [
        ({"fuse_wgrad_accumulation": True}, "gradient_accumulation_fusion"),
        ({"delay_wgrad_compute": True}, "delay_wgrad_compute"),
        ({"ub_overlap_ag": True}, "tp_comm_overlap"),
        ({"symmetric_ar_type": "two_shot"}, "symmetric_ar_type"),
        ({"parameters_split": ("q", "k")}, "parameters_split"),
    ],
)
def test_options_that_are_refused(option, hint):
    for layer in (Linear, LayerNormLinear):
        with pytest.raises(NotOnCPUBackend, match=hint):
            layer(IN, OUT, **option)


def test_a_split_layer_needs_a_group_and_sizes_that_divide():
    with pytest.raises(ValueError, match="process group"):
        Linear(IN, OUT, parallel_mode="column", tp_size=2)(torch.zeros(S, IN))
    with pytest.raises(ValueError, match="out_features is 11"):
        Linear(IN, 11, parallel_mode="column", tp_size=2)
    with pytest.raises(ValueError, match="parallel_mode"):
        Linear(IN, OUT, parallel_mode="diagonal")
