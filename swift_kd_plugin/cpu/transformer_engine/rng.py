"""Random states by name: the device generator is lent to a named state and given back."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

MODEL_PARALLEL_RNG = "model-parallel-rng"

_active_states: dict[str, torch.Tensor] = {}


def device_state() -> torch.Tensor:
    """The state of the generator that dropout and initialisation draw from."""
    return torch.cuda.get_rng_state() if torch.cuda.is_available() else torch.get_rng_state()


def set_device_state(state: torch.Tensor) -> None:
    """Sets the generator that `device_state` reads."""
    if torch.cuda.is_available():
        torch.cuda.set_rng_state(state)
    else:
        torch.set_rng_state(state)


def get_all_rng_states() -> dict[str, torch.Tensor]:
    """The named states of the tracker that was changed last; Megatron-Core has one."""
    return _active_states


class CudaRNGStatesTracker:
    """Named random states. `states_` maps each name to a generator state, a byte tensor."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forgets every state."""
        self.seeds_: set[int] = set()
        self._lent_to: str | None = None
        self._keep({})

    def _keep(self, states: dict[str, torch.Tensor]) -> None:
        global _active_states
        self.states_ = states
        _active_states = states

    def get_states(self) -> dict[str, torch.Tensor]:
        """A copy of the mapping; the states themselves are never changed in place."""
        return dict(self.states_)

    def set_states(self, states: dict[str, torch.Tensor]) -> None:
        """Goes back to states from `get_states`."""
        self._keep(dict(states))

    def add(self, name: str, seed: int) -> None:
        """Starts a state from a seed, leaving the generator as it is.

        Raises:
            ValueError: the name or the seed is taken.
        """
        if seed in self.seeds_:
            raise ValueError(f"seed {seed} is already used by another random state")
        if name in self.states_:
            raise ValueError(f"random state {name!r} already exists")
        self.seeds_.add(seed)
        # Where a tensor "on cuda" lies: the CPU backend answers is_available with yes and puts it on the CPU.
        device = torch.empty(0, device="cuda" if torch.cuda.is_available() else "cpu").device
        generator = torch.Generator(device)
        self.states_[name] = generator.manual_seed(seed).get_state()

    @contextmanager
    def fork(self, name: str = MODEL_PARALLEL_RNG) -> Iterator[None]:
        """Draws from a named state inside the block; afterwards the generator is as before. May be nested.

        Raises:
            ValueError: there is no such state.
        """
        if name not in self.states_:
            raise ValueError(f"random state {name!r} was not added; there are {sorted(self.states_)}")
        outer_name, outer_state = self._lent_to, device_state()
        if outer_name is not None:
            self.states_[outer_name] = outer_state
        set_device_state(self.states_[name])
        self._lent_to = name
        try:
            yield
        finally:
            self.states_[name] = device_state()
            self._lent_to = outer_name
            set_device_state(outer_state if outer_name is None else self.states_[outer_name])
