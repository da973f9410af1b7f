"""Agreement with TRL and stock ms-swift where these are right: whole vocabularies on one rank, in full precision."""

import warnings

import pytest
import torch

from swift_kd_plugin.losses import token_divergence, topk_divergence
from tests.losses.loss_checks import assert_close
from tests.losses.random_logits import F64, random_logits, random_pair, random_topk

BETAS = [0.0, 0.1, 0.5, 0.9, 1.0]
TOKENS, VOCAB = 12, 101
PRECISIONS = pytest.mark.parametrize(("dtype", "tolerance"), [(F64, 1e-12), (torch.float32, 5e-6)])


def logits(dtype):
    student, teacher, _ = random_pair(TOKENS, VOCAB, dtype=dtype)
    return student.requires_grad_(), teacher


def assert_same_sum(ours, theirs, student, tolerance):
    """Both sums and both gradients, for an upstream gradient of 2."""
    gradients = [torch.autograd.grad(2 * total, student)[0] for total in (ours, theirs)]
    assert_close(ours, theirs, tolerance)
    assert_close(*gradients, tolerance)


@pytest.fixture(scope="module")
def trl_loss():
    with warnings.catch_warnings(action="ignore"):
        from trl.experimental.gkd import GKDTrainer

    return GKDTrainer.generalized_jsd_loss


@pytest.fixture(scope="module")
def stock():
    from swift.rlhf_trainers import gkd_loss

    return gkd_loss


@PRECISIONS
@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize("beta", BETAS)
def test_trl(trl_loss, beta, temperature, dtype, tolerance):
    student, teacher = logits(dtype)
    ours = token_divergence(student, teacher, divergence="jsd", beta=beta, temperature=temperature).sum()
    theirs = trl_loss(student[None], teacher[None], beta=beta, temperature=temperature, reduction="sum")
    assert_same_sum(ours, theirs, student, tolerance)


@PRECISIONS
@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize("beta", BETAS)
def test_stock_on_one_rank(stock, beta, temperature, dtype, tolerance):
    student, teacher = logits(dtype)
    ours = token_divergence(student, teacher, divergence="jsd", beta=beta, temperature=temperature)
    theirs = stock.jsd_loss(student / temperature, teacher / temperature, beta)
    assert_same_sum(ours.sum(), theirs, student, tolerance)

    labels = torch.arange(TOKENS)[None]
    labels[:, ::3] = -100
    output = stock.TeacherOutput(full_logits=teacher[None], labels=labels)
    theirs, count = stock.gkd_loss(student[None], output, labels, beta, temperature)
    counted = labels[0] != -100
    assert count == counted.sum()
    ours = token_divergence(student, teacher, divergence="jsd", beta=beta, temperature=temperature)[counted]
    assert_same_sum(ours.sum(), theirs, student, tolerance)


@PRECISIONS
@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize("beta", BETAS)
def test_stock_top_k_is_our_renormalised_tail(stock, beta, temperature, dtype, tolerance):
    student = random_logits(TOKENS, VOCAB, seed=1, dtype=dtype).requires_grad_()
    log_probs, ids = random_topk(TOKENS, VOCAB, 7, dtype=dtype)
    labels = torch.arange(TOKENS)[None]
    output = stock.TeacherOutput(topk_logprobs=log_probs[None], topk_indices=ids[None], labels=labels)
    theirs, _ = stock.gkd_loss(student[None], output, labels, beta, temperature)
    ours = topk_divergence(
        student, log_probs, ids, divergence="jsd", beta=beta, temperature=temperature, tail="renormalise"
    )
    assert_same_sum(ours.sum(), theirs, student, tolerance)
