"""Sizes, random float64 leaves and plain PyTorch, which the layers of the CPU backend are compared with."""

import torch

S, B, IN, OUT = 4, 3, 6, 10
F64 = torch.float64


def leaf(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, dtype=F64, generator=generator).requires_grad_()


def close(actual, expected, name=""):
    torch.testing.assert_close(actual, expected, rtol=1e-11, atol=1e-11, msg=lambda text: f"{name}: {text}")


def fill(layer, **values):
    with torch.no_grad():
        for name, value in values.items():
            getattr(layer, name).copy_(torch.as_tensor(value))


def naive_norm(x, weight, bias, eps):
    if bias is None:
        return x / (x.square().mean(-1, keepdim=True) + eps).sqrt() * weight
    centered = x - x.mean(-1, keepdim=True)
    return centered / (centered.square().mean(-1, keepdim=True) + eps).sqrt() * weight + bias
