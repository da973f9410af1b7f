"""`SplitAlongDim`: a split whose backward is one concatenation."""

import torch


class SplitAlongDim(torch.autograd.Function):
    """`SplitAlongDim.apply(x, dim, sizes)` to a tuple of views of x; sizes is a list, or one size for equal parts."""

    @staticmethod
    def forward(ctx, x, dim, sizes):
        ctx.dim = dim
        return torch.split(x, sizes, dim=dim)

    @staticmethod
    def backward(ctx, *grads):
        return torch.cat(grads, dim=ctx.dim), None, None
