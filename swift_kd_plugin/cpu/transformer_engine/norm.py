"""`LayerNorm` and `RMSNorm`, computed in fp32 at least."""

import torch
from torch import nn
from torch.nn import functional as F

from swift_kd_plugin.cpu.transformer_engine.base import TransformerEngineBaseModule, default_device
from swift_kd_plugin.cpu.transformer_engine.unsupported import refuse_options

NORMALIZATIONS = ("LayerNorm", "RMSNorm")


def normalize(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    *,
    eps: float,
    zero_centered_gamma: bool,
    normalization: str,
) -> torch.Tensor:
    """x [..., H] in any floating dtype to the same shape and dtype; float64 stays float64 inside.

    With zero_centered_gamma the scale is 1 + weight.
    """
    dtype = torch.promote_types(x.dtype, torch.float32)
    scale = weight.to(dtype) + 1 if zero_centered_gamma else weight.to(dtype)
    if normalization == "RMSNorm":
        return F.rms_norm(x.to(dtype), weight.shape, scale, eps).to(x.dtype)
    shift = None if bias is None else bias.to(dtype)
    return F.layer_norm(x.to(dtype), weight.shape, scale, shift, eps).to(x.dtype)


def norm_parameters(
    size: int, normalization: str, dtype: torch.dtype, device
) -> tuple[nn.Parameter, nn.Parameter | None]:
    """A weight [size], and for LayerNorm a bias [size]; see `reset_norm` for their values."""
    if normalization not in NORMALIZATIONS:
        raise ValueError(f"normalization is {normalization!r}: expected one of {NORMALIZATIONS}")
    weight = nn.Parameter(torch.empty(size, dtype=dtype, device=device))
    bias = nn.Parameter(torch.empty(size, dtype=dtype, device=device)) if normalization == "LayerNorm" else None
    return weight, bias


def reset_norm(weight: torch.Tensor, bias: torch.Tensor | None, zero_centered_gamma: bool) -> None:
    """Makes the normalisation the identity again, in place."""
    with torch.no_grad():
        weight.fill_(0.0 if zero_centered_gamma else 1.0)
        if bias is not None:
            bias.zero_()


class _Norm(TransformerEngineBaseModule):
    normalization: str

    def __init__(
        self,
        normalized_shape: int | None = None,
        eps: float = 1e-5,
        sequence_parallel: bool | None = None,
        params_dtype: torch.dtype | None = None,
        zero_centered_gamma: bool = False,
        hidden_size: int | None = None,
        device: torch.device | str | int | None = None,
        **options,
    ) -> None:
        super().__init__()
        refuse_options(self.normalization, options)
        size = normalized_shape if normalized_shape is not None else hidden_size
        if not isinstance(size, int):
            raise ValueError(f"{self.normalization} needs hidden_size as one integer, got {size!r}")
        self.eps = eps
        self.sequence_parallel = sequence_parallel
        self.zero_centered_gamma = zero_centered_gamma
        self.weight, self.bias = norm_parameters(
            size,
            self.normalization,
            params_dtype or torch.get_default_dtype(),
            default_device() if device is None else device,
        )
        self.reset_parameters()

    def reset_parameters(self, defer_init: bool = False) -> None:
        """Makes the layer the identity again."""
        if defer_init:
            return
        reset_norm(self.weight, self.bias, self.zero_centered_gamma)
        if self.sequence_parallel is not None:
            for parameter in self.parameters():
                parameter.sequence_parallel = self.sequence_parallel

    def forward(self, inp: torch.Tensor) -> torch.Tensor:
        """[..., H] to [..., H]."""
        return normalize(
            inp,
            self.weight,
            self.bias,
            eps=self.eps,
            zero_centered_gamma=self.zero_centered_gamma,
            normalization=self.normalization,
        )


class LayerNorm(_Norm):
    """y = (x - mean) / sqrt(var + eps) * weight + bias over the last dimension."""

    normalization = "LayerNorm"


class RMSNorm(_Norm):
    """y = x / sqrt(mean(x²) + eps) * weight over the last dimension."""

    normalization = "RMSNorm"
