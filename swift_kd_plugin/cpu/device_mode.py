"""Device arguments that say `cuda` mean the CPU: rewritten in every torch function by one TorchFunctionMode."""

import torch
from torch.overrides import TorchFunctionMode

CPU = torch.device("cpu")


def is_cuda(device: object) -> bool:
    """True for `cuda`, `cuda:1`, a cuda torch.device and a device index."""
    if isinstance(device, torch.device):
        return device.type == "cuda"
    if isinstance(device, str):
        return device.startswith("cuda")
    return isinstance(device, int) and not isinstance(device, bool)


class CudaMeansCpu(TorchFunctionMode):
    """Sends factories, `.to()`, `.cuda()` and `.pin_memory()` to the CPU; `.type()` keeps its `torch.cuda.` name.

    Megatron-Core recognises half-precision parameters by `tensor.type()`, for example torch.cuda.BFloat16Tensor.
    """

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if name in ("cuda", "pin_memory"):
            return args[0]
        if kwargs:
            kwargs = self._rewrite(kwargs)
        if name == "to" and len(args) > 1 and is_cuda(args[1]):
            args = (args[0], CPU, *args[2:])
        elif name == "type" and len(args) == 1 and not kwargs:
            return func(*args).replace("torch.", "torch.cuda.", 1)
        return func(*args, **kwargs)

    @staticmethod
    def _rewrite(kwargs: dict) -> dict:
        if is_cuda(kwargs.get("device")):
            kwargs = {**kwargs, "device": CPU}
        if kwargs.get("pin_memory"):
            kwargs = {**kwargs, "pin_memory": False}
        return kwargs
