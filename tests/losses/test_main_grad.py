"""Weights whose gradient Megatron's DDP gathers in `main_grad`, with what DDP's hook does to them."""

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from swift_kd_plugin.losses import fused_linear_divergence, token_divergence
from tests.losses.fused_heads import random_inputs
from tests.losses.loss_checks import assert_close
from tests.losses.random_logits import F64

IDS = torch.tensor([0, 3, 3, 12, 5, 1])
HOOK = """
                if param.grad is not None and (
                    not param.grad_added_to_main_grad or getattr(param, 'zero_out_wgrad', False)
                ):
                    param.main_grad.add_(param.grad.data)
                param.grad = None
"""


def test_this_is_what_ddp_does():
    folders = find_spec("megatron").submodule_search_locations
    file = next(Path(folder) / "core/distributed/distributed_data_parallel.py" for folder in folders)
    assert HOOK in file.read_text(encoding="utf-8")


def under_ddp(inputs, **attributes) -> tuple[torch.nn.Parameter, list]:
    """The weight as DDP prepares it, with a hook on the node that stores its gradient; and when it was ready."""
    weight, ready = torch.nn.Parameter(inputs.weight.clone()), []
    weight.main_grad = torch.zeros_like(weight, dtype=torch.promote_types(weight.dtype, torch.float32))
    weight.grad_added_to_main_grad = False
    for name, value in attributes.items():
        setattr(weight, name, value)

    def hook(*_) -> None:
        assert weight.grad is not None  # with overlap_grad_reduce
        if not weight.grad_added_to_main_grad or getattr(weight, "zero_out_wgrad", False):
            weight.main_grad.add_(weight.grad)
        weight.grad = None
        ready.append(weight)

    # Whoever holds no reference to the node loses the hook.
    weight.node = weight.expand_as(weight).grad_fn.next_functions[0][0]
    weight.node.register_hook(hook)
    return weight, ready


def by_logits(hidden, weight, teacher_hidden, teacher_weight):
    return token_divergence(hidden @ weight.T, teacher_hidden @ teacher_weight.T)


def micro_batch(loss, inputs, weight, tied: bool, head_first: bool = False):
    """A scaled loss. What was used last is differentiated first: a tied weight as an embedding is used before the head
    alone, or after it too."""
    if not tied:
        return 3 * loss(inputs.hidden, weight, inputs.teacher_hidden, inputs.teacher_weight).mean()
    hidden = (weight[IDS] + inputs.hidden).tanh()
    total = 3 * loss(hidden, weight, inputs.teacher_hidden, inputs.teacher_weight).mean()
    return total if head_first else total + (weight[IDS] * inputs.hidden).sum()


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
def test_every_use_counts_once(dtype, uses, attributes):
    inputs = random_inputs(6, 13).to(dtype)
    weight, ready = under_ddp(inputs, **attributes)
    for _ in range(2):
        micro_batch(fused_linear_divergence, inputs, weight, **uses).backward()
    assert len(ready) == 2
    assert weight.grad is None
    tolerance = {F64: 1e-12, torch.float32: 1e-6, torch.bfloat16: 0.03}[dtype]
    assert_close(weight.main_grad, expected_gradient(inputs, 2, **uses), tolerance)


def test_a_micro_batch_by_logits_is_not_lost():
    """Between two fused ones, whose gradients do not come by autograd."""
    inputs = random_inputs(6, 13)
    weight, _ = under_ddp(inputs)
    for loss in (fused_linear_divergence, by_logits, fused_linear_divergence):
        micro_batch(loss, inputs, weight, tied=False).backward()
    assert_close(weight.main_grad, expected_gradient(inputs, 3, tied=False), 1e-12)


def test_main_grad_keeps_what_bf16_would_round():
    inputs = random_inputs(6, 13).to(torch.bfloat16)
    weight, _ = under_ddp(inputs)
    micro_batch(fused_linear_divergence, inputs, weight, tied=False).backward()
    assert weight.main_grad.dtype == torch.float32
    assert not torch.equal(weight.main_grad, weight.main_grad.bfloat16().float())


def test_each_tokens_own_upstream():
    inputs = random_inputs(6, 13)
    weight, _ = under_ddp(inputs)
    fused_linear_divergence(inputs.hidden, weight, inputs.teacher_hidden, inputs.teacher_weight).backward(
        inputs.upstream
    )
    copy = inputs.weight.clone().requires_grad_()
    by_logits(inputs.hidden, copy, inputs.teacher_hidden, inputs.teacher_weight).backward(inputs.upstream)
    assert_close(weight.main_grad, copy.grad, 1e-12)
