"""Matrix products of half precision through fp32, on CPUs without instructions for them.

There torch 2.13 multiplies bf16 matrices 4 to 38 times more slowly than fp32 ones (AVX2, one thread). Both sum in fp32
and round once, so that a product differs by the order of its sums alone.
"""

import warnings
from collections.abc import Callable, Iterator
from types import ModuleType

import torch
from torch import Tensor

from swift_kd_plugin.ledger import Undo

# Multiplications from which on it pays: those of an output layer. Smaller products keep torch's order of sums.
LEAST = 2**26
# Elements of the larger operand that are in fp32 at a time.
SLAB_ELEMENTS = 2**22


def slow_dtypes() -> set[torch.dtype]:
    supported = {
        torch.bfloat16: torch.ops.mkldnn._is_mkldnn_bf16_supported,
        torch.float16: torch.ops.mkldnn._is_mkldnn_fp16_supported,
    }
    return {dtype for dtype, is_supported in supported.items() if not is_supported()}


def multiply(
    out: Tensor, a: Tensor, b: Tensor, given: Tensor | None = None, beta: float = 1, alpha: float = 1
) -> Tensor:
    """Writes beta * given + alpha * a @ b into `out`, rounded once.

    Args:
        out: [M, N].
        a: [M, K].
        b: [K, N].
        given: broadcasts to `out`, and may be `out` itself.
    """
    if given is not None:
        given = given.expand_as(out)
    rows, inner, columns = a.shape[0], a.shape[1], b.shape[1]
    if inner > max(rows, columns):
        total = out.new_zeros(rows, columns, dtype=torch.float32)
        for part in slabs(inner, rows + columns):
            total.addmm_(a[:, part].float(), b[part].float())
        write(out, total, given, beta, alpha)
    elif rows > columns:
        b = b.float()
        for part in slabs(rows, inner):
            write(out[part], a[part].float() @ b, None if given is None else given[part], beta, alpha)
    else:
        a = a.float()
        for part in slabs(columns, inner):
            write(out[:, part], a @ b[:, part].float(), None if given is None else given[:, part], beta, alpha)
    return out


def slabs(length: int, width: int) -> Iterator[slice]:
    step = max(1, SLAB_ELEMENTS // max(1, width))
    return (slice(start, start + step) for start in range(0, length, step))


def write(out: Tensor, product: Tensor, given: Tensor | None, beta: float, alpha: float) -> None:
    if alpha != 1:
        product.mul_(alpha)
    if given is not None and beta != 0:
        product.add_(given, alpha=beta)
    out.copy_(product)


def mm(a: Tensor, b: Tensor) -> Tensor:
    return multiply(a.new_empty(a.shape[0], b.shape[1]), a, b)


def mm_out(a: Tensor, b: Tensor, *, out: Tensor) -> Tensor:
    return multiply(out.resize_(a.shape[0], b.shape[1]), a, b)


def addmm(given: Tensor, a: Tensor, b: Tensor, *, beta=1, alpha=1) -> Tensor:
    return multiply(a.new_empty(a.shape[0], b.shape[1]), a, b, given, beta, alpha)


def addmm_(given: Tensor, a: Tensor, b: Tensor, *, beta=1, alpha=1) -> Tensor:
    return multiply(given, a, b, given, beta, alpha)


def bmm(a: Tensor, b: Tensor) -> Tensor:
    out = a.new_empty(a.shape[0], a.shape[1], b.shape[2])
    for part in slabs(len(a), max(1, a.shape[1] * a.shape[2], b.shape[1] * b.shape[2])):
        out[part] = a[part].float() @ b[part].float()
    return out


KERNELS = {"mm": mm, "mm.out": mm_out, "addmm": addmm, "addmm_": addmm_, "bmm": bmm}


def replace_products(module: ModuleType) -> Undo:
    slow = slow_dtypes()
    if not slow:
        return lambda: None
    library = torch.library.Library("aten", "IMPL")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Warning only once for all operators")
        for name, kernel in KERNELS.items():
            library.impl(name, choose_kernel(name, kernel, slow), "CPU", with_keyset=True)
    return library._destroy


def choose_kernel(name: str, kernel: Callable[..., Tensor], slow: set[torch.dtype]) -> Callable[..., Tensor]:
    """Takes `kernel` for large matrices of a slow type, and torch's own for others and for what it would refuse."""
    before = torch.library.get_kernel(f"aten::{name}", "CPU")
    dims = 3 if name == "bmm" else 2

    def multiply_matrices(keys, *args, **kwargs):
        a, b = args[-2:]
        if a.dtype in slow and can_be_multiplied(a, b, dims) and a.numel() * b.shape[-1] >= LEAST:
            tensors = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
            has_room = name != "addmm_" or args[0].shape == (a.shape[0], b.shape[1])
            if has_room and all(tensor.dtype is a.dtype for tensor in tensors):
                return kernel(*args, **kwargs)
        return before.call_boxed(keys, *args, **kwargs)

    return multiply_matrices


def can_be_multiplied(a: Tensor, b: Tensor, dims: int) -> bool:
    return a.dim() == b.dim() == dims and a.shape[:-2] == b.shape[:-2] and a.shape[-1] == b.shape[-2]
