"""Distillation losses: exact under tensor parallelism, in bounded memory. Imports torch only."""

from swift_kd_plugin.losses.api import token_divergence, topk_divergence
from swift_kd_plugin.losses.divergences import DIVERGENCES
from swift_kd_plugin.losses.fused_linear import fused_linear_divergence

__all__ = ["DIVERGENCES", "fused_linear_divergence", "token_divergence", "topk_divergence"]
