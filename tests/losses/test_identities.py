"""What must hold of any pair of distributions: definitions as f-divergences, limits, symmetries, coarse-graining."""

import math

import pytest

from swift_kd_plugin.losses import token_divergence, topk_divergence
from tests.losses.divergence_cases import DENSE_CASES, name_of
from tests.losses.loss_checks import assert_close, value_and_gradient
from tests.losses.random_logits import random_logits, random_pair

SEEDS = range(20)


def mixture_f(beta):
    """The f of jsd(beta), from P/M = u / (beta u + 1 - beta) and Q/M = 1 / (beta u + 1 - beta)."""
    return lambda u: beta * u * (u / (beta * u + 1 - beta)).log() - (1 - beta) * (beta * u + 1 - beta).log()


F_DIVERGENCES = [
    ("forward_kl", {}, lambda u: u * u.log()),
    ("reverse_kl", {}, lambda u: -u.log()),
    ("tvd", {}, lambda u: 0.5 * (u - 1).abs()),
    ("jsd", {}, lambda u: 0.5 * (u * u.log() - (u + 1) * ((u + 1) / 2).log())),
    ("jsd", {"beta": 0.2}, mixture_f(0.2)),
    ("jsd", {"beta": 0.7, "scaled": True}, lambda u: mixture_f(0.7)(u) / 0.21),
    ("skew_kl", {"lam": 0.3}, lambda u: u * (u / (0.3 * u + 0.7)).log()),
    ("skew_rkl", {"lam": 0.3}, lambda u: -(0.7 * u + 0.3).log()),
]
F_CASES = [(name, params) for name, params, _ in F_DIVERGENCES]


def random_distributions(seed):
    """Logits [6, V] of two distributions: flat ones, sharp ones, and pairs that are near each other."""
    vocab = 2 + 7 * seed
    student, teacher, upstream = random_pair(6, vocab, seed=seed, spread=0.2 + 0.3 * seed)
    student[3:] = teacher[3:] + 0.1 * student[3:]
    return student, teacher, upstream


def run(student, teacher, upstream, name, loss=token_divergence, **params):
    return value_and_gradient(loss, student, teacher, upstream=upstream, divergence=name, **params)


@pytest.mark.parametrize(("name", "params", "f"), F_DIVERGENCES, ids=[name_of(case) for case in F_CASES])
def test_each_is_its_f_divergence(name, params, f):
    for seed in SEEDS:
        student, teacher, _ = random_distributions(seed)
        p, q = teacher.softmax(-1), student.softmax(-1)
        found = token_divergence(student, teacher, divergence=name, **params)
        assert_close(found, (q * f(p / q)).sum(-1), 1e-12, f"seed {seed}")
        assert found.min() >= -1e-15


@pytest.mark.parametrize("case", DENSE_CASES, ids=name_of)
def test_gradients_add_up_to_zero(case):
    # Adding a number to all of a token's logits changes nothing.
    name, params = case
    for seed in SEEDS:
        value, gradient = run(*random_distributions(seed), name, **params)
        assert (gradient.sum(-1).abs() <= 1e-13 * (1 + value.abs()) * gradient.shape[1]).all()


@pytest.mark.parametrize("case", DENSE_CASES, ids=name_of)
def test_the_order_of_the_vocabulary_does_not_matter(case):
    name, params = case
    student, teacher, upstream = random_pair(6, 40)
    order = random_logits(40, seed=7).argsort()
    value, gradient = run(student, teacher, upstream, name, **params)
    shuffled, shuffled_gradient = run(student[:, order], teacher[:, order], upstream, name, **params)
    assert_close(shuffled, value)
    assert_close(shuffled_gradient, gradient[:, order])


def test_hand_derived_gradient_of_forward_kl():
    student, teacher, upstream = random_pair(6, 40)
    for temperature in (0.5, 1.0, 3.0):
        _, gradient = run(student, teacher, upstream, "forward_kl", temperature=temperature)
        p, q = (teacher / temperature).softmax(-1), (student / temperature).softmax(-1)
        assert_close(gradient, (q - p) / temperature * upstream[:, None], 1e-14)


def test_symmetries():
    student, teacher, _ = random_pair(50, 40)
    ahead, back = (student, teacher), (teacher, student)
    assert_close(token_divergence(*ahead, divergence="tvd"), token_divergence(*back, divergence="tvd"))
    for first, second, params, swapped in (
        ("forward_kl", "reverse_kl", {}, {}),
        ("jsd", "jsd", {"beta": 0.3}, {"beta": 0.7}),
        ("skew_kl", "skew_rkl", {"lam": 0.1}, {"lam": 0.1}),
        ("alpha_beta", "alpha_beta", {"a": 0.2, "b": 0.7}, {"a": 0.7, "b": 0.2}),
        ("alpha_beta", "alpha_beta", {"a": 0.0, "b": 0.7}, {"a": 0.7, "b": 0.0}),
    ):
        found = token_divergence(*ahead, divergence=first, **params)
        assert_close(found, token_divergence(*back, divergence=second, **swapped), 1e-12, first)


def test_bounds():
    student, teacher, _ = random_pair(200, 40, spread=8.0)
    assert token_divergence(student, teacher, divergence="tvd").max() <= 1
    assert token_divergence(student, teacher, divergence="jsd").max() <= math.log(2)
    for lam in (0.1, 0.5):
        for name in ("skew_kl", "skew_rkl"):
            assert token_divergence(student, teacher, divergence=name, lam=lam).max() <= -math.log(lam)


LIMITS = [
    # a divergence near the limit, as a function of the distance, and the divergence it goes to
    ("jsd", lambda d: {"beta": d, "scaled": True}, ("forward_kl", {})),
    ("jsd", lambda d: {"beta": 1 - d, "scaled": True}, ("reverse_kl", {})),
    ("jsd", lambda d: {"beta": d, "scaled": True}, ("jsd", {"beta": 0.0, "scaled": True})),
    ("jsd", lambda d: {"beta": 1 - d, "scaled": True}, ("jsd", {"beta": 1.0, "scaled": True})),
    ("skew_kl", lambda d: {"lam": d}, ("forward_kl", {})),
    ("skew_rkl", lambda d: {"lam": d}, ("reverse_kl", {})),
    ("alpha_beta", lambda d: {"a": 1.0, "b": d}, ("forward_kl", {})),
    ("alpha_beta", lambda d: {"a": d, "b": 1.0}, ("reverse_kl", {})),
    ("alpha_beta", lambda d: {"a": 0.4, "b": d}, ("alpha_beta", {"a": 0.4, "b": 0.0})),
    ("alpha_beta", lambda d: {"a": -d, "b": 0.6}, ("alpha_beta", {"a": 0.0, "b": 0.6})),
    ("alpha_beta", lambda d: {"a": 0.5, "b": d - 0.5}, ("alpha_beta", {"a": 0.5, "b": -0.5})),
    ("alpha_beta", lambda d: {"a": -0.3, "b": 0.3 + d}, ("alpha_beta", {"a": -0.3, "b": 0.3})),
    ("alpha_beta", lambda d: {"a": d, "b": d}, ("alpha_beta", {"a": 0.0, "b": 0.0})),
    ("alpha_beta", lambda d: {"a": d, "b": 0.0}, ("alpha_beta", {"a": 0.0, "b": 0.0})),
    ("alpha_beta", lambda d: {"a": 0.0, "b": -d}, ("alpha_beta", {"a": 0.0, "b": 0.0})),
    ("alpha_beta", lambda d: {"a": d, "b": -d}, ("alpha_beta", {"a": 0.0, "b": 0.0})),
]


@pytest.mark.parametrize(("name", "near", "limit"), LIMITS, ids=[f"{n} {near(0.01)}" for n, near, _ in LIMITS])
def test_limits(name, near, limit):
    student, teacher, upstream = random_pair(6, 40, spread=1.0)
    expected = run(student, teacher, upstream, limit[0], **limit[1])
    for which in (0, 1):
        size = expected[which].abs().max()
        errors = []
        for distance in (1e-2, 1e-3, 1e-4):
            found = run(student, teacher, upstream, name, **near(distance))
            errors.append(((found[which] - expected[which]).abs().max() / size).item())
        assert errors[0] < 0.3
        # In proportion to the distance, not just nearer.
        assert errors[1] < 0.15 * errors[0]
        assert errors[2] < 0.15 * errors[1]


@pytest.mark.parametrize(
    ("params", "limit"), [({"a": 1.0, "b": 0.0}, "forward_kl"), ({"a": 0.0, "b": 1.0}, "reverse_kl")]
)
def test_alpha_beta_has_both_kls(params, limit):
    for seed in SEEDS:
        pair = random_distributions(seed)
        found, expected = run(*pair, "alpha_beta", **params), run(*pair, limit)
        assert_close(found[0], expected[0])
        assert_close(found[1], expected[1])


@pytest.mark.parametrize("case", F_CASES, ids=name_of)
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_coarser_is_never_larger(case, temperature):
    name, params = case
    options = {"divergence": name, "temperature": temperature, **params}
    for seed in SEEDS:
        student, teacher, _ = random_distributions(seed)
        dense = token_divergence(student, teacher, **options)
        finer = dense
        for k in range(teacher.shape[1], 0, -max(1, teacher.shape[1] // 8)):
            log_probs, ids = (teacher / temperature).log_softmax(-1).topk(k, dim=-1)
            coarse = topk_divergence(student, log_probs, ids, teacher_temperature=temperature, **options)
            assert (coarse <= finer + 1e-13).all(), f"seed {seed}, K={k}"
            finer = coarse
        assert (dense - finer).max() > 1e-6 or teacher.shape[1] == 2


@pytest.mark.parametrize("case", DENSE_CASES, ids=name_of)
def test_tokens_are_independent(case):
    name, params = case
    student, teacher, upstream = random_pair(6, 40)
    together = run(student, teacher, upstream, name, **params)
    for token in range(6):
        row = slice(token, token + 1)
        alone = run(student[row], teacher[row], upstream[row], name, **params)
        assert_close(alone[0], together[0][row], 1e-14)
        assert_close(alone[1], together[1][row], 1e-14)
