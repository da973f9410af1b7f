"""Settings of LoRA that do not reach Megatron's modules: with PEFT 0.19 or newer mcore-bridge 1.6.5 reads none."""

from collections.abc import Iterable

from mcore_bridge.tuners.lora import LoraParallelLinear
from swift.utils import get_logger
from torch import nn

from swift_kd_plugin.host.train.merged_export import ADAPTER, adapted

logger = get_logger()


def apply_lora_settings(models: Iterable[nn.Module], use_rslora: bool, dropout: float) -> None:
    """Scales adapters as --use_rslora says and as the saved adapter will be read, and says that no dropout is done."""
    modules = [module for model in models for module in adapted(model) if isinstance(module, LoraParallelLinear)]
    for module in modules:
        if use_rslora:
            module.scaling[ADAPTER] = module.lora_alpha[ADAPTER] / module.r[ADAPTER] ** 0.5
    if dropout and any(isinstance(module.lora_dropout[ADAPTER], nn.Identity) for module in modules):
        logger.warning(f"--lora_dropout {dropout} has no effect: Megatron's LoRA drops nothing with this PEFT.")
