"""Numbers that change over training."""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Schedule:
    """A number that goes from `start` to `final` along `shape`; without `final` it stays at `start`."""

    start: float
    final: float | None = None
    shape: str = "constant"

    def at(self, progress: float) -> float:
        """The value when the share `progress` of training, 0 to 1, is done."""
        if not self.moves:
            return self.start
        progress = min(max(progress, 0.0), 1.0)
        if self.shape == "cosine":
            progress = (1 - math.cos(math.pi * progress)) / 2
        return self.start + (self.final - self.start) * progress

    @property
    def moves(self) -> bool:
        return self.final is not None and self.shape != "constant"

    def __str__(self) -> str:
        return f"{self.start:g} -> {self.final:g} ({self.shape})" if self.moves else f"{self.start:g}"
