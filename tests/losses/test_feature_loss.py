"""The loss in the middle of a network is the one that plain PyTorch would add at its end, in value and gradient."""

import pytest
import torch
from torch import distributed as dist
from torch.nn import functional as F

from swift_kd_plugin.losses import feature_loss
from swift_kd_plugin.losses.feature_loss import FEATURE_LOSSES, FeatureTask, match_features, measure_features
from tests.gloo_ranks import run_distributed
from tests.losses.loss_checks import assert_close

LENGTH, BATCH, HIDDEN, WIDE = 6, 2, 5, 7
F64 = torch.float64
PLAIN = {
    "mse": lambda student, teacher: F.mse_loss(student, teacher, reduction="none").mean(-1),
    "cosine": lambda student, teacher: 1 - F.cosine_similarity(student, teacher, dim=-1),
    "smooth_l1": lambda student, teacher: F.smooth_l1_loss(student, teacher, reduction="none").mean(-1),
}


class Case:
    """A network of two layers with random numbers: hidden states [s, b, H], a projection, and the rows that count."""

    def __init__(self, projected: bool, tokens: int = 7):
        draw = torch.Generator().manual_seed(5)
        self.before = 2 * torch.randn(LENGTH, BATCH, HIDDEN, dtype=F64, generator=draw)
        self.projection = torch.randn(WIDE, HIDDEN, dtype=F64, generator=draw) if projected else None
        self.above = torch.randn(LENGTH, BATCH, HIDDEN, dtype=F64, generator=draw)
        self.rows = torch.randperm(LENGTH * BATCH, generator=draw)[:tokens]
        self.teacher = torch.randn(tokens, WIDE if projected else HIDDEN, dtype=F64, generator=draw)
        self.weights = torch.rand(tokens, dtype=F64, generator=draw)
        for tensor in (self.before, self.projection):
            if tensor is not None:
                tensor.requires_grad_()

    def gradients(self) -> list[torch.Tensor]:
        return [tensor.grad for tensor in (self.before, self.projection) if tensor is not None]

    def task(self, loss: str, losses: list, scale: float = 1.0) -> FeatureTask:
        return FeatureTask(loss, self.rows, lambda: self.teacher, self.weights, lambda: scale, losses.append)


def plain(case: Case, loss: str, scale: float = 1.0):
    hidden = case.before.tanh()
    student = hidden.flatten(0, 1)[case.rows]
    values = PLAIN[loss](student if case.projection is None else student @ case.projection.T, case.teacher)
    ((hidden * case.above).sum() + scale * (case.weights * values).sum()).backward()
    return values.detach(), case.gradients()


@pytest.mark.parametrize("chunk", [3, 2048])
@pytest.mark.parametrize("projected", [False, True])
@pytest.mark.parametrize("loss", FEATURE_LOSSES)
def test_value_and_gradients_are_those_of_autograd(loss, projected, chunk, monkeypatch):
    monkeypatch.setattr(feature_loss, "CHUNK", chunk)
    losses: list[torch.Tensor] = []
    case = Case(projected)
    hidden = match_features(case.before.tanh(), case.projection, case.task(loss, losses, scale=3.0))
    assert not losses
    (hidden * case.above).sum().backward()
    values, gradients = plain(Case(projected), loss, scale=3.0)
    assert_close(losses[0], values, 1e-10, loss)
    for ours, truth in zip(case.gradients(), gradients, strict=True):
        assert_close(ours, truth, 1e-10, loss)

    measure_features(case.before.tanh(), case.projection, case.task(loss, losses))
    assert_close(losses[1], values, 1e-10, loss)


@pytest.mark.parametrize("loss", FEATURE_LOSSES)
def test_no_token_gives_gradients_all_the_same(loss):
    """A projection must have a gradient in each backward pass: Megatron waits for all of them."""
    losses: list[torch.Tensor] = []
    case = Case(projected=True, tokens=0)
    match_features(case.before.tanh(), case.projection, case.task(loss, losses)).sum().backward()
    assert losses[0].shape == (0,)
    assert torch.equal(case.projection.grad, torch.zeros(WIDE, HIDDEN, dtype=F64))


def test_frozen_sides_get_none():
    case, losses = Case(projected=True), []
    case.before.requires_grad_(False)
    match_features(case.before.tanh(), case.projection, case.task("mse", losses)).sum().backward()
    assert case.before.grad is None
    assert case.projection.grad is not None


def test_half_precision_is_computed_in_float32():
    case, losses = Case(projected=False), []
    hidden = case.before.detach().bfloat16().requires_grad_()
    match_features(hidden, None, case.task("mse", losses)).sum().backward()
    exact = PLAIN["mse"](hidden.detach().double().flatten(0, 1)[case.rows], case.teacher)
    assert hidden.grad.dtype == torch.bfloat16
    torch.testing.assert_close(losses[0], exact, check_dtype=False, rtol=1e-6, atol=1e-6)


def shard_on_rank(rank: int, loss: str) -> tuple:
    """Sequence parallelism: each rank has half of the positions, and Megatron sums the projection's gradients."""
    case, losses = Case(projected=True), []
    half = LENGTH // 2
    mine = case.rows // BATCH // half == rank
    rows = case.rows[mine] - rank * half * BATCH
    task = FeatureTask(loss, rows, lambda: case.teacher[mine], case.weights[mine], lambda: 1.0, losses.append)
    before = case.before.detach()[rank * half : (rank + 1) * half].clone().requires_grad_()
    hidden = match_features(before.tanh(), case.projection, task)
    (hidden * case.above[rank * half : (rank + 1) * half]).sum().backward()
    gradient = case.projection.grad
    dist.all_reduce(gradient)
    return before.grad, gradient, mine, losses[0]


@pytest.mark.parametrize("loss", FEATURE_LOSSES)
def test_two_ranks_of_sequence_parallelism(loss):
    case = Case(projected=True)
    values, (of_before, of_projection) = plain(case, loss)
    ranks = run_distributed(shard_on_rank, 2, loss)
    assert_close(torch.cat([before for before, *_ in ranks]), of_before, 1e-10, loss)
    for _, projection, mine, losses in ranks:
        assert_close(projection, of_projection, 1e-10, loss)
        assert_close(losses, values[mine], 1e-10, loss)
