"""Token ids that both sides rule out with a logit of -inf add nothing, as if they did not exist."""

import pytest
import torch

from swift_kd_plugin.losses import DIVERGENCES, token_divergence

RULED_OUT = 5
KEPT = [column for column in range(20) if column != RULED_OUT]


@pytest.mark.parametrize("name", DIVERGENCES)
def test_an_id_that_both_sides_rule_out_adds_nothing(name):
    torch.manual_seed(0)
    student, teacher = torch.randn(3, 20), torch.randn(3, 20)
    student[:, RULED_OUT] = teacher[:, RULED_OUT] = -torch.inf
    student.requires_grad_()
    found = token_divergence(student, teacher, divergence=name)
    truth = token_divergence(student[:, KEPT], teacher[:, KEPT], divergence=name)
    torch.testing.assert_close(found, truth)
    gradients = [torch.autograd.grad(value.sum(), student)[0] for value in (found, truth)]
    torch.testing.assert_close(*gradients)
    assert (gradients[0][:, RULED_OUT] == 0).all()


def test_an_id_that_only_the_teacher_rules_out_counts_for_the_student():
    student, teacher = torch.zeros(1, 2), torch.tensor([[0.0, -torch.inf]])
    assert token_divergence(student, teacher).item() == pytest.approx(0.6931472)
    assert token_divergence(student, teacher, divergence="reverse_kl").item() == torch.inf
