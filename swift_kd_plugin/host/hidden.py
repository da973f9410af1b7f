"""Stops a model's forward in front of its output layer, where its logits are nothing but hidden states @ weight."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from mcore_bridge.model import GPTModel
from mcore_bridge.tuners.lora import LoraParallelLinear
from megatron.core.tensor_parallel import ColumnParallelLinear
from megatron.core.tensor_parallel.mappings import gather_from_sequence_parallel_region
from peft.utils import ModulesToSaveWrapper
from torch import Tensor, nn

from swift_kd_plugin.losses.head import Head


@dataclass
class Caught:
    """What a forward left in front of the output layer; None on a pipeline stage that has no output layer."""

    head: Head | None = None


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
    linears = [layer]
    if isinstance(layer, LoraParallelLinear):
        linears = [layer.base_layer, *layer.lora_B.values(), *layer.lora_A.values()]
    if not isinstance(linears[0], ColumnParallelLinear) or linears[0].gather_output:
        return f"its output layer is a {type(layer).__name__}"
    if any(getattr(linear, "bias", None) is not None and linear.bias.numel() for linear in linears):
        return "its output layer has a bias"
    return None


@contextmanager
def stop_before_head(model) -> Iterator[Caught]:
    """Within it a forward of `model` leaves its hidden states in what is yielded, and returns an empty tensor."""
    model, caught = language_model(model), Caught()

    def keep(hidden: Tensor, weight: Tensor | None = None, **_) -> Tensor:
        caught.head = _head(output_layer(model), hidden, weight)
        return hidden.new_empty(1, 1, 0)

    model._forward_output_layer = keep
    try:
        yield caught
    finally:
        del model._forward_output_layer


def _head(layer, hidden: Tensor, weight: Tensor | None) -> Head:
    """The parts that the logits are a sum of; hidden states are [s, b, H] and become rows in that order."""
    base = layer.base_layer if isinstance(layer, LoraParallelLinear) else layer
    inputs, weights = [hidden], [base.weight if weight is None else weight]
    if isinstance(layer, LoraParallelLinear) and not layer.disable_adapters and not layer.merged:
        for name in layer.active_adapters:
            if name in layer.lora_A:
                # The adapter reads what this rank holds of the sequence, as the host runs it: its gradient is summed
                # over the tensor-parallel ranks under sequence parallelism only.
                lora_a, lora_b = layer.lora_A[name], layer.lora_B[name]
                reduced = lora_a(layer.lora_dropout[name](hidden.to(lora_a.weight.dtype)))
                reduced = reduced[0] if isinstance(reduced, tuple) else reduced
                inputs.append((reduced * layer.scaling[name]).to(hidden.dtype))
                weights.append(lora_b.weight.to(hidden.dtype))
    return Head(tuple(_whole(part, base.sequence_parallel).flatten(0, 1) for part in inputs), tuple(weights))


def _whole(part: Tensor, sequence_parallel: bool) -> Tensor:
    """All positions of a part that is spread over the tensor-parallel ranks: [s / tp, b, H] -> [s, b, H].

    The loss hands every rank the full gradient, already summed over the group, so backward takes this rank's slice.
    """
    return gather_from_sequence_parallel_region(part, tensor_parallel_output_grad=False) if sequence_parallel else part
