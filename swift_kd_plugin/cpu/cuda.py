"""`torch.cuda` on a machine without one: a table of the names that the host uses and what they are here."""

import contextlib
import os
from types import SimpleNamespace

import torch

from swift_kd_plugin.cpu import memory, random_state, streams
from swift_kd_plugin.cpu.device_mode import CPU

CAPABILITY = (8, 0)  # the oldest compute capability with bf16


def current_device() -> torch.device:
    # A torch.device, since `torch.device(0)` asks for an accelerator.
    return CPU


def device_count() -> int:
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def get_device_properties(device=None) -> SimpleNamespace:
    return SimpleNamespace(
        name="cpu",
        major=CAPABILITY[0],
        minor=CAPABILITY[1],
        total_memory=memory.total_memory(),
        multi_processor_count=os.cpu_count(),
    )


def do_nothing(*_args, **_kwargs) -> None:
    pass


@contextlib.contextmanager
def device_context(*_args, **_kwargs):
    yield


def call_now(function, **_kwargs) -> None:
    """`torch.cuda._lazy_call`: there is no initialisation to wait for."""
    function()


CUDA_NAMES = {
    "is_available": lambda: True,
    "is_initialized": lambda: True,
    "is_bf16_supported": lambda *_args, **_kwargs: True,
    "_lazy_init": do_nothing,
    "_lazy_call": call_now,
    "init": do_nothing,
    "current_device": current_device,
    "device_count": device_count,
    "set_device": do_nothing,
    "device": device_context,
    "synchronize": do_nothing,
    "ipc_collect": do_nothing,
    "get_device_capability": lambda device=None: CAPABILITY,
    "get_device_name": lambda device=None: "cpu",
    "get_device_properties": get_device_properties,
    # memory
    "empty_cache": do_nothing,
    "memory_allocated": memory.resident,
    "memory_reserved": memory.resident,
    "max_memory_allocated": memory.peak_resident,
    "max_memory_reserved": memory.peak_resident,
    "reset_peak_memory_stats": memory.reset_peak,
    "reset_max_memory_allocated": memory.reset_peak,
    "memory_stats": lambda *_args, **_kwargs: {},
    "mem_get_info": memory.free_and_total,
    # streams
    "Stream": streams.Stream,
    "Event": streams.Event,
    "current_stream": streams.current_stream,
    "default_stream": streams.current_stream,
    "set_stream": do_nothing,
    "stream": streams.use_stream,
    "CUDAGraph": streams.CUDAGraph,
    "graph": streams.refuse_cuda_graphs,
    "make_graphed_callables": streams.refuse_cuda_graphs,
    "graph_pool_handle": streams.refuse_cuda_graphs,
    # random states
    "default_generators": random_state.DefaultGenerators(),
    "get_rng_state": random_state.get_rng_state,
    "set_rng_state": random_state.set_rng_state,
    "manual_seed": random_state.manual_seed,
    "manual_seed_all": random_state.manual_seed,
    "seed": random_state.seed,
    "seed_all": random_state.seed,
    "initial_seed": random_state.initial_seed,
    # tensor types by their old names
    "FloatTensor": torch.FloatTensor,
    "HalfTensor": torch.HalfTensor,
    "BFloat16Tensor": torch.BFloat16Tensor,
    "LongTensor": torch.LongTensor,
    "IntTensor": torch.IntTensor,
    "ByteTensor": torch.ByteTensor,
    "BoolTensor": torch.BoolTensor,
    "DoubleTensor": torch.DoubleTensor,
}
RANDOM_NAMES = ("get_rng_state", "set_rng_state", "manual_seed", "manual_seed_all", "seed", "seed_all", "initial_seed")
