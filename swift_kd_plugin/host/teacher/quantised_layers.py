"""Linear layers whose weights are kept in 8 or 4 bits and are whole while the layer runs."""

import re
from collections.abc import Iterator

import torch
import transformer_engine.pytorch as te
from megatron.core.extensions.transformer_engine import TERowParallelGroupedLinear, TERowParallelLinear
from megatron.core.tensor_parallel import ColumnParallelLinear, RowParallelLinear
from torch import Tensor, nn

from swift_kd_plugin.host.teacher.hidden_states import language_model
from swift_kd_plugin.teacher.quantised_weights import EIGHT, QuantisedWeight

LINEAR = (te.Linear, te.LayerNormLinear, te.GroupedLinear, ColumnParallelLinear, RowParallelLinear)
WEIGHT = re.compile(r"weight\d*")  # of grouped experts one each, by number


class QuantisedLayers:
    """The linear layers of a model's decoder, prepared to be quantised as their weights are written.

    Embedding, norms, biases, routers and everything outside of the decoder stay as they are.

    Args:
        model: as Megatron builds it, whose weights may lie nowhere yet.
        head_bits: of the output layer; None leaves it as it is, too.
    """

    def __init__(self, model: nn.Module, bits: int, head_bits: int | None):
        self.model, self.bits = model, bits
        self.unquantised = False
        self.weights: dict[int, tuple[str, nn.Parameter, QuantisedWeight]] = {}
        self.place: Tensor | None = None  # of the running layer's whole weights, while the decoder runs
        decoder = language_model(model).decoder
        decoder.register_forward_pre_hook(self._make_place)
        decoder.register_forward_hook(self._drop_place, always_call=True)
        for name, module in language_model(model).decoder.layers.named_modules():
            if isinstance(module, LINEAR):
                self._prepare(f"decoder.layers.{name}", module, bits)
        if head_bits is not None and language_model(model).post_process:
            self._prepare("output_layer", language_model(model).output_layer, head_bits)

    def _prepare(self, name: str, module: nn.Module, bits: int) -> None:
        names = [key for key, _ in module.named_parameters(recurse=False) if WEIGHT.fullmatch(key)]
        for key in names:
            old = getattr(module, key)
            parameter = nn.Parameter(_nothing(old.dtype), requires_grad=False)
            module._parameters[key] = parameter
            quantised = QuantisedWeight(old, bits, _ranks_of_rows(module))
            module.add_module(f"quantised_{key}", quantised)
            self.weights[id(parameter)] = f"{name}.{key}", parameter, quantised
        module.register_forward_pre_hook(self._fill)
        module.register_forward_hook(self._clear, always_call=True)

    def of(self, module: nn.Module) -> Iterator[tuple[nn.Parameter, QuantisedWeight]]:
        """The quantised weights of a module and of those within it."""
        for parameter in module.parameters():
            if id(parameter) in self.weights:
                yield self.weights[id(parameter)][1:]

    def _make_place(self, decoder: nn.Module, _) -> None:
        """One buffer for all layers, as new memory for each takes a CPU longer; 4 bits do not go into one."""
        if self.bits == EIGHT and not self.unquantised:
            modules = (module for module in decoder.modules() if isinstance(module, LINEAR))
            sizes = (sum(quantised.whole_bytes for _, quantised in self.of(module)) for module in modules)
            self.place = torch.empty(max(sizes, default=0), dtype=torch.uint8, device=torch.cuda.current_device())

    def _drop_place(self, *_) -> None:
        self.place = None

    def _fill(self, module: nn.Module, _) -> None:
        if self.unquantised:
            return
        start = 0
        for parameter, quantised in self.of(module):
            parameter.data = quantised.whole(None if self.place is None else self.place[start:])
            start += quantised.whole_bytes

    def _clear(self, module: nn.Module, *_) -> None:
        if not self.unquantised:
            self.clear(module)

    def clear(self, module: nn.Module) -> None:
        """Lets the whole weights of a module go."""
        for parameter, _ in self.of(module):
            parameter.data = _nothing(parameter.dtype)

    def write(self, parameter: nn.Parameter, tensor: Tensor, scales: Tensor | None, stock) -> None:
        """In place of mcore-bridge's `_set_param`, which is `stock`: quantises a weight, part by part on its way to the
        device, or leaves it whole where the unquantised model is to run. The ranks that hold parts of a row, which
        share its scales, all write it."""
        if id(parameter) not in self.weights:
            stock(parameter, tensor, scales)
            return
        _, _, quantised = self.weights[id(parameter)]
        shape, device = quantised.weight_shape, torch.cuda.current_device()
        if scales is None and not self.unquantised:
            quantised.take(tensor.reshape(shape), device)
            return
        parameter.data = torch.empty(shape, dtype=parameter.dtype, device=device)
        stock(parameter, tensor, scales)
        if not self.unquantised:
            quantised.take(parameter.data)
            parameter.data = _nothing(parameter.dtype)

    def missing(self) -> str | None:
        """The name of a weight that was never written, or None."""
        return next((name for name, _, quantised in self.weights.values() if quantised.codes is None), None)


def _ranks_of_rows(module: nn.Module):
    """The group over which the inputs of a row-parallel layer are cut, or None where each rank has whole rows."""
    if isinstance(module, (TERowParallelLinear, TERowParallelGroupedLinear)):
        return module._tp_group
    return module.tp_group if isinstance(module, RowParallelLinear) else None


def _nothing(dtype: torch.dtype) -> Tensor:
    return torch.empty(0, dtype=dtype, device=torch.cuda.current_device())
