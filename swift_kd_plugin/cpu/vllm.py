"""vLLM on the CPU inside a training process."""

import os

from swift_kd_plugin.ledger import Undo, replace_attribute

ENVIRONMENT = {"VLLM_PLUGINS": "none", "VLLM_CPU_KVCACHE_SPACE": "1"}


def set_vllm_environment() -> None:
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)


def keep_linear_weights(module) -> Undo:
    """vLLM packs a linear layer's weight and empties the Parameter; the trainer's weights need a place to go."""
    stock = module.dispatch_cpu_unquantized_gemm

    def dispatch_cpu_unquantized_gemm(layer, remove_weight=False):
        return stock(layer, remove_weight=False)

    return replace_attribute(module, "dispatch_cpu_unquantized_gemm", dispatch_cpu_unquantized_gemm)


def pack_experts_again(module) -> Undo:
    """vLLM packs the experts' weights where they are, when it starts; weights that are moved there later are not."""
    method = module.UnquantizedFusedMoEMethod
    stock = method._setup_kernel

    def _setup_kernel(self, layer, w13, w2):
        started = self.moe_kernel is not None
        stock(self, layer, w13, w2)
        if not started:
            return
        from vllm._custom_ops import cpu_prepack_moe_weight

        experts = self.moe_kernel.fused_experts
        for weight in (layer.w13_weight, layer.w2_weight):
            weight.data.copy_(cpu_prepack_moe_weight(weight.data, experts.isa))

    return replace_attribute(method, "_setup_kernel", _setup_kernel)


def scale_a_copy(module) -> Undo:
    """vLLM multiplies an adapter's lora_B by its scale in place; on a GPU that is a copy, here the trainer's own."""
    stock = module.LoRALayerWeights.optimize

    def optimize(self):
        self.lora_b = self.lora_b.clone()
        return stock(self)

    return replace_attribute(module.LoRALayerWeights, "optimize", optimize)
