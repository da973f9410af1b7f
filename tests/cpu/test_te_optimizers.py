"""`FusedAdam` and `FusedSGD` against torch's optimizers over several steps, and the multi-tensor operations."""

import copy

import pytest
import torch

from swift_kd_plugin.cpu.transformer_engine.multi_tensor import (
    multi_tensor_applier,
    multi_tensor_l2norm,
    multi_tensor_scale,
)
from swift_kd_plugin.cpu.transformer_engine.optimizers import FusedAdam, FusedSGD
from swift_kd_plugin.cpu.transformer_engine.unsupported import NotOnCPUBackend
from tests.cpu.reference_layers import close, leaf

SHAPES = [(3, 4), (5,)]
SETTINGS = {"lr": 0.1, "betas": (0.8, 0.95), "eps": 1e-6, "weight_decay": 0.3}


def parameters(dtype=torch.float64):
    return [torch.nn.Parameter(leaf(*shape, seed=i).detach().to(dtype)) for i, shape in enumerate(SHAPES)]


def gradients(step):
    return [leaf(*shape, seed=100 * step + i).detach() for i, shape in enumerate(SHAPES)]


def train(optimizer, params, steps, name="grad"):
    for step in steps:
        for p, g in zip(params, gradients(step), strict=True):
            setattr(p, name, g.to(p.dtype) if name == "grad" else g.float())
        optimizer.step()


@pytest.mark.parametrize(("adam_w_mode", "reference"), [(True, torch.optim.AdamW), (False, torch.optim.Adam)])
@pytest.mark.parametrize("weight_decay", [0.0, 0.3])
def test_adam_steps_as_torch_does(adam_w_mode, reference, weight_decay):
    settings = SETTINGS | {"weight_decay": weight_decay}
    mine, theirs = parameters(), parameters()
    optimizer = FusedAdam(mine, adam_w_mode=adam_w_mode, **settings)
    expected = reference(theirs, **settings)
    for step in range(5):
        train(optimizer, mine, [step])
        train(expected, theirs, [step])
        for a, b in zip(mine, theirs, strict=True):
            close(a, b)
            close(optimizer.state[a]["exp_avg"], expected.state[b]["exp_avg"])
            close(optimizer.state[a]["exp_avg_sq"], expected.state[b]["exp_avg_sq"])
    assert [group["step"] for group in optimizer.param_groups] == [5]
    assert set(optimizer.state[mine[0]]) == {"exp_avg", "exp_avg_sq"}


def test_adam_without_bias_correction():
    p, g = parameters()[0], gradients(0)[0]
    expected = p.detach() - 0.1 * (0.2 * g / ((0.05 * g**2).sqrt() + 1e-6) + 0.3 * p.detach())
    p.grad = g
    FusedAdam([p], bias_correction=False, **SETTINGS).step()
    close(p.detach(), expected)


def test_adam_groups_and_missing_gradients():
    a, b = parameters()
    empty = {"params": []}
    optimizer = FusedAdam([{"params": [a], "lr": 0.5}, empty, {"params": [b], "weight_decay": 0.0}], **SETTINGS)
    a.grad, before = torch.ones_like(a), b.detach().clone()
    optimizer.step()
    assert torch.equal(b, before)
    assert not torch.equal(a, parameters()[0])
    assert [group.get("step") for group in optimizer.param_groups] == [1, None, 1]
    optimizer.zero_grad()
    assert a.grad is None
    assert optimizer.step(lambda: 7.0) == 7.0


def test_adam_keeps_master_weights_of_bf16():
    exact, mine = parameters(torch.float32), parameters(torch.bfloat16)
    with torch.no_grad():
        for a, b in zip(exact, mine, strict=True):
            a.copy_(b)
    precision_aware = {"master_weights": True, "use_decoupled_grad": True, "store_param_remainders": True}
    settings = SETTINGS | {"lr": 1e-3}  # below the resolution of bf16: without a copy in fp32 nothing would move
    optimizer, expected = FusedAdam(mine, **settings, **precision_aware), torch.optim.AdamW(exact, **settings)
    for step in range(5):
        train(optimizer, mine, [step], name="decoupled_grad")
        train(expected, exact, [step])
    for a, b in zip(mine, exact, strict=True):
        torch.testing.assert_close(optimizer.get_unscaled_state(a, "master_param"), b.detach(), rtol=1e-6, atol=1e-7)
        assert torch.equal(a, b.bfloat16())
    optimizer.zero_grad(set_to_none=False)
    assert all(p.decoupled_grad.abs().max() == 0 for p in mine)


def test_adam_states_in_bf16():
    mine, exact = parameters(torch.float32), parameters(torch.float32)
    optimizer = FusedAdam(mine, exp_avg_dtype=torch.bfloat16, exp_avg_sq_dtype=torch.bfloat16, **SETTINGS)
    train(optimizer, mine, range(3))
    train(FusedAdam(exact, **SETTINGS), exact, range(3))
    assert optimizer.state[mine[0]]["exp_avg"].dtype == torch.bfloat16
    assert optimizer.get_unscaled_state(mine[0], "exp_avg").dtype == torch.float32
    for a, b in zip(mine, exact, strict=True):
        torch.testing.assert_close(a, b, rtol=0.02, atol=0.02)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_adam_resumes_from_its_state(dtype):
    settings = SETTINGS | {"master_weights": True, "exp_avg_dtype": torch.bfloat16}
    straight, first = parameters(dtype), parameters(dtype)
    train(FusedAdam(straight, **settings), straight, range(4))
    optimizer = FusedAdam(first, **settings)
    train(optimizer, first, range(2))
    saved = copy.deepcopy(optimizer.state_dict())
    assert {v.dtype for state in saved["state"].values() for v in state.values()} == {torch.float32}
    second = [torch.nn.Parameter(p.detach().clone()) for p in first]
    resumed = FusedAdam(second, **settings)
    resumed.load_state_dict(saved)
    assert resumed.state[second[0]]["exp_avg"].dtype == torch.bfloat16
    train(resumed, second, range(2, 4))
    for a, b in zip(second, straight, strict=True):
        assert torch.equal(a, b)


def test_adam_state_before_the_first_step():
    p = parameters(torch.bfloat16)[0]
    optimizer = FusedAdam([p], master_weights=True)
    optimizer.initialize_state(p)
    assert torch.equal(optimizer.state[p]["master_param"], p.float())
    optimizer.set_scaled_state(p, "exp_avg", torch.ones(3, 4))
    assert torch.equal(optimizer.get_unscaled_state(p, "exp_avg"), torch.ones(3, 4))


@pytest.mark.parametrize(
    ("settings", "hint"),
    [
        ({"amsgrad": True}, "amsgrad"),
        ({"capturable": True}, "capturable"),
        ({"exp_avg_dtype": torch.uint8}, "exp_avg in torch.uint8"),
        ({"exp_avg_sq_dtype": torch.float16}, "exp_avg_sq in torch.float16"),
        ({"master_weights": True, "master_weight_dtype": torch.float16}, "master_param in torch.float16"),
    ],
)
def test_adam_refuses(settings, hint):
    with pytest.raises(NotOnCPUBackend, match=hint):
        FusedAdam(parameters(), **settings)


def test_sgd_steps_as_torch_does():
    settings = {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.2}
    mine, theirs = parameters(), parameters()
    train(FusedSGD(mine, **settings), mine, range(3))
    train(torch.optim.SGD(theirs, **settings), theirs, range(3))
    for a, b in zip(mine, theirs, strict=True):
        close(a, b)
    with pytest.raises(NotOnCPUBackend, match="wd_after_momentum"):
        FusedSGD(mine, lr=0.1, wd_after_momentum=True)


def test_l2norm():
    flag = torch.zeros(1, dtype=torch.int)
    tensors = [x.float() for x in gradients(0)]
    expected = torch.cat([x.flatten() for x in tensors]).norm()
    norm, each = multi_tensor_applier(multi_tensor_l2norm, flag, [tensors], True)
    torch.testing.assert_close(norm, expected.view(1))
    torch.testing.assert_close(each, torch.stack([x.norm() for x in tensors]))
    norm, each = multi_tensor_applier(multi_tensor_l2norm, flag, [[x.bfloat16() for x in tensors]], False)
    assert norm.dtype == torch.float32
    assert each.numel() == 0
    torch.testing.assert_close(norm, expected.view(1), rtol=0.01, atol=0)
    assert multi_tensor_applier(multi_tensor_l2norm, flag, [[]])[0].tolist() == [0.0]


def test_scale_in_place_and_into_another_dtype():
    flag = torch.zeros(1, dtype=torch.int)
    source = torch.tensor([1.1, 0.3, -2.7], dtype=torch.bfloat16)
    target = torch.zeros(3)
    multi_tensor_applier(multi_tensor_scale, flag, [[source], [target]], 1.0 / 3)
    torch.testing.assert_close(target, source.float() / 3)
    multi_tensor_applier(multi_tensor_scale, flag, [[target], [target]], 3.0)
    torch.testing.assert_close(target, source.float())
    assert flag.item() == 0
    multi_tensor_applier(multi_tensor_scale, flag, [[torch.tensor([1.0, float("inf")])], [torch.zeros(2)]], 1.0)
    assert flag.item() == 1
