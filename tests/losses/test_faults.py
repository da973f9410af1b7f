"""The numbers of stock ms-swift that are wrong, beside ours: each test shows both."""

from itertools import pairwise

import pytest
import torch
from torch import distributed as dist

from swift_kd_plugin.losses import token_divergence, topk_divergence
from tests.gloo_ranks import run_distributed
from tests.losses.loss_checks import assert_close
from tests.losses.random_logits import random_logits, random_pair

TOKENS = 16


@pytest.fixture(scope="module")
def stock():
    """The module of stock ms-swift that computes the loss."""
    from swift.rlhf_trainers import gkd_loss

    return gkd_loss


def stock_loss(module, student, teacher, beta, temperature=1.0, **functions):
    """Loss per token of stock ms-swift, for logits [T, V] or for a teacher's largest logits and their ids [T, K]."""
    labels = torch.zeros(1, len(student), dtype=torch.long)
    if isinstance(teacher, tuple):
        output = module.TeacherOutput(topk_logprobs=teacher[0][None], topk_indices=teacher[1][None], labels=labels)
    else:
        output = module.TeacherOutput(full_logits=teacher[None], labels=labels)
    total, count = module.gkd_loss(student[None], output, labels, beta, temperature, **functions)
    return total / count


def norm_of_gradient(loss, student) -> float:
    return torch.autograd.grad(loss, student)[0].norm().item()


# Fault 3: shards of unequal padded vocabularies are compared by position.

STUDENT_VOCAB, TEACHER_VOCAB = 1000, 1064


def same_model_twice():
    """Logits of one model whose embedding was padded to two sizes; padding is improbable."""
    logits = random_logits(TOKENS, STUDENT_VOCAB, seed=1, dtype=torch.float32)
    padding = torch.full((TOKENS, TEACHER_VOCAB - STUDENT_VOCAB), -30.0)
    return logits, torch.cat([logits, padding], 1)


def compare_shards(rank: int) -> dict[float, tuple[float, float, float]]:
    """By beta: stock's loss per token on two ranks, our largest loss of a token and our largest gradient."""
    from swift_kd_plugin.cpu import switch_on

    switch_on()
    from megatron.core import parallel_state
    from swift.megatron.trainers.vocab_parallel_utils import vocab_parallel_kl_div, vocab_parallel_log_softmax
    from swift.rlhf_trainers import gkd_loss as stock

    parallel_state.initialize_model_parallel(tensor_model_parallel_size=2)
    functions = {"log_softmax_fn": vocab_parallel_log_softmax, "kl_div_fn": vocab_parallel_kl_div}
    student, teacher = (logits.chunk(2, dim=1)[rank].clone() for logits in same_model_twice())
    found = {}
    for beta in (0.0, 0.5, 1.0):
        theirs = stock_loss(stock, student, teacher, beta, **functions).item()
        leaf = student.clone().requires_grad_()
        ours = token_divergence(
            leaf, teacher, divergence="jsd", beta=beta, group=dist.group.WORLD,
            student_vocab=STUDENT_VOCAB, teacher_vocab=TEACHER_VOCAB,
        )  # fmt: skip
        ours.sum().backward()
        found[beta] = theirs, ours.abs().max().item(), leaf.grad.abs().max().item()
    return found


def test_fault_3_unequal_padded_vocabularies_under_tp(stock):
    student, teacher = same_model_twice()
    ranks = run_distributed(compare_shards, 2)
    for beta in (0.0, 0.5, 1.0):
        assert abs(stock_loss(stock, student.clone(), teacher.clone(), beta)) < 1e-5  # on one rank stock is right
        for rank in ranks:
            theirs, ours, gradient = rank[beta]
            assert theirs > 0.1
            assert ours < 1e-7
            assert gradient < 1e-6


# Fault 4: both sides are renormalised over the teacher's top-k, so that what the student does elsewhere is not seen.


def student_elsewhere(k):
    """A teacher, and a student who follows him within his k largest but has 99.99 % of the probability outside."""
    teacher = random_logits(TOKENS, 1000, seed=2, spread=6.0)
    ids = teacher.topk(k, dim=-1).indices
    inside = torch.zeros_like(teacher, dtype=torch.bool).scatter_(1, ids, True)
    student = teacher.masked_fill(inside, -torch.inf).log_softmax(-1) + torch.tensor(0.9999).log()
    listed = teacher.gather(1, ids).log_softmax(-1) + torch.tensor(0.0001).log()
    return student.scatter(1, ids, listed).requires_grad_(), teacher


def test_fault_4_top_k_without_its_tail(stock):
    student, teacher = student_elsewhere(k=64)
    values, ids = teacher.topk(64, dim=-1)
    theirs = stock_loss(stock, student, (values, ids), beta=0.0)
    truth = token_divergence(student, teacher).mean()
    ours = topk_divergence(student, teacher.log_softmax(-1).gather(1, ids), ids).mean()
    assert truth > 8
    assert_close(ours, truth, 1e-3)
    assert abs(theirs) < 1e-6
    assert norm_of_gradient(theirs, student) < 1e-6
    assert norm_of_gradient(ours, student) > 0.99 * norm_of_gradient(truth, student) > 0.1


@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0])
def test_fault_4_one_entry_is_always_zero(stock, beta):
    student, teacher, _ = random_pair(TOKENS, 1000)
    student.requires_grad_()
    values, ids = teacher.topk(1, dim=-1)
    theirs = stock_loss(stock, student, (values, ids), beta)
    log_probs = teacher.log_softmax(-1).gather(1, ids)
    ours = topk_divergence(student, log_probs, ids, divergence="jsd", beta=beta)
    assert theirs == 0
    assert norm_of_gradient(theirs, student) == 0
    assert ours.min() > 1e-3
    assert norm_of_gradient(ours.sum(), student) > 1e-3


# Fault 8: the teacher's log-softmax runs in the precision of his logits.


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=["bf16 student", "fp32 student"])
def test_fault_8_teacher_in_bf16(stock, dtype):
    teacher = random_logits(64, 1000, seed=2, spread=3.0, dtype=torch.bfloat16)
    student = teacher.to(dtype)
    theirs = stock_loss(stock, student.float(), teacher, beta=0.5)
    ours = token_divergence(student, teacher, divergence="jsd", beta=0.5)
    assert theirs < -1e-4
    assert not ours.any()


# Fault 9: the size of the loss jumps with beta.


def test_fault_9_scale_jumps_with_beta(stock):
    student, teacher, _ = random_pair(64, 1000, spread=3.0)
    student.requires_grad_()

    def ours(beta, scaled):
        return token_divergence(student, teacher, divergence="jsd", beta=beta, scaled=scaled).mean()

    betas = (0.0, 0.1, 0.9, 1.0)
    theirs = [stock_loss(stock, student, teacher, beta) for beta in betas]
    assert theirs[0] > 8 * theirs[1]
    assert theirs[3] > 8 * theirs[2]
    assert norm_of_gradient(theirs[0], student) > 8 * norm_of_gradient(theirs[1], student)
    for beta, loss in zip(betas, theirs, strict=True):
        assert_close(ours(beta, scaled=False), loss)
    # As near as one likes to beta = 0 or 1 stock's loss stays next to nothing; ours goes over into the KLs.
    for end, near in ((0.0, 1e-6), (1.0, 1 - 1e-6)):
        edge, beside = ours(end, scaled=True), ours(near, scaled=True)
        assert_close(beside, edge, 1e-2)
        assert norm_of_gradient(beside, student) > 0.9 * norm_of_gradient(edge, student)
        assert stock_loss(stock, student, teacher, near) < 1e-4 * stock_loss(stock, student, teacher, end)


# Fault 10, of the losses: without the square of the temperature the gradient shrinks with it.


@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0])
def test_fault_10_temperature_squared_keeps_the_size_of_the_gradient(stock, beta):
    student, teacher, _ = random_pair(64, 200, spread=1.0)
    student.requires_grad_()
    temperatures = (4.0, 8.0, 16.0, 32.0)
    theirs = [norm_of_gradient(stock_loss(stock, student, teacher, beta, t), student) for t in temperatures]
    ours = []
    for t in temperatures:
        divergence = token_divergence(student, teacher, divergence="jsd", beta=beta, temperature=t).mean()
        ours.append(norm_of_gradient(t**2 * divergence, student))
    assert max(ours) < 1.15 * min(ours)
    for before, after in pairwise(theirs):
        assert 3.5 < before / after < 4.5
