"""Distillation losses: exact under tensor parallelism, in bounded memory. Imports torch only.

The table of the divergences is there without torch; the first use of a loss imports it.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from swift_kd_plugin.losses.divergences import DIVERGENCES

if TYPE_CHECKING:
    from swift_kd_plugin.losses.api import token_divergence, topk_divergence
    from swift_kd_plugin.losses.causal_lm import kd_loss
    from swift_kd_plugin.losses.fused_linear import fused_linear_divergence

__all__ = ["DIVERGENCES", "fused_linear_divergence", "kd_loss", "token_divergence", "topk_divergence"]
MODULE_OF = {
    "fused_linear_divergence": "fused_linear",
    "kd_loss": "causal_lm",
    "token_divergence": "api",
    "topk_divergence": "api",
}

if not TYPE_CHECKING:  # which would let type checkers take any name for one of this package

    def __getattr__(name: str) -> Any:
        if name not in MODULE_OF:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        globals()[name] = loss = getattr(import_module(f"{__name__}.{MODULE_OF[name]}"), name)
        return loss


def __dir__() -> list[str]:
    return sorted(__all__)
