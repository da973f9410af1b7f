"""Weights in 8 and 4 bits against the plain formulas."""

import pytest
import torch
from torch import distributed as dist
from torch.utils._python_dispatch import TorchDispatchMode

from swift_kd_plugin.teacher import quantised_weights
from swift_kd_plugin.teacher.quantised_weights import QuantisedWeight, dequantise, quantise
from tests.gloo_ranks import run_distributed
from tests.plain_quantisation import plain

SHAPES = [(64, 128), (70, 50), (3, 7), (200, 192), (1, 64), (40, 96), (256, 80), (16, 1120)]


def restored(weight, bits):
    return dequantise(*quantise(weight, bits), tuple(weight.shape), weight.dtype)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("bits", [8, 4])
def test_a_weight_comes_back_as_the_formulas_say(shape, bits, dtype, monkeypatch):
    monkeypatch.setattr(quantised_weights, "AT_ONCE", 64 * 64)  # in parts
    torch.manual_seed(0)
    weight = (torch.randn(shape) * torch.rand(shape[0], 1)).to(torch.bfloat16).to(dtype)
    torch.testing.assert_close(restored(weight, bits), plain(weight, bits), rtol=1e-6, atol=0)


@pytest.mark.parametrize("bits", [8, 4])
def test_a_weight_is_written_into_a_larger_place(bits):
    weight = torch.randn(3, 64, 50).bfloat16()
    quantised = QuantisedWeight(weight, bits)
    quantised.take(weight)
    place = torch.full((quantised.whole_bytes + 10,), 7, dtype=torch.uint8)
    made = quantised.whole(place)
    assert torch.equal(made, quantised.whole())
    assert (made.data_ptr() == place.data_ptr()) == (bits == 8)
    assert place[-10:].eq(7).all()


class LargestFloats(TorchDispatchMode):
    """Values of the largest floating-point tensor that is made within it beside those that share a tensor's memory."""

    def __init__(self, given: torch.Tensor):
        super().__init__()
        self.given, self.values = given.data_ptr(), 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        for tensor in made if isinstance(made, (list, tuple)) else [made]:
            floats = isinstance(tensor, torch.Tensor) and tensor.is_floating_point()
            if floats and tensor.untyped_storage().data_ptr() != self.given:
                self.values = max(self.values, tensor.numel())
        return made


@pytest.mark.parametrize("bits", [8, 4])
def test_a_weight_is_quantised_in_parts(bits):
    weight = torch.randn(2048, 1024).bfloat16()
    with LargestFloats(weight) as largest:
        quantise(weight, bits)
    assert largest.values == quantised_weights.AT_ONCE == weight.numel() // 8


@pytest.mark.parametrize("bits", [8, 4])
def test_zeros_stay_zeros(bits):
    weight = torch.randn(128, 64).bfloat16()
    weight[3] = 0
    assert restored(weight, bits)[3].eq(0).all()


@pytest.mark.parametrize(("bits", "share"), [(8, 0.53), (4, 0.30)])
def test_it_takes_its_share_of_the_memory(bits, share):
    weight = torch.randn(512, 256).bfloat16()
    held = sum(part.numel() * part.element_size() for part in quantise(weight, bits))
    assert held <= share * weight.numel() * 2


def make_wide(width):
    torch.manual_seed(0)
    return (torch.randn(24, width) * torch.rand(24, width) ** 4).bfloat16()


def shard_of(rank, width, bits, dim):
    """What a rank makes of its part of a weight whose rows or columns are split, and its codes in 8 bits."""
    part = make_wide(width).chunk(dist.get_world_size(), dim)[rank]
    quantised = QuantisedWeight(part, bits, dist.group.WORLD if dim else None)
    quantised.take(part.float())  # as files may have it
    return quantised.whole(), quantised.codes.data


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize(("ranks", "width"), [(2, 256), (2, 96), (4, 96), (4, 400)])
def test_every_layout_keeps_the_same_weight(ranks, width, bits):
    """Ranks that hold parts of a row share its scales: in 4 bits also where a part ends within a group of 64."""
    whole = QuantisedWeight(make_wide(width), bits)
    whole.take(make_wide(width))
    for dim in (0, 1):
        parts = run_distributed(shard_of, ranks, width, bits, dim)
        assert torch.equal(torch.cat([weight for weight, _ in parts], dim), whole.whole())
        if bits == 8:
            assert torch.equal(torch.cat([codes for _, codes in parts], dim), whole.codes)


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("largest", [1e5, 3e38, 1e-30, 1e-40])
def test_rows_of_any_magnitude_stay_finite(largest, bits):
    """65,504 is the largest number of fp16."""
    weight = torch.randn(8, 64).bfloat16()
    weight[3] *= largest / weight[3].abs().max()
    made = restored(weight, bits)
    torch.testing.assert_close(made, plain(weight, bits), rtol=1e-6, atol=1e-38)
    assert made.isfinite().all()
