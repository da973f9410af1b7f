"""Distillation losses: exact under tensor parallelism, in bounded memory. Imports torch only."""

from swift_kd_plugin.losses.api import token_divergence, topk_divergence
from swift_kd_plugin.losses.divergences import DIVERGENCES

__all__ = ["DIVERGENCES", "token_divergence", "topk_divergence"]
