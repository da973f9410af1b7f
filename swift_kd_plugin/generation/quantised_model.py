"""A model of transformers whose linear weights are kept in 8 or 4 bits, as --kd_teacher_bits keeps a teacher's."""

from collections.abc import Iterator

import torch
from torch import nn
from transformers import PreTrainedModel

from swift_kd_plugin.errors import KDError
from swift_kd_plugin.teacher.quantised_weights import QuantisedWeight

ROUTERS = ("gate", "router", "shared_expert_gate")


@torch.no_grad()
def quantise_model(model: PreTrainedModel, bits: int, device: str | torch.device, flag: str = "--bits") -> None:
    """Quantises the linear weights of the decoder's layers, and puts the model on a device.

    A weight is whole on the device while it is quantised and while its layer runs. Embedding, norms, biases, routers,
    the output layer and the towers of media stay as they are.

    Args:
        model: in the memory of the CPU.
        flag: that asks for it, for messages.

    Raises:
        KDError: its experts are stored with the inputs in front, where an output channel has no row.
    """
    for module, name in list(_linear_weights(model, flag)):
        weight = getattr(module, name)
        quantised = QuantisedWeight(weight, bits)
        quantised.take(weight.to(device))
        module.add_module(f"quantised_{name}", quantised)
        setattr(module, name, nn.Parameter(weight.new_empty(0), requires_grad=False))
    for module in model.modules():
        if any(_quantised_of(module)):
            module.register_forward_pre_hook(_fill)
            module.register_forward_hook(_clear, always_call=True)
    model.to(device)


def _linear_weights(model: PreTrainedModel, flag: str) -> Iterator[tuple[nn.Module, str]]:
    for path, module in model.get_decoder().layers.named_modules():
        if isinstance(module, nn.Linear) and path.rpartition(".")[2] not in ROUTERS:
            yield module, "weight"
        elif type(module).__name__.endswith("Experts"):
            if getattr(module, "is_transposed", False):
                raise KDError(f"{flag}: {type(module).__name__} stores its weights transposed; leave the flag out.")
            yield from ((module, name) for name, part in module.named_parameters(recurse=False) if part.ndim == 3)


def _quantised_of(module: nn.Module) -> Iterator[tuple[nn.Parameter, QuantisedWeight]]:
    """A module's own weights that are quantised."""
    for name, child in module.named_children():
        if isinstance(child, QuantisedWeight):
            yield getattr(module, name.removeprefix("quantised_")), child


def _fill(module: nn.Module, _) -> None:
    for parameter, quantised in _quantised_of(module):
        parameter.data = quantised.whole()


def _clear(module: nn.Module, *_) -> None:
    for parameter, _ in _quantised_of(module):
        parameter.data = parameter.new_empty(0)
