"""The groups over which a teacher's rows are spread."""

from megatron.core import mpu


def tensor_group():
    """The tensor-parallel group, or None where a rank holds the whole vocabulary."""
    return mpu.get_tensor_model_parallel_group() if mpu.get_tensor_model_parallel_world_size() > 1 else None


def context_group():
    """The context-parallel group, or None where a rank holds whole sequences."""
    return mpu.get_context_parallel_group() if mpu.get_context_parallel_world_size() > 1 else None
