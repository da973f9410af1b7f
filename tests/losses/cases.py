"""What the tests of the losses share: the divergences that they try, random logits, and how results are compared."""

import torch

F64 = torch.float64

DENSE_CASES = [
    ("forward_kl", {}),
    ("reverse_kl", {}),
    ("jsd", {}),
    ("jsd", {"beta": 0.0}),
    ("jsd", {"beta": 1.0}),
    ("jsd", {"beta": 0.1}),
    ("jsd", {"beta": 0.9, "scaled": True}),
    ("skew_kl", {}),
    ("skew_kl", {"lam": 0.0}),
    ("skew_kl", {"lam": 0.8}),
    ("skew_rkl", {}),
    ("skew_rkl", {"lam": 0.0}),
    ("skew_rkl", {"lam": 0.8}),
    ("adaptive_kl", {}),
    ("adaptive_kl", {"head_mass": 0.0}),
    ("adaptive_kl", {"head_mass": 0.9}),
    ("adaptive_kl", {"fixed_weights": True}),
    ("tvd", {}),
    ("alpha_beta", {}),
    ("alpha_beta", {"a": 1.0, "b": 1.0}),
    ("alpha_beta", {"a": -0.5, "b": 1.2}),
    ("alpha_beta", {"a": 1.5, "b": -0.4}),
    ("alpha_beta", {"a": 0.4, "b": 0.0}),
    ("alpha_beta", {"a": 0.0, "b": 0.6}),
    ("alpha_beta", {"a": 0.5, "b": -0.5}),
    ("alpha_beta", {"a": 0.0, "b": 0.0}),
]
# One of each kind, for tests that are about something else than the formulas.
ONE_OF_EACH = [
    ("forward_kl", {}),
    ("reverse_kl", {}),
    ("jsd", {"beta": 0.3}),
    ("skew_kl", {}),
    ("skew_rkl", {}),
    ("adaptive_kl", {}),
    ("tvd", {}),
    ("alpha_beta", {}),
]
CLIPPED_CASES = [
    (name, {**params, "clip": clip}) for name, params in DENSE_CASES if name != "adaptive_kl" for clip in (0.003, 0.05)
]


def name_of(case) -> str:
    """The id of a case in pytest's output."""
    name, params = case
    return " ".join([name, *(f"{key}={value}" for key, value in params.items())])


def random_logits(*shape, seed=0, spread=2.0, dtype=F64):
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(*shape, dtype=F64, generator=generator) * spread).to(dtype)


def random_pair(tokens, vocab, seed=0, spread=2.0, dtype=F64):
    """Student and teacher logits [tokens, vocab] and a gradient from above [tokens]."""
    student = random_logits(tokens, vocab, seed=10 * seed + 1, spread=spread, dtype=dtype)
    teacher = random_logits(tokens, vocab, seed=10 * seed + 2, spread=spread, dtype=dtype)
    return student, teacher, random_logits(tokens, seed=10 * seed + 3, spread=1.0)


def random_topk(tokens, vocab, k, seed=0, temperature=1.0, dtype=F64):
    """Log-probabilities and ids [tokens, k] of a random teacher's k most probable tokens, in no order."""
    teacher = random_logits(tokens, vocab, seed=10 * seed + 2)
    log_probs, ids = (teacher / temperature).log_softmax(-1).topk(k, dim=-1)
    order = random_logits(tokens, k, seed=10 * seed + 4).argsort(-1)
    return log_probs.gather(1, order).to(dtype), ids.gather(1, order)


def value_and_gradient(loss, student, *args, upstream, **kwargs):
    """The loss per token and the gradient in the student's logits for what comes from above."""
    student = student.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    value = loss(student, *args, **kwargs)
    value.backward(upstream.to(value.dtype))
    return value.detach(), student.grad


def assert_close(actual, expected, tolerance=1e-12, note=""):
    """The largest difference, relative to the largest expected number (or to 1), is within the tolerance."""
    assert actual.shape == expected.shape, f"{note}: {tuple(actual.shape)} and {tuple(expected.shape)}"
    if expected.numel():
        scale = max(1.0, expected.abs().max().item())
        worst = (actual.double() - expected.double()).abs().max().item()
        assert worst <= tolerance * scale, f"{note}: off by {worst:.3g}, the largest number is {scale:.3g}"
