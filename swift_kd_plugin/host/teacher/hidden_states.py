"""Stops a model's forward in front of its output layer, where its logits are nothing but hidden states @ weight."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from mcore_bridge.model import GPTModel
from megatron.core import mpu
from megatron.core.tensor_parallel import ColumnParallelLinear
from megatron.core.tensor_parallel.mappings import gather_from_sequence_parallel_region
from peft.utils import ModulesToSaveWrapper
from torch import Tensor, nn
from torch import distributed as dist

from swift_kd_plugin.losses.lm_head import LMHead


@dataclass
class Caught:
    """What a forward left in front of the output layer; None on a pipeline stage that has no output layer."""

    head: LMHead | None = None
    remake: Callable[[], Tensor] | None = None
    """Makes the head's weight once more, where it is kept in fewer bits."""


def language_model(model) -> GPTModel:
    """The language model of a multimodal model, or the model itself."""
    return getattr(model, "language_model", model)


def output_layer(model) -> nn.Module:
    """The output layer that is in use; with LoRA it can be a trained copy of the model's (`--modules_to_save`)."""
    layer = language_model(model).output_layer
    if not isinstance(layer, ModulesToSaveWrapper):
        return layer
    return layer.original_module if layer.disable_adapters else layer.modules_to_save[layer.active_adapters[0]]


def why_not_linear(model) -> str | None:
    """Why the model's logits are not hidden states @ weight, or None if they are (or another stage makes them)."""
    model = language_model(model)
    if not model.post_process:
        return None
    kind = type(model)
    for method in ("_forward_output_layer", "_postprocess"):
        if getattr(kind, method, None) is not getattr(GPTModel, method):
            return f"{kind.__name__} has an output layer of its own kind"
    layer = output_layer(model)
    if not isinstance(layer, ColumnParallelLinear) or layer.gather_output:
        return f"its output layer is a {type(layer).__name__}"
    return None if layer.bias is None else "its output layer has a bias"


def reason_for_logits(models: list) -> str | None:
    """`why_not_linear` of a model that is cut into pipeline stages, the same on all of them. All ranks must call it."""
    group = mpu.get_pipeline_model_parallel_group()
    reasons: list[str | None] = [None] * dist.get_world_size(group)
    dist.all_gather_object(reasons, next(filter(None, map(why_not_linear, models)), None), group=group)
    return next(filter(None, reasons), None)


@contextmanager
def stop_before_lm_head(model) -> Iterator[Caught]:
    """Within it a forward of `model` returns an empty tensor and leaves what its logits would be made of: hidden states
    as rows in [s, b] order, and the output weight."""
    model, caught = language_model(model), Caught()

    def keep(hidden: Tensor, weight: Tensor | None = None, **_) -> Tensor:
        layer = output_layer(model)
        rows = whole(hidden, layer.sequence_parallel).flatten(0, 1)
        quantised = getattr(layer, "quantised_weight", None)
        if quantised is None:
            weight = layer.weight if weight is None else weight
        else:
            caught.remake = quantised.whole
            weight = layer.weight.data if layer.weight.numel() else quantised.whole()
        caught.head = LMHead((rows,), (weight,))
        return hidden.new_empty(1, 1, 0)

    model._forward_output_layer = keep
    try:
        yield caught
    finally:
        del model._forward_output_layer


def whole(hidden: Tensor, sequence_parallel: bool) -> Tensor:
    """All positions of hidden states that are spread over the tensor-parallel ranks: [s / tp, b, H] -> [s, b, H].

    The loss hands every rank the full gradient, already summed over the group, so backward takes this rank's slice.
    """
    if not sequence_parallel:
        return hidden
    return gather_from_sequence_parallel_region(hidden, tensor_parallel_output_grad=False)


def sequence_first(rows: Tensor, batch: int, length: int) -> Tensor:
    """Row numbers of [b, s] positions in [s, b] order."""
    return rows % length * batch + rows // length
