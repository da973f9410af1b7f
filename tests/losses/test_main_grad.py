"""Weights whose gradient Megatron's DDP gathers in `main_grad`: with the hook that DDP itself hangs on a weight."""

from types import SimpleNamespace

import pytest
import torch

from swift_kd_plugin.losses import fused_linear_divergence, token_divergence
from tests.losses.cases import F64, assert_close
from tests.losses.fused import random_inputs

IDS = torch.tensor([0, 3, 3, 12, 5, 1])


@pytest.fixture
def hang_hook(cpu_backend):
    """DDP's own hook on the node that stores a weight's gradient; returns how often the weight was ready."""
    from megatron.core.distributed import DistributedDataParallel

    def hang(weight: torch.nn.Parameter, **attributes) -> list:
        ready = []
        group = SimpleNamespace(register_grad_ready=lambda *_: ready.append(weight))
        ddp = SimpleNamespace(
            param_to_bucket_group={weight: group},
            ddp_config=SimpleNamespace(overlap_grad_reduce=True),
            force_all_reduce=False,
        )
        weight.main_grad = torch.zeros(weight.shape, dtype=torch.promote_types(weight.dtype, torch.float32))
        weight.grad_added_to_main_grad = False
        for name, value in attributes.items():
            setattr(weight, name, value)
        # As DDP does: an expanded view's parent is the node that stores the gradient.
        weight.node = weight.expand_as(weight).grad_fn.next_functions[0][0]
        weight.node.register_hook(DistributedDataParallel._make_backward_post_hook(ddp, weight))
        return ready

    return hang


def by_logits(hidden, weight, teacher_hidden, teacher_weight):
    return token_divergence(hidden @ weight.T, teacher_hidden @ teacher_weight.T)


def micro_batch(loss, inputs, weight, tied: bool, head_first: bool = False):
    """A scaled loss; `head_first` gives the head's use of a tied weight the later place in the graph, whose backward
    then runs first."""
    if not tied:
        return 3 * loss(inputs.hidden, weight, inputs.teacher_hidden, inputs.teacher_weight).mean()
    hidden = (weight[IDS] + inputs.hidden).tanh()
    total = 3 * loss(hidden, weight, inputs.teacher_hidden, inputs.teacher_weight).mean()
    if head_first:
        return total
    # A use of the weight whose backward runs before that of the head.
    return total + (weight[IDS] * inputs.hidden).sum() * torch.ones((), dtype=weight.dtype)


def expected_gradient(inputs, batches: int, **options):
    weight = inputs.weight.double().requires_grad_()
    for _ in range(batches):
        micro_batch(by_logits, inputs.to(F64), weight, **options).backward()
    return weight.grad


@pytest.mark.parametrize("attributes", [{}, {"zero_out_wgrad": True}], ids=["", "zero_out_wgrad"])
@pytest.mark.parametrize(
    "uses", [{"tied": False}, {"tied": True, "head_first": True}, {"tied": True, "head_first": False}], ids=str
)
@pytest.mark.parametrize("dtype", [F64, torch.float32, torch.bfloat16])
def test_every_use_counts_once(hang_hook, dtype, uses, attributes):
    inputs = random_inputs(6, 13).to(dtype)
    weight = torch.nn.Parameter(inputs.weight.clone())
    ready = hang_hook(weight, **attributes)
    for _ in range(2):
        micro_batch(fused_linear_divergence, inputs, weight, **uses).backward()
    assert len(ready) == 2
    assert weight.grad is None
    tolerance = {F64: 1e-12, torch.float32: 1e-6, torch.bfloat16: 0.03}[dtype]
    assert_close(weight.main_grad, expected_gradient(inputs, 2, **uses), tolerance)


def test_a_micro_batch_by_logits_is_not_lost(hang_hook):
    """Between two fused ones, whose gradients do not come by autograd."""
    inputs = random_inputs(6, 13)
    weight = torch.nn.Parameter(inputs.weight.clone())
    hang_hook(weight)
    for loss in (fused_linear_divergence, by_logits, fused_linear_divergence):
        micro_batch(loss, inputs, weight, tied=False).backward()
    assert_close(weight.main_grad, expected_gradient(inputs, 3, tied=False), 1e-12)


def test_main_grad_keeps_what_bf16_would_round(hang_hook):
    inputs = random_inputs(6, 13).to(torch.bfloat16)
    weight = torch.nn.Parameter(inputs.weight.clone())
    hang_hook(weight)
    micro_batch(fused_linear_divergence, inputs, weight, tied=False).backward()
    assert weight.main_grad.dtype == torch.float32
    assert not torch.equal(weight.main_grad, weight.main_grad.bfloat16().float())


def test_each_tokens_own_upstream(hang_hook):
    inputs = random_inputs(6, 13)
    weight = torch.nn.Parameter(inputs.weight.clone())
    hang_hook(weight)
    fused_linear_divergence(inputs.hidden, weight, inputs.teacher_hidden, inputs.teacher_weight).backward(
        inputs.upstream
    )
    copy = inputs.weight.clone().requires_grad_()
    by_logits(inputs.hidden, copy, inputs.teacher_hidden, inputs.teacher_weight).backward(inputs.upstream)
    assert_close(weight.main_grad, copy.grad, 1e-12)
