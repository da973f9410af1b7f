"""How the losses behave as functions of autograd: second backward, in place, without gradient, no tokens, gradcheck."""

import pytest
import torch

from swift_kd_plugin.losses import token_divergence, topk_divergence
from tests.losses.divergence_cases import DENSE_CASES, ONE_OF_EACH, name_of
from tests.losses.loss_checks import assert_close, value_and_gradient
from tests.losses.random_logits import F64, random_logits, random_pair, random_topk

TAILS = ("bucket", "ignore", "renormalise")


def dense_loss(tokens, vocab, **options):
    """A function of the student's logits, and such logits."""
    student, teacher, _ = random_pair(tokens, vocab)
    return (lambda logits, **more: token_divergence(logits, teacher, **options, **more)), student


def topk_loss(tokens, vocab, k=3, **options):
    student = random_logits(tokens, vocab, seed=1)
    log_probs, ids = random_topk(tokens, vocab, k)
    return (lambda logits, **more: topk_divergence(logits, log_probs, ids, **options, **more)), student


LOSSES = pytest.mark.parametrize("make", [dense_loss, topk_loss])
SMOOTH = [case for case in DENSE_CASES if "fixed_weights" not in case[1]]


@LOSSES
@pytest.mark.parametrize("case", SMOOTH, ids=name_of)
def test_gradcheck(make, case):
    name, params = case
    loss, student = make(3, 6, divergence=name, temperature=1.3, chunk_size=2, **params)
    assert torch.autograd.gradcheck(loss, (student.requires_grad_(),))


@pytest.mark.parametrize("tail", TAILS)
@pytest.mark.parametrize("case", ONE_OF_EACH, ids=name_of)
def test_gradcheck_of_tails(case, tail):
    name, params = case
    for teacher_temperature in (1.0, 2.0):
        loss, student = topk_loss(
            3, 6, divergence=name, temperature=2.0, teacher_temperature=teacher_temperature, tail=tail, **params
        )
        assert torch.autograd.gradcheck(loss, (student.requires_grad_(),))


def test_weights_of_adaptive_kl_are_constants_on_request():
    _, student = dense_loss(3, 6)
    gradients = []
    for fixed_weights in (False, True):
        loss, _ = dense_loss(3, 6, divergence="adaptive_kl", fixed_weights=fixed_weights)
        gradients.append(value_and_gradient(loss, student, upstream=torch.ones(3, dtype=F64))[1])
    assert (gradients[0] - gradients[1]).abs().max() > 1e-3


@LOSSES
@pytest.mark.parametrize("case", ONE_OF_EACH, ids=name_of)
def test_no_tokens(make, case):
    name, params = case
    loss, student = make(0, 9, divergence=name, **params)
    student.requires_grad_()
    value = loss(student)
    assert value.shape == (0,)
    value.sum().backward()
    assert student.grad.shape == (0, 9)


@LOSSES
@pytest.mark.parametrize("case", ONE_OF_EACH, ids=name_of)
def test_a_second_backward_gives_the_same(make, case):
    name, params = case
    loss, student = make(5, 9, divergence=name, temperature=2.0, chunk_size=2, **params)
    student.requires_grad_()
    upstream = random_logits(5, seed=9)
    value = loss(student)
    gradients = [torch.autograd.grad(value, student, upstream, retain_graph=True)[0] for _ in range(3)]
    assert torch.equal(gradients[0], gradients[1])
    assert torch.equal(gradients[0], gradients[2])
    doubled = torch.autograd.grad(value, student, 2 * upstream)[0]
    assert torch.equal(doubled, 2 * gradients[0])


@LOSSES
def test_gradients_add_up_over_backwards(make):
    loss, student = make(5, 9)
    student.requires_grad_()
    value = loss(student).sum()
    value.backward(retain_graph=True)
    once = student.grad.clone()
    value.backward()
    assert_close(student.grad, 2 * once, 1e-15)


@LOSSES
@pytest.mark.parametrize("case", ONE_OF_EACH, ids=name_of)
@pytest.mark.parametrize("dtype", [F64, torch.float32, torch.bfloat16])
def test_in_place_gradient_lies_where_the_logits_were(make, case, dtype):
    name, params = case
    loss, values = make(5, 9, divergence=name, chunk_size=2, **params)
    leaf = values.to(dtype).requires_grad_()
    upstream = random_logits(5, seed=9)
    expected, gradient = value_and_gradient(loss, leaf, upstream=upstream)

    logits = leaf * 1
    value = loss(logits, inplace_grad=True)
    assert torch.equal(value, expected)
    found = torch.autograd.grad(value, logits, upstream.to(value.dtype), retain_graph=True)[0]
    assert found.data_ptr() == logits.data_ptr()
    assert torch.equal(found, gradient)
    with pytest.raises(RuntimeError, match=r"backward was called twice .* inplace_grad=False"):
        torch.autograd.grad(value, logits, upstream.to(value.dtype))


def test_in_place_gradient_goes_through_a_linear_layer():
    loss, _ = dense_loss(5, 9)
    weight, hidden = random_logits(9, 4, seed=5).requires_grad_(), random_logits(5, 4, seed=6).requires_grad_()
    gradients = []
    for inplace_grad in (False, True):
        value = loss(hidden @ weight.t(), inplace_grad=inplace_grad)
        gradients.append(torch.autograd.grad(value.sum(), (weight, hidden)))
    assert all(torch.equal(*both) for both in zip(*gradients, strict=True))


def test_autograd_notices_that_lost_logits_are_needed():
    loss, student = dense_loss(5, 9)
    logits = student.requires_grad_().exp()  # exp keeps its output for backward
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss(logits, inplace_grad=True).sum().backward()


@LOSSES
def test_without_gradient_nothing_is_kept_or_written(make):
    loss, student = make(5, 9)
    before = student.clone()
    for inplace_grad in (False, True):
        constant = loss(student, inplace_grad=inplace_grad)
        student.requires_grad_()
        with torch.no_grad():
            unwatched = loss(student, inplace_grad=inplace_grad)
        student.requires_grad_(False)
        assert constant.grad_fn is None
        assert unwatched.grad_fn is None
        assert torch.equal(constant, unwatched)
        assert torch.equal(student, before)


def test_the_teacher_gets_no_gradient():
    student, teacher, _ = random_pair(5, 9)
    log_probs, ids = random_topk(5, 9, 3)
    for tensor in (student, teacher, log_probs):
        tensor.requires_grad_()
    token_divergence(student, teacher).sum().backward()
    topk_divergence(student, log_probs, ids).sum().backward()
    assert teacher.grad is None
    assert log_probs.grad is None
    assert student.grad is not None


@LOSSES
def test_a_gradient_of_the_gradient_is_refused(make):
    loss, student = make(5, 9)
    upstream = torch.ones(5, dtype=F64, requires_grad=True)
    gradient = torch.autograd.grad(loss(student.requires_grad_()), student, upstream, create_graph=True)[0]
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


@LOSSES
def test_tokens_that_count_nothing_have_no_gradient(make):
    loss, student = make(6, 9)
    upstream = torch.tensor([1.0, 0.0, 0.0, 2.0, 0.0, 1.0], dtype=F64)
    _, gradient = value_and_gradient(loss, student, upstream=upstream)
    assert not gradient[upstream == 0].any()
    assert gradient[upstream != 0].any(-1).all()
    _, nothing = value_and_gradient(loss, student, upstream=torch.zeros(6, dtype=F64))
    assert not nothing.any()


def test_a_teacher_that_asks_for_a_gradient_gets_none():
    student, teacher = torch.randn(3, 5), torch.randn(3, 5, requires_grad=True)
    assert not token_divergence(student, teacher).requires_grad
    student.requires_grad_()
    token_divergence(student, teacher).sum().backward()
    assert student.grad is not None
    assert teacher.grad is None
