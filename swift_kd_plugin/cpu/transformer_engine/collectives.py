"""The four differentiable collectives of tensor, sequence and context parallelism, on any process group.

Rows are the first dimension. Each works on tensors of any stride: gradients are made contiguous before they travel.
"""

import torch
from torch import distributed as dist


def copy_to_ranks(x: torch.Tensor, group) -> torch.Tensor:
    """Every rank goes on with the same x, each towards another part of the output. Same shape."""
    return x if _alone(group) else _CopyToRanks.apply(x, group)


def sum_over_ranks(x: torch.Tensor, group) -> torch.Tensor:
    """Every rank receives the sum of all x. Same shape."""
    return x if _alone(group) else _SumOverRanks.apply(x, group)


def gather_rows(x: torch.Tensor, group) -> torch.Tensor:
    """[rows, ...] of each rank to [ranks * rows, ...] of all, in rank order."""
    return x if _alone(group) else _GatherRows.apply(x, group)


def scatter_sum_of_rows(x: torch.Tensor, group) -> torch.Tensor:
    """[rows, ...] to this rank's [rows / ranks, ...] of the sum over ranks. ValueError if the rows do not divide."""
    return x if _alone(group) else _ScatterSumOfRows.apply(x, group)


def _alone(group) -> bool:
    return group is None or group.size() == 1


def _all_reduced(x: torch.Tensor, group) -> torch.Tensor:
    total = x.clone(memory_format=torch.contiguous_format)
    dist.all_reduce(total, group=group)
    return total


def _gathered(x: torch.Tensor, group) -> torch.Tensor:
    rows = x.new_empty((x.shape[0] * group.size(), *x.shape[1:]))
    dist.all_gather_single(rows, x.contiguous(), group=group)
    return rows


def _reduce_scattered(x: torch.Tensor, group) -> torch.Tensor:
    if x.shape[0] % group.size():
        raise ValueError(f"{x.shape[0]} rows cannot be scattered evenly over {group.size()} ranks")
    rows = x.new_empty((x.shape[0] // group.size(), *x.shape[1:]))
    dist.reduce_scatter_single(rows, x.contiguous(), group=group)
    return rows


class _CopyToRanks(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, group):
        ctx.group = group
        return x.view_as(x)

    @staticmethod
    def backward(ctx, grad):
        # Each rank's output depends on x, so x's gradient is the sum over the ranks' outputs: all-reduce.
        return _all_reduced(grad, ctx.group), None


class _SumOverRanks(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, group):
        return _all_reduced(x, group)

    @staticmethod
    def backward(ctx, grad):
        # What follows is computed alike on every rank, so each holds the whole gradient of the sum already, and the
        # sum passes it to every summand unchanged.
        return grad, None


class _GatherRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, group):
        ctx.group = group
        return _gathered(x, group)

    @staticmethod
    def backward(ctx, grad):
        # Every rank uses these rows for another part of the output, so a row's gradient is the sum over ranks, and it
        # belongs to the rank that the row came from: reduce-scatter.
        return _reduce_scattered(grad, ctx.group), None


class _ScatterSumOfRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, group):
        ctx.group = group
        return _reduce_scattered(x, group)

    @staticmethod
    def backward(ctx, grad):
        # Each output row lies on one rank and is the sum of that row on all of them: every rank needs every row's
        # gradient, unchanged: all-gather.
        return _gathered(grad, ctx.group), None
