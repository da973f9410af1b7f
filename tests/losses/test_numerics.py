"""fp32: how near the losses are to float64 on the same numbers, where the numbers make it hard."""

import pytest
import torch

from swift_kd_plugin.losses import token_divergence, topk_divergence
from tests.losses import reference
from tests.losses.divergence_cases import DENSE_CASES, name_of
from tests.losses.loss_checks import value_and_gradient
from tests.losses.random_logits import random_logits

TOKENS = 8
ULP = torch.finfo(torch.float32).eps  # how far apart probabilities near 1 lie
# A negative power of a probability such as e^-400 is beyond fp32, whatever the formula.
NEGATIVE_POWERS = [("alpha_beta", params) for params in ({"a": -0.5, "b": 1.2}, {"a": 1.5, "b": -0.4})]
NEGATIVE_POWERS.append(("alpha_beta", {"a": 0.5, "b": -0.5}))
FINITE = [case for case in DENSE_CASES if case not in NEGATIVE_POWERS]
# With a zero power an id counts that neither side gives any probability.
BOUNDED = [case for case in FINITE if 0.0 not in case[1].values() or case[0] != "alpha_beta"]


def large_logits(kind: str, vocab: int, seed: int) -> torch.Tensor:
    """Logits between -200 and 200: [TOKENS, vocab]."""
    generator = torch.Generator().manual_seed(seed)
    if kind == "uniform":
        return torch.rand(TOKENS, vocab, generator=generator) * 400 - 200
    return (torch.randn(TOKENS, vocab, generator=generator) * 60).clamp(-200, 200)


def both(student, teacher, case, temperature=1.0):
    """Value and gradient from the package in fp32 and from the reference in float64."""
    name, params = case
    options = {"temperature": temperature, "upstream": torch.ones(len(student)), **params}
    found = value_and_gradient(token_divergence, student, teacher, divergence=name, **options)
    truth = value_and_gradient(reference.dense, student.double(), teacher, name, **options)
    return found, truth


def gradient_parts(student, teacher, case):
    """The size of what a gradient is made of, per token: the slopes in log Q, and their sum over the vocabulary.

    Where one id has all the probability the gradient itself is next to nothing; its parts say what fp32 can do.
    """
    name, params = case
    log_q = student.double().log_softmax(-1).requires_grad_()
    reference.divergence(name, teacher.double().log_softmax(-1), log_q, **params).sum().backward()
    return log_q.grad.abs().amax(-1) + log_q.grad.sum(-1).abs()


@pytest.mark.parametrize("vocab", [1000, 32000])
@pytest.mark.parametrize("kind", ["uniform", "normal"])
@pytest.mark.parametrize("case", FINITE, ids=name_of)
def test_logits_up_to_200(case, kind, vocab):
    student, teacher = large_logits(kind, vocab, 1), large_logits(kind, vocab, 2)
    (value, gradient), (true_value, true_gradient) = both(student, teacher, case)
    assert ((value - true_value).abs() <= 1e-6 * true_value.abs()).all()
    error = (gradient - true_gradient).abs().amax(-1)
    assert (error <= ULP + 2e-6 * gradient_parts(student, teacher, case)).all()


@pytest.mark.parametrize("spread", [0.1, 2.0])
@pytest.mark.parametrize("case", DENSE_CASES, ids=name_of)
def test_usual_logits(case, spread):
    student, teacher = (random_logits(TOKENS, 32000, seed=s, spread=spread, dtype=torch.float32) for s in (1, 2))
    (value, gradient), (true_value, true_gradient) = both(student, teacher, case)
    # Terms of either sign cancel where the sides are close: what is left is exact to fp32's rounding of the terms.
    assert ((value - true_value).abs() <= 1e-7 + 1e-6 * true_value.abs()).all()
    error = (gradient - true_gradient).abs().amax(-1)
    assert (error <= 2e-5 * true_gradient.abs().amax(-1)).all()


@pytest.mark.parametrize("kind", ["uniform", "normal"])
@pytest.mark.parametrize("case", DENSE_CASES, ids=name_of)
def test_equal_sides_are_zero(case, kind):
    name, params = case
    logits = large_logits(kind, 32000, 1)
    value = token_divergence(logits, logits.clone(), divergence=name, **params)
    assert value.abs().max() <= 1e-7


@pytest.mark.parametrize("spread", [0.1, 2.0, 10.0])
@pytest.mark.parametrize("case", DENSE_CASES, ids=name_of)
def test_near_equal_sides_are_not_below_zero(case, spread):
    name, params = case
    # P - Q carries the rounding of both normalisers, half a unit each, which the mixture's weight passes on.
    for vocab in (3, 50, 1000):
        for index, distance in enumerate((1e-6, 1e-5, 1e-4, 1e-3, 1e-2)):
            teacher = random_logits(200, vocab, seed=vocab, spread=spread)
            student = teacher + random_logits(200, vocab, seed=index, spread=distance)
            value = token_divergence(student.float(), teacher.float(), divergence=name, **params)
            assert value.min() >= -1e-7, (vocab, distance)


@pytest.mark.parametrize("offset", [-150.0, 150.0])
@pytest.mark.parametrize("case", DENSE_CASES, ids=name_of)
def test_an_offset_of_all_logits_of_one_side(case, offset):
    student, teacher = (random_logits(TOKENS, 1000, seed=s, spread=3.0, dtype=torch.float32) for s in (1, 2))
    for pair in ((student + offset, teacher), (student, teacher + offset)):
        (value, gradient), (true_value, true_gradient) = both(*pair, case)
        # A difference of logits is rounded as numbers of the offset's size are.
        assert ((value - true_value).abs() <= 5e-6 * true_value.abs()).all()
        error = (gradient - true_gradient).abs().amax(-1)
        assert (error <= ULP + 1e-5 * gradient_parts(*pair, case)).all()


@pytest.mark.parametrize("case", FINITE, ids=name_of)
def test_high_and_low_temperatures(case):
    student, teacher = large_logits("normal", 1000, 1), large_logits("normal", 1000, 2)
    for temperature in (0.7, 20.0):
        (value, gradient), (true_value, _) = both(student, teacher, case, temperature)
        # The logits divided by the temperature are rounded, and e^x makes of that up to |x| as much.
        assert ((value - true_value).abs() <= 5e-6 * true_value.abs()).all()
        assert gradient.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("case", BOUNDED, ids=name_of)
def test_ids_that_both_models_mask_by_the_lowest_number(case, dtype):
    name, params = case
    student, teacher = (random_logits(TOKENS, 40, seed=s, dtype=torch.float32).to(dtype) for s in (1, 2))
    without = token_divergence(student[:, :30], teacher[:, :30], divergence=name, **params)
    student[:, 30:] = teacher[:, 30:] = torch.finfo(dtype).min
    value, gradient = value_and_gradient(
        token_divergence, student, teacher, upstream=torch.ones(TOKENS), divergence=name, **params
    )
    torch.testing.assert_close(value, without, rtol=1e-6, atol=1e-7)
    assert gradient.isfinite().all()


@pytest.mark.parametrize("spread", [1.0, 5.0])
@pytest.mark.parametrize("case", [case for case in DENSE_CASES if case[0] != "tvd"], ids=name_of)
def test_the_tail_of_equal_sides(case, spread):
    """The tail is what fp32 log-probabilities leave of 1; it must not make a difference where there is none."""
    name, params = case
    student = random_logits(100, 1000, spread=spread)
    log_probs, ids = student.log_softmax(-1).float().topk(64, dim=-1)
    value, gradient = value_and_gradient(
        topk_divergence, student.float(), log_probs, ids, upstream=torch.ones(100), divergence=name, **params
    )
    assert value.min() >= -1e-7
    assert value.max() <= 1e-7
    assert gradient.abs().max() <= 1e-4


@pytest.mark.parametrize("case", FINITE, ids=name_of)
def test_top_k_of_large_logits_is_finite(case):
    name, params = case
    student, teacher = large_logits("uniform", 1000, 1), large_logits("uniform", 1000, 2)
    log_probs, ids = teacher.log_softmax(-1).topk(16, dim=-1)
    for tail in ("bucket", "ignore", "renormalise"):
        value, gradient = value_and_gradient(
            topk_divergence, student, log_probs, ids, upstream=torch.ones(TOKENS), divergence=name, tail=tail, **params
        )
        assert value.isfinite().all()
        assert gradient.isfinite().all()
