import torch
from swift_kd_plugin.losses.head import Head
class _Full(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x): return x
    @staticmethod
    def backward(ctx, g):
        from swift_kd_plugin.host.teacher import tensor_group
        g = g.contiguous()
        if tensor_group() is not None: torch.distributed.all_reduce(g, group=tensor_group())
        return g
def materialise(x):
    if not isinstance(x, Head): return x
    return sum(_Full.apply(i) @ w.t() for i, w in zip(x.inputs, x.weights)).float()
