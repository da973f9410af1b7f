"""A weight in 8 or 4 bits, and back. The quantisation is bitsandbytes', which is imported when the first one is made.

n output channels, k inputs of a linear layer.
"""

import math

import torch
from torch import Tensor, nn

EIGHT = 8
GROUP = 64  # values that share a scale in 4 bits
KIND = "nf4"
AT_ONCE = 2**18  # values that are quantised together: bounds the memory that this needs


class QuantisedWeight(nn.Module):
    """A weight [n, k], or of E experts [E, n, k], as codes and scales.

    They are parameters, so that whoever moves or counts those of a model finds them.
    """

    def __init__(self, weight: Tensor, bits: int):
        super().__init__()
        self.bits, self.weight_shape, self.dtype = bits, tuple(weight.shape), weight.dtype
        self.codes: Tensor | None = None
        self.scales: Tensor | None = None

    def take(self, weight: Tensor, device: int | torch.device | None = None) -> None:
        """Quantises a weight of any dtype and device, a part at a time, on `device` (default: its own)."""
        codes, scales = quantise(weight.flatten(0, -2), self.bits, self.dtype, device)
        self.codes, self.scales = (nn.Parameter(part, requires_grad=False) for part in (codes, scales))

    @property
    def whole_bytes(self) -> int:
        return math.prod(self.weight_shape) * self.dtype.itemsize

    def whole(self, place: Tensor | None = None) -> Tensor:
        """The weight as it was.

        Args:
            place: bytes into which it is written from 8 bits. From 4 bits it is always new: bitsandbytes has no kernel
                for a CPU that writes into one.
        """
        *rows, width = self.weight_shape
        shape = (math.prod(rows), width)
        if place is not None and self.bits == EIGHT:
            place = place[: self.whole_bytes].view(self.dtype).view(shape)
        else:
            place = None
        return dequantise(self.codes.data, self.scales.data, shape, self.dtype, place).view(self.weight_shape)


def quantise(
    weight: Tensor, bits: int, dtype: torch.dtype | None = None, device: int | torch.device | None = None
) -> tuple[Tensor, Tensor]:
    """Codes and scales of a weight [n, k], which is read as `dtype` and quantised on `device` (default: its own).

    Returns:
        In 8 bits integers [n, k] and a scale for each output channel [n, 1], of the weight's dtype; in 4 bits two NF4
        codes a byte [n * k / 2] and an fp32 scale for each 64 values, which lie in one row where k is a multiple of 64.
    """
    place = {"dtype": dtype or weight.dtype, "device": weight.device if device is None else device}
    codes, scales = _room_for(weight.shape, bits, **place)
    rows = max(1, AT_ONCE // (GROUP * weight.shape[1])) * GROUP
    at = 0, 0
    for part in weight.split(rows):
        made = (_eight if bits == EIGHT else _four)(torch.empty(part.shape, **place).copy_(part))
        ends = at[0] + len(made[0]), at[1] + len(made[1])
        codes[at[0] : ends[0]], scales[at[1] : ends[1]] = made
        at = ends
    return codes, scales


def _room_for(shape: torch.Size, bits: int, dtype: torch.dtype, device) -> tuple[Tensor, Tensor]:
    count = shape.numel()
    if bits == EIGHT:
        codes = torch.empty(shape, dtype=torch.int8, device=device)
        return codes, torch.empty((shape[0], 1), dtype=dtype, device=device)
    codes = torch.empty(math.ceil(count / 2), dtype=torch.uint8, device=device)
    return codes, torch.empty(math.ceil(count / GROUP), dtype=torch.float32, device=device)


def dequantise(
    codes: Tensor, scales: Tensor, shape: tuple[int, int], dtype: torch.dtype, place: Tensor | None = None
) -> Tensor:
    """The weight [n, k] that codes and scales stand for; of 8 bits in `place`, if it is given."""
    if codes.dtype == torch.int8:
        place = codes.new_empty(shape, dtype=dtype) if place is None else place
        return place.copy_(codes).mul_(scales)
    from bitsandbytes.functional import QuantState, dequantize_4bit

    state = QuantState(scales, shape=torch.Size(shape), dtype=dtype, blocksize=GROUP, quant_type=KIND)
    return dequantize_4bit(codes[:, None], state)


def _eight(weight: Tensor) -> tuple[Tensor, Tensor]:
    from bitsandbytes.functional import int8_vectorwise_quant

    codes, largest, _ = int8_vectorwise_quant(weight.half())  # the only dtype that it takes on CUDA
    return codes, (largest / 127).to(weight.dtype)[:, None]


def _four(weight: Tensor) -> tuple[Tensor, Tensor]:
    from bitsandbytes.functional import quantize_4bit

    codes, state = quantize_4bit(weight.contiguous(), blocksize=GROUP, quant_type=KIND)
    return codes[:, 0], state.absmax
