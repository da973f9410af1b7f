"""A weight in 8 or 4 bits, and back; the 4 bits are bitsandbytes', which is imported when the first weight is made.

n output channels, k inputs of a linear layer, of which tensor parallelism may leave a rank a part. Codes and scales are
the same in every layout: what shares a scale is counted from the start of the whole row.
"""

import math

import torch
from torch import Tensor, nn
from torch import distributed as dist

EIGHT = 8
LARGEST = 127
GROUP = 64  # values of a row that share a scale in 4 bits
KIND = "nf4"
AT_ONCE = 2**18  # values that are quantised together: bounds the memory that this needs


class QuantisedWeight(nn.Module):
    """A weight [n, k], or of E experts [E, n, k], as codes and scales.

    They are parameters, so that whoever moves or counts those of a model finds them.

    Args:
        group: the ranks whose parts [n, k], side by side in their order, make whole rows; None where rows are whole.
    """

    def __init__(self, weight: Tensor, bits: int, group: dist.ProcessGroup | None = None):
        super().__init__()
        self.bits, self.weight_shape, self.dtype = bits, tuple(weight.shape), weight.dtype
        self.group = group
        self.codes: Tensor | None = None
        self.scales: Tensor | None = None

    def take(self, weight: Tensor, device: int | torch.device | None = None) -> None:
        """Quantises a weight of any dtype and device, a part at a time, on `device` (default: its own). All ranks of
        the group call it."""
        codes, scales = quantise(weight.flatten(0, -2), self.bits, self.dtype, device, self.group)
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
        codes, scales = self.codes.data, self.scales.data
        if self.bits != EIGHT:
            made = dequantise(codes, scales, shape, self.dtype, lead=_lead(width, self.group))
        elif place is None:
            made = dequantise(codes, scales, shape, self.dtype)
        else:
            made = dequantise(codes, scales, shape, self.dtype, place[: self.whole_bytes].view(self.dtype).view(shape))
        return made.view(self.weight_shape)


def quantise(
    weight: Tensor,
    bits: int,
    dtype: torch.dtype | None = None,
    device: int | torch.device | None = None,
    group: dist.ProcessGroup | None = None,
) -> tuple[Tensor, Tensor]:
    """Codes and scales of a weight [n, k], which is read as `dtype` and quantised on `device` (default: its own).

    Args:
        group: the ranks that hold the other parts of its rows (see `QuantisedWeight`), all of which call this; one
            all-reduce of at most n * k * ranks / 64 values where a scale is shared with them.

    Returns:
        In 8 bits integers [n, k] and a scale for each output channel [n, 1], of the weight's dtype. In 4 bits two NF4
        codes a byte [n * G * 32] and an fp32 scale for each group of 64 values of a row [n * G], G groups of a row
        being those in which this rank has a value.
    """
    place = {"dtype": dtype or weight.dtype, "device": weight.device if device is None else device}
    ends = _largest_at_ends(weight, bits, group, place) if _shares_scales(weight.shape[1], bits, group) else None
    lead = 0 if bits == EIGHT else _lead(weight.shape[1], group)
    width = weight.shape[1] if bits == EIGHT else _padded(lead + weight.shape[1])
    codes, scales = _room_for(weight.shape[0], width, bits, **place)
    rows = max(1, AT_ONCE // width)
    for start in range(0, len(weight), rows):
        part = weight[start : start + rows]
        on_device = torch.zeros((len(part), width), **place)
        on_device[:, lead : lead + part.shape[1]] = part
        of_ends = None if ends is None else ends[start : start + rows]
        made = _eight(on_device, of_ends) if bits == EIGHT else _four(on_device, lead, part.shape[1], of_ends)
        for store, values in zip((codes, scales), made, strict=True):
            store[start : start + rows] = values.view(len(part), -1)
    return (codes, scales) if bits == EIGHT else (codes.flatten(), scales.flatten())


def _room_for(rows: int, width: int, bits: int, dtype: torch.dtype, device) -> tuple[Tensor, Tensor]:
    if bits == EIGHT:
        codes = torch.empty((rows, width), dtype=torch.int8, device=device)
        return codes, torch.empty((rows, 1), dtype=dtype, device=device)
    codes = torch.empty((rows, width // 2), dtype=torch.uint8, device=device)
    return codes, torch.empty((rows, width // GROUP), dtype=torch.float32, device=device)


def _padded(width: int) -> int:
    return math.ceil(width / GROUP) * GROUP


def _lead(width: int, group: dist.ProcessGroup | None) -> int:
    """How many values of the group of 64 in which this rank's part of a row begins lie before it."""
    return 0 if group is None else dist.get_rank(group) * width % GROUP


def _shares_scales(width: int, bits: int, group: dist.ProcessGroup | None) -> bool:
    return group is not None and dist.get_world_size(group) > 1 and (bits == EIGHT or width % GROUP != 0)


def _largest_at_ends(weight: Tensor, bits: int, group: dist.ProcessGroup, place: dict) -> Tensor:
    """The largest magnitude of what shares a scale with the first value of this rank's part of each row, and with its
    last one, over all ranks [n, 2]."""
    width, ranks, start = weight.shape[1], dist.get_world_size(group), dist.get_rank(group) * weight.shape[1]
    size = width * ranks if bits == EIGHT else GROUP
    ends = [start // size, (start + width - 1) // size]
    largest = torch.zeros((len(weight), math.ceil(width * ranks / size)), dtype=torch.float32, device=place["device"])
    for end in set(ends):
        part = weight[:, max(0, end * size - start) : (end + 1) * size - start]
        largest[:, end] = torch.maximum(part.amax(1), -part.amin(1)).to(place["dtype"])
    dist.all_reduce(largest, dist.ReduceOp.MAX, group=group)
    return largest[:, ends]


def dequantise(
    codes: Tensor,
    scales: Tensor,
    shape: tuple[int, int],
    dtype: torch.dtype,
    place: Tensor | None = None,
    lead: int = 0,
) -> Tensor:
    """The weight [n, k] that codes and scales stand for.

    Args:
        place: the tensor [n, k] into which it is written from 8 bits.
        lead: in 4 bits, how many values of the first group of each row come before it.
    """
    if codes.dtype == torch.int8:
        place = codes.new_empty(shape, dtype=dtype) if place is None else place
        return place.copy_(codes).mul_(scales)
    from bitsandbytes.functional import QuantState, dequantize_4bit

    # Rows of whole groups: bitsandbytes' kernel for CPUs with AVX-512 takes other scales where they are none.
    rows = torch.Size((shape[0], 2 * len(codes) // shape[0]))
    state = QuantState(scales, shape=rows, dtype=dtype, blocksize=GROUP, quant_type=KIND)
    return dequantize_4bit(codes[:, None], state)[:, lead : lead + shape[1]].contiguous()


def _eight(weight: Tensor, ends: Tensor | None) -> tuple[Tensor, Tensor]:
    values = weight.float()
    largest = torch.maximum(values.amax(1), -values.amin(1))[:, None] if ends is None else ends[:, :1]
    factors = (LARGEST / largest).nan_to_num_(posinf=0)
    return values.mul_(factors).round_().to(torch.int8), (largest / LARGEST).to(weight.dtype)


def _four(weight: Tensor, lead: int, width: int, ends: Tensor | None) -> tuple[Tensor, Tensor]:
    from bitsandbytes.functional import quantize_4bit

    if ends is not None:  # the places of the other ranks' values, which are never read, hold the largest of them all
        if lead:
            weight[:, 0] = ends[:, 0]
        if lead + width < weight.shape[1]:
            weight[:, -1] = ends[:, 1]
    codes, state = quantize_4bit(weight.view(-1, GROUP), blocksize=GROUP, quant_type=KIND)
    return codes[:, 0], state.absmax
