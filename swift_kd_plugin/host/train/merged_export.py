"""A model with its LoRA adapter merged, exported layer by layer beside the frozen weights, which keep every bit.

ms-swift adds the adapter to the bf16 weights before each save and weight sync and subtracts it again, and what is
rounded on the way stays. Here the bridge sees merged copies of the layer that it exports, one layer at a time.
"""

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import wraps
from typing import Any

import torch
from mcore_bridge.bridge import GPTBridge
from mcore_bridge.tuners.lora import LoraParallelLinear
from peft.tuners.lora.layer import LoraLayer
from torch import Tensor, nn

from swift_kd_plugin.ledger import Undo, replace_attribute

ADAPTER = "default"


class MergedExport:
    """Lets a bridge export the models as if their adapters were merged, until it is closed.

    Args:
        bridge: of mcore-bridge. One that exports in a way of its own gets copies of all weights at once, on the device.
        models: this rank's, without wrappers.
    """

    def __init__(self, bridge: GPTBridge, models: list[nn.Module]):
        self._waiting = {module for model in models for module in adapted(model)}
        with ExitStack() as held:
            if any(getattr(type(bridge), name) is not getattr(GPTBridge, name) for name in ("_convert", ADDITIONAL)):
                held.enter_context(merged(self._waiting))
                self._waiting = set()
            else:
                for name, find in STEPS.items():
                    held.callback(self._merge_around(bridge, name, find))
            self._held = held.pop_all()

    def close(self) -> None:
        """The bridge exports the frozen weights again."""
        self._held.close()
        assert sys.exception() or not self._waiting, (
            f"{len(self._waiting)} adapted layers were exported without their adapter"
        )

    def _merge_around(self, bridge: GPTBridge, name: str, find: Callable[[Any], list[LoraLayer]]) -> Undo:
        step = getattr(bridge, name)

        @wraps(step)
        def merge_and_export(part: nn.Module | None, *args: Any, **kwargs: Any) -> Any:
            modules = [] if part is None else find(part)
            with merged(modules):
                exported = step(part, *args, **kwargs)
            self._waiting -= set(modules)
            return exported

        return replace_attribute(bridge, name, merge_and_export)


def adapted(part: nn.Module) -> list[LoraLayer]:
    """The modules of a model or layer that have an adapter."""
    return [module for module in part.modules() if isinstance(module, LoraLayer)]


def adapted_outside_layers(model: nn.Module) -> list[LoraLayer]:
    """Likewise, in embeddings, vision and the output layer."""
    language_model = getattr(model, "language_model", model)
    inside = {*adapted(language_model.decoder), *adapted_in_mtp(language_model)}
    return [module for module in adapted(model) if module not in inside]


def adapted_in_mtp(language_model: nn.Module) -> list[LoraLayer]:
    """Likewise, in the layers that predict further tokens."""
    mtp = getattr(language_model, "mtp", None)
    return [] if mtp is None else adapted(mtp)


# What the bridge exports one after the other, with what is adapted in the first argument of each.
STEPS = {
    "_convert_pre_process": adapted_outside_layers,
    "_set_layer_state": adapted,
    "_convert_mtp_layer": adapted_in_mtp,
    "_convert_post_process": adapted_outside_layers,
}
ADDITIONAL = "_convert_additional_layers"


@contextmanager
def merged(modules: Iterable[LoraLayer]) -> Iterator[None]:
    """Each module's weight is a merged copy within the block. What was made of it stays valid afterwards."""
    frozen: list[tuple[nn.Parameter, Tensor]] = []
    try:
        with torch.no_grad():
            for module in modules:
                for weight, delta in zip(weights_of(module), deltas_of(module), strict=True):
                    frozen.append((weight, weight.data))
                    weight.data = weight.data.clone().add_(delta)
        yield
    finally:
        for weight, data in frozen:
            weight.data = data


def weights_of(module: LoraLayer) -> list[nn.Parameter]:
    """The frozen weight, or those of all experts."""
    base = module.get_base_layer()
    grouped = isinstance(module, LoraParallelLinear) and module.is_grouped
    return [getattr(base, f"weight{i}") for i in range(base.num_gemms)] if grouped else [base.weight]


def deltas_of(module: LoraLayer) -> list[Tensor]:
    """What the adapter adds to each of them. A vision tower has PEFT's own modules, which ms-swift does not merge."""
    if isinstance(module, LoraParallelLinear):
        return module.get_delta_weights(ADAPTER)
    return [module.get_delta_weight(ADAPTER)]
