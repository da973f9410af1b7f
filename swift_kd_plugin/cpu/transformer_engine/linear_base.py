"""What `Linear` and `GroupedLinear` share: sizes per rank, creation, initialisation and marking of parameters."""

from collections.abc import Callable

import torch
from torch import nn

from swift_kd_plugin.cpu.transformer_engine.base import (
    EXPERT_RNG,
    TransformerEngineBaseModule,
    default_device,
    default_init,
    divide,
    initialise,
    mark_tensor_parallel,
)
from swift_kd_plugin.cpu.transformer_engine.unsupported import refuse_options

PARALLEL_MODES = ("column", "row", None)


class LinearBase(TransformerEngineBaseModule):
    """One or more linear maps of the same size, split over tensor-parallel ranks or whole.

    Raises:
        ValueError: an unknown parallel_mode, or sizes that do not divide.
        NotOnCPUBackend: fused or delayed weight gradients, userbuffers, symmetric memory, split parameters.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        sequence_parallel: bool = False,
        fuse_wgrad_accumulation: bool = False,
        tp_group=None,
        tp_size: int = 1,
        get_rng_state_tracker: Callable | None = None,
        rng_tracker_name: str | None = None,
        init_method: Callable[[torch.Tensor], object] | None = None,
        bias: bool = True,
        return_bias: bool = False,
        params_dtype: torch.dtype | None = None,
        parallel_mode: str | None = None,
        device: torch.device | str | int | None = None,
        ub_name: str | None = None,
        save_original_input: bool = False,
        **options,
    ) -> None:
        super().__init__()
        refuse_options(type(self).__name__, options | {"fuse_wgrad_accumulation": fuse_wgrad_accumulation})
        if parallel_mode not in PARALLEL_MODES:
            raise ValueError(f"parallel_mode is {parallel_mode!r}: expected one of {PARALLEL_MODES}")
        self.join_tensor_parallel_group(tp_group, tp_size)
        self.parallel_mode = parallel_mode
        self.sequence_parallel = sequence_parallel and self.tp_size > 1
        self.in_features = divide(in_features, self.tp_size if parallel_mode == "row" else 1, "in_features")
        self.out_features = divide(out_features, self.tp_size if parallel_mode == "column" else 1, "out_features")
        self.use_bias = bias
        self.return_bias = return_bias
        self.apply_bias = bias and not return_bias
        self.fuse_wgrad_accumulation = False
        self.save_original_input = save_original_input  # the input itself is what autograd keeps
        self.ub_name = ub_name
        self.get_rng_state_tracker = get_rng_state_tracker
        self.rng_tracker_name = rng_tracker_name
        self._init_method = init_method or default_init
        dtype = params_dtype or torch.get_default_dtype()
        self._create_parameters(dtype, default_device() if device is None else device)
        self.reset_parameters()

    def _names(self, kind: str) -> list[str]:
        """Names of the parameters of a kind, "weight" or "bias"."""
        return [kind]

    def all(self, kind: str) -> list[torch.Tensor]:
        """The parameters of a kind, "weight" or "bias", in order."""
        return [getattr(self, name) for name in self._names(kind)]

    def _create_parameters(self, dtype: torch.dtype, device) -> None:
        for name in self._names("weight"):
            weight = torch.empty(self.out_features, self.in_features, dtype=dtype, device=device)
            self.register_parameter(name, nn.Parameter(weight))
        for name in self._names("bias"):
            bias = torch.empty(self.out_features if self.use_bias else 0, dtype=dtype, device=device)
            setattr(self, name, nn.Parameter(bias) if self.use_bias else bias)

    def reset_parameters(self, defer_init: bool = False) -> None:
        """Initialises the parameters in place and marks them for Megatron-Core."""
        if defer_init:
            return
        # A layer without parallel_mode is one copy per rank, unless it is an expert: there the host splits the layer
        # itself and passes None. mcore-bridge's LoRA and the gradient norm tell the two apart by this mark.
        is_replicated = self.parallel_mode is None and self.rng_tracker_name != EXPERT_RNG
        dim = {"column": 0, "row": 1, None: -1 if is_replicated else 0}[self.parallel_mode]
        for weight in self.all("weight"):
            initialise(weight, self._init_method, self.get_rng_state_tracker, self.rng_tracker_name)
            mark_tensor_parallel(weight, not is_replicated, dim)
        for bias in self.all("bias") if self.use_bias else []:
            initialise(bias, nn.init.zeros_, None, None)
            if self.parallel_mode == "column":
                mark_tensor_parallel(bias, True, 0)
            elif self.parallel_mode == "row":
                # Added to the scattered sequence, so each rank sees the gradient of its own rows only.
                bias.sequence_parallel = self.sequence_parallel

    def extra_repr(self) -> str:
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, bias={self.use_bias}, TP={self.tp_size}"
        )
