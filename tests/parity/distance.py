"""How far a layout is from the single-process run: losses, gradients and saved weights."""

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file


@dataclass
class Distance:
    """The worst figures over all steps and parameters.

    Attributes:
        loss: relative difference of the loss of a step.
        grad_norm: relative difference of the gradient norm that the trainer logged.
        norm: relative difference of the norm of one parameter's gradient, and `norm_of` its name.
        cosine: lowest cosine between the gradients of one parameter, and `cosine_of` its name.
        weights: relative difference of one saved weight.
    """

    loss: float
    grad_norm: float
    norm: float
    norm_of: str
    cosine: float
    cosine_of: str
    weights: float


def relative(value: float, truth: float) -> float:
    return abs(value - truth) / max(abs(truth), 1e-12)


def compare(run, truth, gradients: Path, true_gradients: Path) -> Distance:
    """Compares two finished runs and their recorded gradients."""
    assert len(run.losses) == len(truth.losses) > 0, f"{len(run.losses)} steps against {len(truth.losses)}"
    norms, cosines = compare_gradients(load_file(gradients), load_file(true_gradients))
    norm_of, cosine_of = max(norms, key=norms.get), min(cosines, key=cosines.get)
    return Distance(
        loss=max(map(relative, run.losses, truth.losses)),
        grad_norm=max(map(relative, run.grad_norms, truth.grad_norms)),
        norm=norms[norm_of],
        norm_of=norm_of,
        cosine=cosines[cosine_of],
        cosine_of=cosine_of,
        weights=compare_weights(run.checkpoint, truth.checkpoint),
    )


def compare_gradients(found: dict, truth: dict) -> tuple[dict[str, float], dict[str, float]]:
    """Relative difference of norms and cosine per parameter; parameters without a gradient must agree in that."""
    assert found.keys() == truth.keys(), sorted(found.keys() ^ truth.keys())
    norms, cosines = {}, {}
    for name, gradient in truth.items():
        true, other = gradient.double().flatten(), found[name].double().flatten()
        if true.norm() == 0:
            assert other.norm() == 0, f"{name} has a gradient only in the layout"
            continue
        norms[name] = relative(other.norm().item(), true.norm().item())
        cosines[name] = torch.nn.functional.cosine_similarity(other, true, dim=0).item()
    return norms, cosines


def compare_weights(folder: Path, truth: Path) -> float:
    """Highest relative difference over all tensors of the safetensors files of two checkpoint folders."""
    found, true = _load_all(folder), _load_all(truth)
    assert found.keys() == true.keys(), sorted(found.keys() ^ true.keys())
    return max(
        ((found[k].double() - v.double()).norm() / v.double().norm().clamp(min=1e-6)).item() for k, v in true.items()
    )


def _load_all(folder: Path) -> dict[str, torch.Tensor]:
    tensors = {}
    for file in sorted(folder.glob("*.safetensors")):
        tensors.update(load_file(file))
    return tensors
