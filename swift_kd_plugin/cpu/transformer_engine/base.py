"""What every layer of Transformer Engine has: creation and initialisation of parameters, groups, fp8 bookkeeping."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import nn

EXPERT_RNG = "expert-parallel-rng"  # Megatron-Core's name for the random state of expert layers


def default_device() -> torch.device | int | None:
    """Where Transformer Engine creates parameters when the host names no device: the current accelerator."""
    return torch.cuda.current_device() if torch.cuda.is_available() else None


def default_init(weight: torch.Tensor) -> torch.Tensor:
    """Transformer Engine's initialisation when the host passes none."""
    return nn.init.normal_(weight, mean=0.0, std=0.023)


def divide(total: int, parts: int, name: str) -> int:
    """total / parts, or ValueError when it leaves a remainder."""
    if total % parts:
        raise ValueError(f"{name} is {total}, which tensor parallelism cannot divide by {parts}")
    return total // parts


def mark_tensor_parallel(parameter: torch.Tensor, is_parallel: bool, dim: int) -> None:
    """Sets the attributes by which Megatron-Core recognises a shard (gradient norm, clipping, checkpoints)."""
    parameter.tensor_model_parallel = is_parallel
    parameter.partition_dim = dim
    parameter.partition_stride = 1


class TransformerEngineBaseModule(nn.Module):
    """The parent of all layers; the hosts test for it with isinstance and read its fp8 attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.fp8 = False
        self.fp8_calibration = False
        self.fp8_meta = {"fp8_checkpoint": False}
        self.tp_group = None
        self.tp_size = 1

    def set_tensor_parallel_group(self, tp_group) -> None:
        """Sets the process group late, for layers that were built before `torch.distributed` was initialised."""
        self.tp_group = tp_group

    def join_tensor_parallel_group(self, tp_group, tp_size: int) -> None:
        """Takes the group's size over the configured one, as Transformer Engine does."""
        self.set_tensor_parallel_group(tp_group)
        self.tp_size = tp_size if tp_group is None else tp_group.size()

    def require_group(self) -> None:
        """Raises ValueError if the layer is split but has no group to communicate in."""
        if self.tp_size > 1 and self.tp_group is None:
            raise ValueError(
                f"{type(self).__name__} is split over {self.tp_size} ranks but has no process group: "
                "pass tp_group or call set_tensor_parallel_group"
            )

    def init_fp8_metadata(self, num_gemms: int = 1) -> None:
        """There is nothing to set up: fp8 is refused before it gets here."""

    def backward_dw(self) -> None:
        """Weight gradients are never delayed, so nothing is left to compute."""

    def get_extra_state(self) -> torch.Tensor:
        """An empty tensor, as Transformer Engine saves for a layer without fp8; checkpoints keep their keys."""
        return torch.empty(0, dtype=torch.uint8)

    def set_extra_state(self, state) -> None:
        """Ignores fp8 scales of a checkpoint: the weights next to them are stored in high precision."""


def initialise(
    parameter: torch.Tensor,
    init_method: Callable[[torch.Tensor], object],
    get_rng_state_tracker: Callable | None,
    rng_tracker_name: str | None,
) -> None:
    """Fills a parameter in place, drawing from the tracker's state if there is one. Meta parameters are left alone."""
    if parameter.is_meta:
        return
    fork: AbstractContextManager = nullcontext()
    if get_rng_state_tracker is not None:
        fork = get_rng_state_tracker().fork(*([rng_tracker_name] if rng_tracker_name else []))
    with torch.no_grad(), fork:
        init_method(parameter)
