"""The value and the gradient of a loss, and whether they are those that were expected."""

import torch


def value_and_gradient(loss, student, *args, upstream, **kwargs):
    """The loss per token and the gradient in the student's logits for what comes from above."""
    student = student.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    value = loss(student, *args, **kwargs)
    value.backward(upstream.to(value.dtype))
    return value.detach(), student.grad


def assert_close(actual, expected, tolerance=1e-12, note=""):
    """The largest difference, relative to the largest expected number (or to 1), is within the tolerance."""
    assert actual.shape == expected.shape, f"{note}: {tuple(actual.shape)} and {tuple(expected.shape)}"
    endless = torch.isinf(expected)
    assert torch.equal(actual[endless].double(), expected[endless].double()), note
    actual, expected = actual[~endless], expected[~endless]
    if expected.numel():
        scale = max(1.0, expected.abs().max().item())
        worst = (actual.double() - expected.double()).abs().max().item()
        assert worst <= tolerance * scale, f"{note}: off by {worst:.3g}, the largest number is {scale:.3g}"
