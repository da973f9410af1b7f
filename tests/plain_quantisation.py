"""What a weight is after it went through 8 or 4 bits, by plain formulas, and whole models with such weights."""

import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

# QLoRA (arXiv 2305.14314), appendix E.
NF4 = torch.tensor(
    [
        *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635),
        *(-0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725),
        *(0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
    ]
)
GROUP = 64


def plain(weight: torch.Tensor, bits: int) -> torch.Tensor:
    """A weight [out, in] as the nearest values that its codes can say."""
    return _eight(weight) if bits == 8 else _four(weight)


def _eight(weight):
    values = weight.float()
    largest = values.abs().amax(1, keepdim=True)
    codes = torch.where(largest > 0, torch.round(values * (127 / largest)), 0)
    return (codes * (largest / 127).to(weight.dtype).float()).to(weight.dtype)


def _four(weight):
    rows, width = weight.shape
    values = torch.nn.functional.pad(weight.float(), (0, -width % GROUP)).view(rows, -1, GROUP)
    scale = values.abs().amax(2, keepdim=True)
    nearest = torch.where(scale > 0, values / scale, 0)[..., None].sub(NF4).abs().argmin(-1)
    return (NF4[nearest] * scale).view(rows, -1)[:, :width].to(weight.dtype)


def quantised_model(model: Path, folder: Path, bits: int, layers: tuple[str, ...] = ("_proj.weight",)) -> Path:
    """A copy of a model whose linear layers with names that end so have the values that `bits` leave of them."""
    shutil.copytree(model, folder)
    weights = load_file(folder / "model.safetensors")
    for name, weight in weights.items():
        if name.endswith(layers):
            weights[name] = plain(weight.bfloat16(), bits)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder
