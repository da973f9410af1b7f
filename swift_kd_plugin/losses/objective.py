"""What a run minimises: ce_alpha * CE + (1 - ce_alpha) * T^2 * D per token, over the course of training."""

from dataclasses import dataclass, field

from swift_kd_plugin.losses.divergences import check_params
from swift_kd_plugin.losses.schedules import Schedule

ALWAYS_ONE, NEVER = Schedule(1.0), Schedule(0.0)


@dataclass(frozen=True)
class TokenPolicy:
    """`name` is one of `POLICIES`; the other fields are of the policy that they are named after."""

    name: str = "none"
    rho: float = 0.2
    clip: float = 0.05


@dataclass(frozen=True)
class Objective:
    """The loss of a run; schedules are read at the share of training that is done.

    Args:
        divergence, params: a name in `DIVERGENCES` and its parameters, of which any number may be a schedule.
        mixed: ce_alpha * CE + (1 - ce_alpha) * D; otherwise D + ce_alpha * CE, as stock ms-swift's sft_alpha.
        t_squared: multiply D by the square of the temperature (Hinton et al. 2015), which keeps its gradient's size.
        tail: what becomes of ids that a top-k teacher does not list.

    Raises:
        ValueError: an unknown divergence, or a parameter that it does not have or that goes out of its range.
    """

    divergence: str
    params: dict[str, float | bool | Schedule] = field(default_factory=dict)
    temperature: Schedule = ALWAYS_ONE
    ce_alpha: Schedule = NEVER
    mixed: bool = False
    t_squared: bool = False
    tail: str = "bucket"
    policy: TokenPolicy = TokenPolicy()

    def __post_init__(self) -> None:
        for end in ("start", "final"):
            ends = {name: getattr(value, end, value) for name, value in self.params.items()}
            known = {name: value for name, value in ends.items() if value is not None and name != "clip"}
            check_params(self.divergence, known)

    def at(self, progress: float) -> "Settings":
        params = self.params | {name: schedule.at(progress) for name, schedule in self._scheduled.items()}
        if self.policy.name == "clip":
            params["clip"] = self.policy.clip
        temperature, ce_alpha = self.temperature.at(progress), self.ce_alpha.at(progress)
        weight = (1 - ce_alpha if self.mixed else 1.0) * (temperature**2 if self.t_squared else 1.0)
        return Settings(self.divergence, params, temperature, weight, ce_alpha, self.tail, self.policy)

    def moving(self, progress: float) -> dict[str, float]:
        """The values of the schedules that change over training."""
        schedules = {"temperature": self.temperature, "ce_alpha": self.ce_alpha, **self._scheduled}
        return {name: schedule.at(progress) for name, schedule in schedules.items() if schedule.moves}

    @property
    def _scheduled(self) -> dict[str, Schedule]:
        return {name: value for name, value in self.params.items() if isinstance(value, Schedule)}

    def __str__(self) -> str:
        scheduled = ", ".join(f"{name}={schedule}" for name, schedule in self._scheduled.items())
        fixed = "".join(f", {name}={value}" for name, value in self.params.items() if name not in self._scheduled)
        scale = " * T^2" if self.t_squared else ""
        name = f"{self.divergence}({scheduled})" if scheduled else self.divergence
        divergence = f"{name}{fixed} at T={self.temperature}{scale}"
        if self.ce_alpha == NEVER:
            return divergence
        factor = f"(1 - {self.ce_alpha}) * " if self.mixed else ""
        return f"{self.ce_alpha} * CE + {factor}{divergence}"


@dataclass(frozen=True)
class Settings:
    """An objective at one moment of training: every token's loss is weight * D + ce_weight * CE."""

    divergence: str
    params: dict
    temperature: float
    weight: float = 1.0
    ce_weight: float = 0.0
    tail: str = "bucket"
    policy: TokenPolicy = TokenPolicy()
