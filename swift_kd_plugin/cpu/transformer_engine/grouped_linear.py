"""`GroupedLinear`: one linear layer per local expert, applied to consecutive groups of rows."""

from collections.abc import Sequence

import torch
from torch.nn import functional as F

from swift_kd_plugin.cpu.transformer_engine.linear_base import LinearBase


class GroupedLinear(LinearBase):
    """x [tokens, in], rows sorted by expert, to [tokens, out].

    As in Transformer Engine, there is no communication inside: parallel_mode and the group only set the sizes, and the
    host's token dispatcher moves the data. An expert without tokens gets a zero gradient, not None.

    Parameters: `weight{i}` [out, in] and `bias{i}` [out] of expert i, of this rank. Raises as LinearBase does.
    """

    def __init__(self, num_gemms: int, in_features: int, out_features: int, *args, **kwargs) -> None:
        self.num_gemms = num_gemms  # before the parent's constructor, which creates all parameters
        super().__init__(in_features, out_features, *args, **kwargs)

    def _names(self, kind: str) -> list[str]:
        return [f"{kind}{i}" for i in range(self.num_gemms)]

    def forward(
        self, inp: torch.Tensor, m_splits: Sequence[int] | torch.Tensor, is_first_microbatch: bool | None = None
    ):
        """[..., in] to [..., out], or (output, [bias of each expert]) with return_bias.

        Args:
            m_splits: rows of each expert, a list or a tensor of `num_gemms` integers.

        Raises:
            ValueError: m_splits that do not add up to the rows.
        """
        sizes = m_splits.tolist() if isinstance(m_splits, torch.Tensor) else [int(size) for size in m_splits]
        rows = inp.reshape(-1, inp.shape[-1])
        if len(sizes) != self.num_gemms or sum(sizes) != rows.shape[0]:
            raise ValueError(f"m_splits {sizes} must hold {self.num_gemms} sizes that add up to {rows.shape[0]} rows")
        biases = self.all("bias") if self.apply_bias else [None] * self.num_gemms
        groups = zip(rows.split(sizes), self.all("weight"), biases, strict=True)
        out = torch.cat([F.linear(group, weight, bias) for group, weight, bias in groups])
        out = out.view(*inp.shape[:-1], self.out_features)
        return (out, self.all("bias")) if self.return_bias else out
