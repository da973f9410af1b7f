"""The groups over which a teacher's rows are spread, and what a group agrees on."""

import torch
from megatron.core import mpu
from torch import distributed as dist


def tensor_group():
    """The tensor-parallel group, or None where a rank holds the whole vocabulary."""
    return mpu.get_tensor_model_parallel_group() if mpu.get_tensor_model_parallel_world_size() > 1 else None


def context_group():
    """The context-parallel group, or None where a rank holds whole sequences."""
    return mpu.get_context_parallel_group() if mpu.get_context_parallel_world_size() > 1 else None


def any_of(here: bool, group, device) -> bool:
    """Whether it is so on any rank of the group, or of all where it is None; each of them calls it."""
    found = torch.tensor(int(here), device=device)
    dist.all_reduce(found, dist.ReduceOp.MAX, group=group)
    return bool(found)
