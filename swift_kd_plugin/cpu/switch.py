"""Switches the CPU backend on, and lists what it replaces."""

import logging
import os
import sys
from types import FunctionType, ModuleType

import torch

from swift_kd_plugin.cpu import cuda, gloo_groups, half_matmul, random_state, streams, vllm
from swift_kd_plugin.cpu.cpu_flags import adapt_command_line
from swift_kd_plugin.cpu.device_mode import CudaMeansCpu
from swift_kd_plugin.ledger import Ledger, Patch, Undo, replace_attribute, undo_all

GPU = "the machine has a GPU"


def replace_cuda(module: ModuleType) -> Undo:
    undo = []
    for name, new in cuda.CUDA_NAMES.items():
        undo.append(replace_attribute(torch.cuda, name, _own_copy(new)))
    undo += [replace_attribute(torch.cuda.random, name, getattr(torch.cuda, name)) for name in cuda.RANDOM_NAMES]
    for name in ("range_push", "range_pop"):
        undo.append(replace_attribute(torch.cuda.nvtx, name, _own_copy(cuda.do_nothing)))
    return undo_all(undo)


def _own_copy(new):
    # torch._dynamo keeps rules by function object and refuses one object under two names.
    if not isinstance(new, FunctionType):
        return new
    return FunctionType(new.__code__, new.__globals__, new.__name__, new.__defaults__, new.__closure__)


def rewrite_devices(module: ModuleType) -> Undo:
    mode = CudaMeansCpu()
    mode.__enter__()
    return lambda: mode.__exit__(None, None, None)


def quiet_shared_generator(module: ModuleType) -> Undo:
    notice = random_state.SharedGeneratorNotice()
    logger = logging.getLogger("megatron.core.tensor_parallel.random")
    logger.addFilter(notice)
    return lambda: logger.removeFilter(notice)


def mount_transformer_engine(module: ModuleType) -> Undo:
    from swift_kd_plugin.cpu import transformer_engine

    transformer_engine.mount()
    return transformer_engine.unmount


CPU_LEDGER = Ledger(
    [
        Patch(
            symbol="torch.cuda",
            module="torch",
            why="devices, memory figures, streams, events and random states of a machine without CUDA",
            remove_when=GPU,
            apply=replace_cuda,
        ),
        Patch(
            symbol="torch.overrides.TorchFunctionMode",
            module="torch",
            why="device arguments that say cuda mean the CPU",
            remove_when=GPU,
            apply=rewrite_devices,
        ),
        Patch(
            symbol="torch.ops.aten.mm",
            module="torch",
            why="large mm, addmm and bmm of half precision, up to 38 times slower than those of fp32 (AVX2)",
            remove_when="torch multiplies bf16 on a CPU without AVX-512 as fast as fp32",
            apply=half_matmul.replace_products,
        ),
        Patch(
            symbol="torch.distributed",
            module="torch",
            why="init_process_group, new_group and all_to_all_single: gloo in place of NCCL",
            remove_when=GPU,
            apply=gloo_groups.replace_collectives,
        ),
        Patch(
            symbol="logging.getLogger('megatron.core.tensor_parallel.random')",
            module="torch",
            why="device and CPU share one generator, about which Megatron-Core warns at each fork",
            remove_when=GPU,
            apply=quiet_shared_generator,
        ),
        Patch(
            symbol="torch.utils.data.dataloader._BaseDataLoaderIter.__init__",
            module="torch.utils.data.dataloader",
            why="device and CPU share one generator: the loader's draw would shift the dropout of a resumed run",
            remove_when=GPU,
            apply=random_state.keep_loader_seeds_out,
        ),
        Patch(
            symbol="transformer_engine",
            module="torch",
            why="Megatron-Core's layer specs and mcore-bridge need Transformer Engine, which needs CUDA",
            remove_when="Megatron-Core and mcore-bridge run with local layers",
            apply=mount_transformer_engine,
        ),
        Patch(
            symbol="torch._C._cuda_getCurrentRawStream",
            module="bitsandbytes._ops",
            why="bitsandbytes loads its CUDA operators where torch.cuda is available, and they read this name",
            remove_when="bitsandbytes looks for CUDA in its own library",
            apply=streams.provide_raw_stream,
        ),
        Patch(
            symbol="vllm.model_executor.layers.utils.dispatch_cpu_unquantized_gemm",
            module="vllm.model_executor.layers.utils",
            why="it empties the weights that a colocated trainer updates",
            remove_when="vLLM on the CPU can reload weights in place",
            apply=vllm.keep_linear_weights,
        ),
        Patch(
            symbol="vllm.model_executor.layers.fused_moe.unquantized_fused_moe_method"
            ".UnquantizedFusedMoEMethod._setup_kernel",
            module="vllm.model_executor.layers.fused_moe.unquantized_fused_moe_method",
            why="it packs the experts once, so weights that a colocated trainer moves are read as if they were packed",
            remove_when="vLLM on the CPU packs experts anew after each load of weights",
            apply=vllm.pack_experts_again,
        ),
        Patch(
            symbol="vllm.lora.lora_weights.LoRALayerWeights.optimize",
            module="vllm.lora.lora_weights",
            why="it scales lora_B where it is, which on one device is the trainer's own weight",
            remove_when="vLLM scales a copy, or copies the adapter on a CPU as well",
            apply=vllm.scale_a_copy,
        ),
    ]
)


def set_environment() -> None:
    """What vLLM and torch need to be told on a CPU."""
    # Fused functions of the host are torch.compile'd; without it they are the same functions, run eagerly.
    os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")
    vllm.set_vllm_environment()


def switch_on() -> None:
    """Arms the ledger and adapts the command line and environment of a training rank. Idempotent."""
    if CPU_LEDGER.applied:
        return
    set_environment()
    adapt_command_line(sys.argv)
    CPU_LEDGER.arm()
