"""Random states of a rank: Python's, NumPy's, torch's, the device's and those of Megatron-Core's tracker."""

import random
from contextlib import contextmanager

import numpy as np
import torch
from megatron.core.tensor_parallel import get_cuda_rng_tracker


@contextmanager
def keep_random_states():
    """Whatever is drawn or seeded inside leaves no trace."""
    tracker = get_cuda_rng_tracker()
    python, numpy, cpu = random.getstate(), np.random.get_state(), torch.get_rng_state()
    device, tracked = torch.cuda.get_rng_state(), tracker.get_states()
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        torch.set_rng_state(cpu)
        torch.cuda.set_rng_state(device)
        tracker.set_states(tracked)
