"""Megatron-Core's own layers, and mcore-bridge's LoRA, on top of these modules: two ranks, against plain PyTorch."""

from torch import distributed as dist

from tests.gloo_ranks import run_distributed

HIDDEN, WIDE, ROWS, BATCH = 8, 12, 4, 3


def run_checks(rank):
    from swift_kd_plugin.cpu import switch_on

    switch_on()
    from megatron.core import parallel_state
    from megatron.core.tensor_parallel.random import model_parallel_cuda_manual_seed

    for settings, checks in (
        ({"tensor_model_parallel_size": 2}, [check_mlp, check_marks, check_lora, check_rng_tracker]),
        ({"expert_model_parallel_size": 2}, [check_experts]),
    ):
        parallel_state.initialize_model_parallel(**settings)
        model_parallel_cuda_manual_seed(7)
        for check in checks:
            check(rank)
        parallel_state.destroy_model_parallel()


def config(**settings):
    import torch
    from megatron.core.transformer import TransformerConfig

    defaults = {
        "num_layers": 1,
        "hidden_size": HIDDEN,
        "num_attention_heads": 2,
        "params_dtype": torch.float64,
        "gradient_accumulation_fusion": False,
        "normalization": "RMSNorm",
        "add_bias_linear": False,
    }
    return TransformerConfig(**defaults | settings)


def tp_config(sequence_parallel):
    return config(tensor_model_parallel_size=2, sequence_parallel=sequence_parallel)


def column_layer(settings, **options):
    from megatron.core.extensions.transformer_engine import TELayerNormColumnParallelLinear

    return TELayerNormColumnParallelLinear(
        HIDDEN,
        WIDE,
        config=settings,
        init_method=settings.init_method,
        gather_output=False,
        bias=False,
        skip_bias_add=False,
        is_expert=False,
        tp_comm_buffer_name="fc1",
        **options,
    )


def row_layer(settings):
    from megatron.core.extensions.transformer_engine import TERowParallelLinear

    return TERowParallelLinear(
        WIDE,
        HIDDEN,
        config=settings,
        init_method=settings.init_method,
        bias=True,
        input_is_parallel=True,
        skip_bias_add=True,
        is_expert=False,
        tp_comm_buffer_name="fc2",
    )


def whole(parameter, dim):
    """The parameter of both ranks, as a leaf."""
    import torch

    parts = [torch.empty_like(parameter) for _ in range(2)]
    dist.all_gather(parts, parameter.detach())
    assert not torch.equal(*parts)  # each rank drew its own part
    return torch.cat(parts, dim=dim).requires_grad_()


def check_mlp(rank):
    import torch
    from torch.nn import functional as F

    from tests.cpu.reference_layers import close, leaf

    for sequence_parallel in (False, True):
        settings = tp_config(sequence_parallel)
        first, second = column_layer(settings), row_layer(settings)
        x, up = leaf(ROWS, BATCH, HIDDEN, seed=1), leaf(ROWS, BATCH, HIDDEN, seed=2).detach()
        w1, w2 = whole(first.weight, 0), whole(second.weight, 1)
        g = first.layer_norm_weight.detach().clone().requires_grad_()
        expected = F.linear(F.silu(F.linear(F.rms_norm(x, (HIDDEN,), g, 1e-5), w1)), w2)
        expected.backward(up)

        mine = (lambda t: t.chunk(2)[rank]) if sequence_parallel else (lambda t: t)
        x2 = mine(x.detach()).clone().requires_grad_()
        hidden, bias = first(x2)
        assert bias is None
        out, bias = second(F.silu(hidden))
        assert bias is second.bias
        close(out, mine(expected))
        out.backward(mine(up))
        close(x2.grad, mine(x.grad))
        close(first.weight.grad, w1.grad.chunk(2, 0)[rank])
        close(second.weight.grad, w2.grad.chunk(2, 1)[rank])
        if sequence_parallel:
            dist.all_reduce(first.layer_norm_weight.grad)
        close(first.layer_norm_weight.grad, g.grad)
        assert torch.equal(second.bias, torch.zeros(HIDDEN, dtype=torch.float64))


def duplicated_layer(settings):
    from megatron.core.extensions.transformer_engine import TELinear

    return TELinear(
        HIDDEN,
        WIDE,
        parallel_mode="duplicated",
        config=settings,
        init_method=settings.init_method,
        bias=False,
        skip_bias_add=False,
        skip_weight_param_allocation=False,
    )


def check_marks(rank):
    import torch
    from mcore_bridge.tuners.lora import _is_replicated_base
    from megatron.core.tensor_parallel import param_is_not_tensor_parallel_duplicate

    settings = tp_config(True)
    copy, split = duplicated_layer(settings), row_layer(settings)
    assert _is_replicated_base(copy)
    assert not _is_replicated_base(split)
    # The gradient norm counts a copy once, and each part once.
    assert param_is_not_tensor_parallel_duplicate(copy.weight) is (rank == 0)
    assert param_is_not_tensor_parallel_duplicate(split.weight)
    parts = [torch.empty_like(copy.weight) for _ in range(2)]
    dist.all_gather(parts, copy.weight.detach())
    assert torch.equal(*parts)


def check_lora(rank):
    import torch
    from mcore_bridge.tuners.lora import LoraParallelLinear
    from torch.nn import functional as F

    from tests.cpu.reference_layers import close, leaf

    for sequence_parallel in (False, True):
        base = column_layer(tp_config(sequence_parallel))
        lora = LoraParallelLinear(base, "default", r=2, lora_alpha=4)
        a, b = lora.lora_A["default"].weight, lora.lora_B["default"].weight
        with torch.no_grad():
            a.copy_(leaf(2, HIDDEN, seed=5))
            b.copy_(leaf(WIDE, 2, seed=6).chunk(2)[rank])
        assert a.tensor_model_parallel is False
        assert b.tensor_model_parallel is True
        x, up = leaf(ROWS, BATCH, HIDDEN, seed=1), leaf(ROWS, BATCH, WIDE, seed=2).detach()
        w, whole_a, whole_b = whole(base.weight, 0), a.detach().clone().requires_grad_(), whole(b, 0)
        normed = F.rms_norm(x, (HIDDEN,), base.layer_norm_weight.detach(), 1e-5)
        expected = F.linear(normed, w) + 2 * F.linear(F.linear(normed, whole_a), whole_b)
        expected.backward(up)

        mine = (lambda t: t.chunk(2)[rank]) if sequence_parallel else (lambda t: t)
        x2 = mine(x.detach()).clone().requires_grad_()
        out, _ = lora(x2)
        close(out, expected.chunk(2, -1)[rank])
        out.backward(up.chunk(2, -1)[rank])
        close(x2.grad, mine(x.grad))
        close(b.grad, whole_b.grad.chunk(2)[rank])
        if sequence_parallel:
            assert a.sequence_parallel
            dist.all_reduce(a.grad)
        close(a.grad, whole_a.grad)


def check_rng_tracker(rank):
    import torch
    from megatron.core.extensions.transformer_engine import TECudaRNGStatesTracker, te_checkpoint
    from torch.nn import functional as F

    tracker = TECudaRNGStatesTracker()
    assert not tracker.is_initialized()
    tracker.add("model-parallel-rng", 3)
    assert tracker.is_initialized()

    def dropped(x, mask):
        with tracker.fork():
            return F.dropout(x, 0.5)

    x = torch.ones(50, requires_grad=True)
    out = te_checkpoint(dropped, False, lambda: tracker, None, x, None)
    out.sum().backward()
    assert torch.equal(x.grad, out)


def check_experts(rank):
    import torch
    from megatron.core.extensions.transformer_engine import TEColumnParallelGroupedLinear
    from torch.nn import functional as F

    from tests.cpu.reference_layers import close, leaf

    settings = config(num_moe_experts=4, expert_model_parallel_size=2, moe_grouped_gemm=True)
    layer = {"config": settings, "init_method": settings.init_method, "is_expert": True}
    experts = TEColumnParallelGroupedLinear(2, HIDDEN, WIDE, bias=False, skip_bias_add=False, **layer)
    whole(experts.weight1, 0)  # asserts that the ranks' experts differ
    assert all(p.tensor_model_parallel and not p.allreduce for p in experts.parameters())
    x = leaf(5, HIDDEN)
    out, bias = experts(x, torch.tensor([5, 0]))
    assert bias is None
    close(out, F.linear(x, experts.weight0))
    out.sum().backward()
    assert torch.equal(experts.weight1.grad, torch.zeros_like(experts.weight1))
    experts.load_state_dict(experts.state_dict())
    sharded = experts.sharded_state_dict("fc1.", metadata={"dp_cp_group": dist.new_subgroups(1)[0]})
    assert {"fc1.weight0", "fc1.weight1", "fc1._extra_state", "fc1._extra_state1"} == set(sharded)


def test_on_two_ranks():
    run_distributed(run_checks, 2)
