"""Activation recomputation that draws the same random numbers the second time."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch.utils.checkpoint import checkpoint as torch_checkpoint

from swift_kd_plugin.cpu.transformer_engine.rng import device_state, set_device_state
from swift_kd_plugin.cpu.transformer_engine.unsupported import refuse


def checkpoint(
    function: Callable,
    *args,
    distribute_saved_activations: bool = False,
    get_rng_state_tracker: Callable | None = None,
    tp_group=None,
    use_reentrant: bool | None = None,
    **kwargs,
):
    """function(*args, **kwargs), whose inner activations are computed again in the backward pass.

    The random states of the CPU, the device and the tracker are those of the first pass during the recomputation, and
    what they were before it afterwards. `tp_group` and `use_reentrant` change nothing here.

    Raises:
        NotOnCPUBackend: distribute_saved_activations.
    """
    if distribute_saved_activations:
        refuse("checkpoint(distribute_saved_activations=True)", "drop --distribute_saved_activations")
    states = _RandomStates(get_rng_state_tracker)
    return torch_checkpoint(
        function,
        *args,
        use_reentrant=False,
        preserve_rng_state=False,
        context_fn=lambda: (states.recording(), states.replaying()),
        **kwargs,
    )


class _RandomStates:
    def __init__(self, get_tracker: Callable | None) -> None:
        self._get_tracker = get_tracker
        self._first_pass = None

    def _read(self) -> tuple:
        named = self._get_tracker().get_states() if self._get_tracker else None
        return torch.get_rng_state(), device_state(), named

    def _write(self, states: tuple) -> None:
        cpu, device, named = states
        torch.set_rng_state(cpu)
        set_device_state(device)
        if named is not None:
            self._get_tracker().set_states(named)

    @contextmanager
    def recording(self) -> Iterator[None]:
        self._first_pass = self._read()
        yield

    @contextmanager
    def replaying(self) -> Iterator[None]:
        before = self._read()
        self._write(self._first_pass)
        try:
            yield
        finally:
            self._write(before)


@contextmanager
def activation_recompute_forward(activation_recompute: bool = False, recompute_phase: bool = False) -> Iterator[None]:
    """Transformer Engine keeps fp8 scales between the two passes here; without fp8 there are none."""
    yield


def is_fp8_activation_recompute_enabled() -> bool:
    """Always False: there is no fp8."""
    return False
