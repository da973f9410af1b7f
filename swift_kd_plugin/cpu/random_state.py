"""The random state of the "device" is the CPU generator's: dropout and initialisation draw from it.

`torch.manual_seed` calls back into `torch.cuda.manual_seed_all`, so seeding goes to the generator itself.
"""

import logging
from functools import wraps
from types import ModuleType

import torch

from swift_kd_plugin.ledger import Undo, replace_attribute

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


def keep_loader_seeds_out(module: ModuleType) -> Undo:
    """A data loader's iterator draws a seed for its workers from the CPU's generator, which is the device's here.

    A run that is resumed starts an iterator where the uninterrupted run has none, and would drop other activations
    from there on. On the CPU a loader has no workers, so nobody misses the draw.
    """
    stock = module._BaseDataLoaderIter.__init__

    @wraps(stock)
    def __init__(self, loader) -> None:
        state = GENERATOR.get_state()
        stock(self, loader)
        GENERATOR.set_state(state)

    return replace_attribute(module._BaseDataLoaderIter, "__init__", __init__)
