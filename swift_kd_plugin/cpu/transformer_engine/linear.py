"""`Linear`: y = x Wᵀ + b, whole or split over tensor-parallel ranks."""

import torch
from torch.nn import functional as F

from swift_kd_plugin.cpu.transformer_engine import collectives
from swift_kd_plugin.cpu.transformer_engine.linear_base import LinearBase
from swift_kd_plugin.cpu.transformer_engine.unsupported import refuse_options


class Linear(LinearBase):
    """x [..., in] to y [..., out]; the first dimension is the sequence.

    parallel_mode "column" splits the outputs over `tp_group` and "row" the inputs; None is one whole layer. With
    sequence_parallel, a column layer gathers the sequence first and a row layer scatters it after the sum.

    Parameters: `weight` [out, in] and `bias` [out], of this rank. Without a bias, `bias` is an empty tensor.

    Raises:
        ValueError: see LinearBase; and in forward, a split layer without a process group.
        NotOnCPUBackend: see LinearBase.
    """

    def forward(self, inp: torch.Tensor, is_first_microbatch: bool | None = None, **options):
        """[..., in] to [..., out], or (output, bias) with return_bias."""
        refuse_options("Linear.forward", options)
        out = self.project(inp)
        return (out, self.bias) if self.return_bias else out

    def project(self, x: torch.Tensor) -> torch.Tensor:
        """The product with its collectives, and the bias unless it is returned."""
        self.require_group()
        # The host may set parallel_mode to None later, to run the collectives itself, so it is read here.
        if self.parallel_mode == "column":
            enter = collectives.gather_rows if self.sequence_parallel else collectives.copy_to_ranks
            x = enter(x, self.tp_group)
        bias = self.bias if self.apply_bias else None
        if self.parallel_mode != "row":
            return F.linear(x, self.weight, bias)
        leave = collectives.scatter_sum_of_rows if self.sequence_parallel else collectives.sum_over_ranks
        out = leave(F.linear(x, self.weight), self.tp_group)
        return out if bias is None else out + bias
