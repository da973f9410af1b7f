"""Operations over lists of tensors, with apex's calling convention."""

from collections.abc import Callable

import torch

CHUNK_SIZE = 2048 * 32  # of the CUDA kernels; nothing is chunked here


def multi_tensor_applier(op: Callable, noop_flag: torch.Tensor, tensor_lists: list[list[torch.Tensor]], *args):
    """op(CHUNK_SIZE, noop_flag, tensor_lists, *args)."""
    return op(CHUNK_SIZE, noop_flag, tensor_lists, *args)


def multi_tensor_l2norm(
    chunk_size: int, noop_flag: torch.Tensor, tensor_lists: list[list[torch.Tensor]], per_tensor: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """The L2 norm over all tensors of the first list, [1], and with per_tensor each one's, [n] (else [0]).

    Norms are fp32, float64 for float64 tensors.
    """
    tensors = tensor_lists[0]
    if not tensors:
        nothing = torch.zeros(0, device=noop_flag.device)
        return nothing.new_zeros(1), nothing
    norms = torch.stack(
        [torch.linalg.vector_norm(t, dtype=torch.promote_types(t.dtype, torch.float32)) for t in tensors]
    )
    return torch.linalg.vector_norm(norms).view(1), norms if per_tensor else norms[:0]


def multi_tensor_scale(
    chunk_size: int, noop_flag: torch.Tensor, tensor_lists: list[list[torch.Tensor]], scale: float | torch.Tensor
) -> None:
    """destination = source * scale for [sources, destinations]; they may be the same tensors or of other dtypes.

    Sets noop_flag to 1 if a source holds inf or nan.
    """
    sources, destinations = tensor_lists
    with torch.no_grad():
        for source, destination in zip(sources, destinations, strict=True):
            if not torch.isfinite(source).all():
                noop_flag.fill_(1)
            if source is destination:
                destination.mul_(scale)
            else:
                destination.copy_(source.to(torch.promote_types(source.dtype, torch.float32)) * scale)
