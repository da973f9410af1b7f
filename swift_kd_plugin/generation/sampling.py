"""The next token from logits, drawn by each response's own seed, whatever is written beside it."""

import torch
from torch import Tensor
from transformers import MinPLogitsWarper, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from swift_kd_plugin.generation.engines import Sampling


def choose(logits: Tensor, sampling: Sampling, drawn: Tensor | None) -> Tensor:
    """One token for each row: [n, V] -> [n].

    Args:
        logits: float32, with repetitions already penalised.
        drawn: uniform numbers in [0, 1), float64 [n]; not read at temperature 0.
    """
    if not sampling.temperature:
        return logits.argmax(-1)
    for warper in _warpers(sampling):
        logits = warper(None, logits)
    mass = logits.double().softmax(-1).cumsum(-1)
    # The first token whose cumulative mass is above the draw; it has a probability of its own.
    chosen = torch.searchsorted(mass, drawn[:, None] * mass[:, -1:], right=True)
    return chosen[:, 0].clamp(max=logits.shape[-1] - 1)


def draws(seed: int | None, number: int, steps: int) -> Tensor:
    """Uniform numbers [steps] in float64, the same for the same seed and sample number whatever `steps` is."""
    generator = torch.Generator()
    if seed is None:
        generator.manual_seed(int(torch.randint(2**62, ())))
    else:
        generator.manual_seed(seed + number)
    return torch.rand(steps, generator=generator, dtype=torch.float64)


def _warpers(sampling: Sampling) -> list:
    """In vLLM's order."""
    return [
        *([TemperatureLogitsWarper(float(sampling.temperature))] if sampling.temperature != 1 else []),
        *([MinPLogitsWarper(sampling.min_p)] if sampling.min_p else []),
        *([TopKLogitsWarper(sampling.top_k)] if sampling.top_k > 0 else []),
        *([TopPLogitsWarper(sampling.top_p)] if sampling.top_p < 1 else []),
    ]
