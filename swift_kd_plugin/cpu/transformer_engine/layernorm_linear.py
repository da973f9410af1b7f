"""`LayerNormLinear`: a normalisation and the linear layer behind it."""

import torch

from swift_kd_plugin.cpu.transformer_engine.linear import Linear
from swift_kd_plugin.cpu.transformer_engine.norm import norm_parameters, normalize, reset_norm
from swift_kd_plugin.cpu.transformer_engine.unsupported import refuse_options


class LayerNormLinear(Linear):
    """x [..., in] to Linear(norm(x)) [..., out].

    The returned values are, in Transformer Engine's order, `out`, then `bias` with return_bias, then the norm's output
    with return_layernorm_output; a lone `out` is no tuple. The norm's output is this rank's part of the sequence, also
    with sequence_parallel. Hosts may set `return_layernorm_output` at any time.

    Parameters: those of Linear, `layer_norm_weight` [in] and, for LayerNorm, `layer_norm_bias` [in].
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        eps: float = 1e-5,
        *,
        normalization: str = "LayerNorm",
        return_layernorm_output: bool = False,
        return_layernorm_output_gathered: bool = False,
        zero_centered_gamma: bool = False,
        **linear,
    ) -> None:
        refuse_options("LayerNormLinear", {"return_layernorm_output_gathered": return_layernorm_output_gathered})
        if linear.get("parallel_mode") == "row":
            raise ValueError("LayerNormLinear cannot be row-parallel: the norm needs all inputs on each rank")
        # Before the parent's constructor, which creates all parameters.
        self.eps = eps
        self.normalization = normalization
        self.zero_centered_gamma = zero_centered_gamma
        self.return_layernorm_output = return_layernorm_output
        super().__init__(in_features, out_features, **linear)

    def _create_parameters(self, dtype: torch.dtype, device) -> None:
        self.layer_norm_weight, self.layer_norm_bias = norm_parameters(
            self.in_features, self.normalization, dtype, device
        )
        super()._create_parameters(dtype, device)

    def reset_parameters(self, defer_init: bool = False) -> None:
        """Makes the norm the identity, initialises the linear layer, and marks all for Megatron-Core."""
        super().reset_parameters(defer_init)
        if defer_init:
            return
        reset_norm(self.layer_norm_weight, self.layer_norm_bias, self.zero_centered_gamma)
        for parameter in (self.layer_norm_weight, self.layer_norm_bias):
            if parameter is not None:
                # The norm sees this rank's rows only, so Megatron-Core must sum its gradient over the ranks.
                parameter.sequence_parallel = self.sequence_parallel

    def forward(self, inp: torch.Tensor, is_first_microbatch: bool | None = None, **options):
        """[..., in] to `out`, or (out[, bias][, norm output])."""
        refuse_options("LayerNormLinear.forward", options)
        normed = normalize(
            inp,
            self.layer_norm_weight,
            self.layer_norm_bias,
            eps=self.eps,
            zero_centered_gamma=self.zero_centered_gamma,
            normalization=self.normalization,
        )
        results = [self.project(normed)]
        if self.return_bias:
            results.append(self.bias)
        if self.return_layernorm_output:
            results.append(normed)
        return tuple(results) if len(results) > 1 else results[0]
