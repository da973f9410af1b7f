"""Schedules, token policies and the mixed objective, against plain PyTorch in float64."""

import math

import pytest
import torch

from swift_kd_plugin.losses.objective import Objective, Settings, TokenPolicy
from swift_kd_plugin.losses.objective_loss import Tokens, objective_loss
from swift_kd_plugin.losses.policies import top_rho_weights
from swift_kd_plugin.losses.request import TopK
from swift_kd_plugin.losses.schedules import Schedule
from tests.gloo_ranks import run_distributed

N, V = 9, 13


@pytest.fixture
def case():
    torch.manual_seed(3)
    student = torch.randn(N + 3, V, dtype=torch.float64, requires_grad=True)
    teacher = torch.randn(N + 2, V, dtype=torch.float64)
    tokens = Tokens(
        labels=torch.randint(0, V, (N,)),
        student_rows=torch.tensor([0, 1, 2, 4, 5, 6, 8, 9, 10]),
        teacher_rows=torch.arange(1, N + 1),
        sample=torch.tensor([0, 0, 0, 1, 1, 1, 1, 2, 2]),
        ce=torch.tensor([True, False, True] * 3),
        scale=torch.rand(N, dtype=torch.float64),
    )
    return student, teacher, tokens


def naive(student, teacher, tokens, temperature, weight, ce_weight):
    q1 = student[tokens.student_rows].log_softmax(-1)
    q = (student[tokens.student_rows] / temperature).log_softmax(-1)
    p = (teacher[tokens.teacher_rows] / temperature).log_softmax(-1)
    divergence = (p.exp() * (p - q)).sum(-1)
    ce = -q1.gather(1, tokens.labels[:, None])[:, 0] * tokens.ce
    return weight * divergence + ce_weight * ce, p, q


def test_the_mix_is_cross_entropy_and_divergence(case):
    student, teacher, tokens = case
    settings = Settings("forward_kl", {}, 2.0, weight=0.7 * 4, ce_weight=0.3)
    loss, parts = objective_loss(settings, student, teacher, tokens)
    (found,) = torch.autograd.grad(2 * loss, student)
    each, _, _ = naive(student, teacher, tokens, 2.0, 0.7 * 4, 0.3)
    truth = (each * tokens.scale).sum()
    (expected,) = torch.autograd.grad(2 * truth, student)
    torch.testing.assert_close(loss, truth)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(parts["loss"], (each * tokens.scale).detach())
    assert (found[[3, 7, 11]] == 0).all()


def test_in_place_gives_the_same_gradient(case):
    student, teacher, tokens = case
    settings = Settings("jsd", {"beta": 0.3}, 1.5, ce_weight=0.5)
    (expected,) = torch.autograd.grad(objective_loss(settings, student, teacher, tokens)[0], student)
    copy = (student * 1).detach().requires_grad_()
    (found,) = torch.autograd.grad(objective_loss(settings, copy, teacher, tokens, inplace_grad=True)[0], copy)
    torch.testing.assert_close(found, expected)
    assert found.data_ptr() == copy.data_ptr()


def test_a_topk_teacher_has_the_same_objective(case):
    student, teacher, tokens = case
    settings = Settings("reverse_kl", {}, 2.0, weight=1.3, ce_weight=0.4)
    whole = TopK((teacher / 2.0).log_softmax(-1), torch.arange(V).expand(len(teacher), V), 2.0)
    found, _ = objective_loss(settings, student, whole, tokens)
    truth, _ = objective_loss(settings, student, teacher, tokens)
    torch.testing.assert_close(found, truth)
    expected = torch.autograd.grad(truth, student)
    torch.testing.assert_close(torch.autograd.grad(found, student), expected)


def test_teacher_entropy_weights(case):
    student, teacher, tokens = case
    settings = Settings("forward_kl", {}, 1.0, policy=TokenPolicy("teacher_entropy"))
    loss, _ = objective_loss(settings, student, teacher, tokens, statistics=False)
    each, p, _ = naive(student, teacher, tokens, 1.0, 1.0, 0.0)
    weights = 1 + (p.exp() * p).sum(-1) / math.log(V)
    torch.testing.assert_close(loss, (each * weights * tokens.scale).sum())


def test_top_rho_keeps_each_responses_least_sure_tokens(case):
    student, teacher, tokens = case
    settings = Settings("forward_kl", {}, 1.0, policy=TokenPolicy("student_top_rho", rho=0.5))
    loss, parts = objective_loss(settings, student, teacher, tokens, statistics=False)
    each, _, q = naive(student, teacher, tokens, 1.0, 1.0, 0.0)
    entropy = -(q.exp() * q).sum(-1)
    kept = torch.zeros(N)
    for first, last, keep in ((0, 3, 2), (3, 7, 2), (7, 9, 1)):
        kept[first + entropy[first:last].topk(keep).indices] = 1.0
    torch.testing.assert_close(loss, (each * kept * tokens.scale).sum())
    assert ((parts["weight"] > 0) == (kept > 0)).all()


def test_the_clip_bounds_each_vocabulary_entry(case):
    student, teacher, tokens = case
    settings = Objective("forward_kl", policy=TokenPolicy("clip", clip=0.1)).at(0.0)
    loss, _ = objective_loss(settings, student, teacher, tokens)
    _, p, q = naive(student, teacher, tokens, 1.0, 1.0, 0.0)
    truth = ((p.exp() * (p - q)).clamp(max=0.1).sum(-1) * tokens.scale).sum()
    torch.testing.assert_close(loss, truth)
    expected = torch.autograd.grad(truth, student)
    torch.testing.assert_close(torch.autograd.grad(loss, student), expected)


def test_a_rank_without_tokens_has_a_loss_of_zero(case):
    student, teacher, _ = case
    empty = torch.zeros(0, dtype=torch.long)
    tokens = Tokens(empty, empty, empty, empty, empty.bool())
    for name in ("none", "teacher_entropy", "student_top_rho"):
        settings = Settings("jsd", {}, 1.0, ce_weight=0.5, policy=TokenPolicy(name))
        loss, _ = objective_loss(settings, student, teacher, tokens)
        assert loss.item() == 0
        assert (torch.autograd.grad(loss, student)[0] == 0).all()


def spread_rho(rank: int) -> torch.Tensor:
    """Two responses spread unevenly over two ranks, and none of the third on rank 0."""
    entropy = torch.arange(10, dtype=torch.float64) * 7 % 10
    sample = torch.tensor([0, 0, 0, 0, 0, 1, 1, 1, 2, 2])
    mine = torch.tensor([0, 2, 3, 5] if rank == 0 else [1, 4, 6, 7, 8, 9])
    group = torch.distributed.group.WORLD
    return torch.stack([mine.double(), top_rho_weights(entropy[mine], sample[mine], 0.4, group)])


def test_top_rho_does_not_depend_on_the_layout():
    found = torch.cat(run_distributed(spread_rho, 2), dim=1)
    entropy = torch.arange(10, dtype=torch.float64) * 7 % 10
    sample = torch.tensor([0, 0, 0, 0, 0, 1, 1, 1, 2, 2])
    truth = top_rho_weights(entropy, sample, 0.4, None)
    assert truth.sum() == 2 + 1 + 1
    assert (found[1] == truth[found[0].long()]).all()


def test_schedules():
    assert Schedule(2.0).at(0.7) == 2.0
    assert Schedule(5.0, 1.0, "constant").at(0.7) == 5.0
    assert Schedule(5.0, 1.0, "linear").at(0.25) == 4.0
    cosine = Schedule(5.0, 1.0, "cosine")
    assert [cosine.at(x) for x in (0.0, 0.5, 1.0, 1.2)] == pytest.approx([5.0, 3.0, 1.0, 1.0])


def test_an_objective_over_training():
    objective = Objective(
        "jsd",
        {"beta": Schedule(0.0, 1.0, "linear"), "scaled": True},
        temperature=Schedule(4.0, 2.0, "linear"),
        ce_alpha=Schedule(0.0, 0.5, "linear"),
        mixed=True,
        t_squared=True,
    )
    settings = objective.at(0.5)
    assert settings.params == {"scaled": True, "beta": 0.5}
    assert (settings.temperature, settings.ce_weight, settings.weight) == (3.0, 0.25, 0.75 * 9)
    assert objective.moving(1.0) == {"temperature": 2.0, "ce_alpha": 0.5, "beta": 1.0}
    assert Objective("tvd").moving(1.0) == {}


def test_any_number_of_a_divergence_may_be_scheduled():
    objective = Objective("alpha_beta", {"a": Schedule(0.5, 1.0, "linear"), "b": Schedule(0.7)})
    assert objective.at(0.5).params == {"a": 0.75, "b": 0.7}
    assert objective.moving(0.0) == {"a": 0.5}
    assert str(objective) == "alpha_beta(a=0.5 -> 1 (linear), b=0.7) at T=1"
