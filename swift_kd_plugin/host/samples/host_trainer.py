"""The trainer as the plugin's functions see it: what they read of ms-swift's, and what `KDTrainer` adds to it."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Protocol

import torch
from torch import nn

from swift_kd_plugin.host.samples.kd_state import KDState


class HostTrainer(Protocol):
    """A running `KDTrainer`: attributes of ms-swift's, the plugin's own in `kd`, and what the plugin computes of both.

    The names in the first part are ms-swift's; `host/start/seams.py` lists them, and a test holds them against it.
    """

    args: Any
    template: Any
    config: Any
    bridge: Any
    optimizer: Any
    opt_param_scheduler: Any
    state: Any
    device: torch.device
    unwrapped_models: list[nn.Module]
    wrapped_models: list[nn.Module]
    peft_models: list[nn.Module]
    teacher_models: list[nn.Module]
    teacher_config: Any
    gkd_logits_topk: int | None
    steps_per_generation: int
    log_completions: bool
    use_teacher_api: bool
    call_event: Callable[..., None]
    load_teacher_model_context: Callable[[], AbstractContextManager]
    offload_context: Callable[..., AbstractContextManager]

    kd: KDState

    @property
    def training(self) -> bool:
        """In a train step, not in an evaluation."""

    def visit(self) -> int:
        """How often the present samples have been seen before."""

    def cycle(self) -> int:
        """Number of the present generation cycle."""

    def progress(self, ahead: int = 0) -> float:
        """The share of training that is done `ahead` steps from now."""

    def temperature_of_step(self, ahead: int) -> float:
        """The loss's temperature `ahead` train steps from now."""
