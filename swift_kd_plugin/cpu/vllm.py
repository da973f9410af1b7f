"""vLLM on the CPU inside a training process."""

import os

from swift_kd_plugin.ledger import Undo, replace_attribute

ENVIRONMENT = {"VLLM_PLUGINS": "none", "VLLM_CPU_KVCACHE_SPACE": "1"}


def set_environment() -> None:
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)


def keep_linear_weights(module) -> Undo:
    """vLLM packs a linear layer's weight and empties the Parameter; the trainer's weights need a place to go."""
    stock = module.dispatch_cpu_unquantized_gemm

    def dispatch_cpu_unquantized_gemm(layer, remove_weight=False):
        return stock(layer, remove_weight=False)

    return replace_attribute(module, "dispatch_cpu_unquantized_gemm", dispatch_cpu_unquantized_gemm)
