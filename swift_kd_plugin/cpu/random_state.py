"""The random state of the "device" is the CPU generator's: dropout and initialisation draw from it.

`torch.manual_seed` calls back into `torch.cuda.manual_seed_all`, so seeding goes to the generator itself.
"""

import logging

import torch

GENERATOR = torch.default_generator


def get_rng_state(device="cuda") -> torch.Tensor:
    return GENERATOR.get_state()


def set_rng_state(state: torch.Tensor, device="cuda") -> None:
    GENERATOR.set_state(state)


def manual_seed(seed: int) -> None:
    GENERATOR.manual_seed(int(seed))


def seed() -> None:
    GENERATOR.seed()


def initial_seed() -> int:
    return GENERATOR.initial_seed()


class DefaultGenerators:
    """`torch.cuda.default_generators`: every index is the CPU generator."""

    def __getitem__(self, index) -> torch.Generator:
        return GENERATOR


class SharedGeneratorNotice(logging.Filter):
    """Drops Megatron-Core's warning that the CPU's state changed while the device's was forked: they are one here."""

    def filter(self, record: logging.LogRecord) -> bool:
        return "CPU RNG state changed within GPU RNG context" not in record.getMessage()
