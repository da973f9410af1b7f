"""Named random states, and activation recomputation that draws the same numbers twice."""

import pytest
import torch
from torch.nn import functional as F

from swift_kd_plugin.cpu.transformer_engine.checkpoint import (
    activation_recompute_forward,
    checkpoint,
    is_fp8_activation_recompute_enabled,
)
from swift_kd_plugin.cpu.transformer_engine.rng import CudaRNGStatesTracker, get_all_rng_states
from swift_kd_plugin.cpu.transformer_engine.unsupported import NotOnCPUBackend
from tests.cpu.reference_layers import leaf


@pytest.fixture
def tracker():
    tracker = CudaRNGStatesTracker()
    tracker.add("model-parallel-rng", 1)
    tracker.add("other", 2)
    return tracker


def draws_of_seed(seed, count):
    return torch.rand(count, generator=torch.Generator().manual_seed(seed))


def test_fork_draws_from_the_named_state_and_restores_the_generator(tracker):
    before = torch.get_rng_state()
    with tracker.fork():
        first = torch.rand(3)
    with tracker.fork("other"):
        other = torch.rand(3)
    with tracker.fork("model-parallel-rng"):
        second = torch.rand(2)
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(torch.cat([first, second]), draws_of_seed(1, 5))
    assert torch.equal(other, draws_of_seed(2, 3))


@pytest.mark.parametrize("inner", ["other", "model-parallel-rng"])
def test_nested_forks_repeat_no_number(tracker, inner):
    before = torch.get_rng_state()
    with tracker.fork():
        a = torch.rand(2)
        with tracker.fork(inner):
            b = torch.rand(2)
        c = torch.rand(2)
    expected = [draws_of_seed(1, 4), draws_of_seed(2, 2)] if inner == "other" else [draws_of_seed(1, 6)]
    drawn = [torch.cat([a, c]), b] if inner == "other" else [torch.cat([a, b, c])]
    assert all(map(torch.equal, drawn, expected))
    assert torch.equal(before, torch.get_rng_state())


def test_an_exception_restores_the_generator(tracker):
    def fails():
        with tracker.fork():
            torch.rand(2)
            raise KeyError

    before = torch.get_rng_state()
    with pytest.raises(KeyError):
        fails()
    assert torch.equal(before, torch.get_rng_state())
    with tracker.fork():
        assert torch.equal(torch.rand(1), draws_of_seed(1, 3)[2:])


def test_states_can_be_taken_and_set(tracker):
    states = tracker.get_states()
    assert get_all_rng_states() is tracker.states_
    with tracker.fork():
        first = torch.rand(3)
    assert not torch.equal(states["model-parallel-rng"], tracker.get_states()["model-parallel-rng"])
    tracker.set_states(states)
    with tracker.fork():
        assert torch.equal(torch.rand(3), first)
    assert not torch.equal(states["model-parallel-rng"], tracker.get_states()["model-parallel-rng"])
    tracker.reset()
    assert tracker.get_states() == {}
    tracker.add("other", 2)


def test_names_and_seeds_are_unique(tracker):
    with pytest.raises(ValueError, match="seed 1"):
        tracker.add("third", 1)
    with pytest.raises(ValueError, match="other"):
        tracker.add("other", 3)
    with pytest.raises(ValueError, match="third"), tracker.fork("third"):
        pass


class Block(torch.nn.Module):
    def __init__(self, tracker):
        super().__init__()
        self.weight = torch.nn.Parameter(leaf(5, 5, seed=3).detach())
        self.tracker = tracker
        self.passes = 0

    def forward(self, x, shift=None, *, factor=1.0):
        self.passes += 1
        x = F.dropout(x @ self.weight, 0.5)
        with self.tracker.fork():
            x = F.dropout(x.tanh(), 0.5)
        return factor * x + (0 if shift is None else shift)


def run(block, x, recompute, *args, **kwargs):
    """Output and gradients of two steps, and the random states behind them."""
    torch.manual_seed(4)
    results = []
    for _ in range(2):
        x.grad = block.weight.grad = None
        if recompute:
            out = checkpoint(block, x, *args, get_rng_state_tracker=lambda: block.tracker, tp_group=None, **kwargs)
        else:
            out = block(x, *args, **kwargs)
        between = F.dropout(out, 0.5)  # the backward pass must not disturb what is drawn outside
        between.sum().backward()
        results += [out.detach(), x.grad, block.weight.grad]
    return [*results, torch.get_rng_state(), *block.tracker.get_states().values()]


def test_checkpoint_recomputes_with_the_same_dropout(tracker):
    start = tracker.get_states()
    plain = run(Block(tracker), leaf(4, 5, seed=1), False, leaf(4, 5, seed=2), factor=3.0)
    tracker.set_states(start)
    block = Block(tracker)
    recomputed = run(block, leaf(4, 5, seed=1), True, leaf(4, 5, seed=2), factor=3.0)
    assert block.passes == 4
    for a, b in zip(recomputed, plain, strict=True):
        assert torch.equal(a, b)


def test_checkpoint_takes_megatrons_call(tracker):
    # Positional None among the arguments, a function, and no tracker.
    x = leaf(4, 5)
    out = checkpoint(
        lambda hidden, mask, context: (F.dropout(hidden, 0.5), context),
        x,
        None,
        None,
        distribute_saved_activations=False,
        get_rng_state_tracker=None,
        tp_group=None,
    )
    out[0].sum().backward()
    assert torch.equal(x.grad != 0, out[0] != 0)
    assert out[1] is None


def test_recompute_without_fp8():
    with activation_recompute_forward(activation_recompute=True, recompute_phase=False):
        assert not is_fp8_activation_recompute_enabled()
    with pytest.raises(NotOnCPUBackend, match="distribute_saved_activations"):
        checkpoint(torch.sin, leaf(2), distribute_saved_activations=True)
