"""Which keys each `type` of a data.yaml takes, with their types and defaults."""

from dataclasses import dataclass, field
from typing import Any, Literal

# A source is a file, the name of a dataset of the same YAML, an id that ms-swift loads, or a nested dataset.
SourceSpec = str | dict


@dataclass(frozen=True)
class Keys:
    """Keys of every type."""

    type: Literal["rows", "exp_noexp", "thinking_mix", "mix"]
    bad_rows: Literal["error", "drop"] | None = None
    keep: list[str] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class RowsKeys(Keys):
    source: SourceSpec
    columns: dict[str, str] = field(default_factory=dict)
    format: str = "auto"
    gold: str | None = None
    thought: str | None = None


@dataclass(frozen=True)
class ExpNoexpKeys(Keys):
    exp: SourceSpec | None = None
    noexp: SourceSpec | None = None
    on: str | None = None
    duplicates: Literal["refuse", "first", "all"] = "refuse"
    unmatched: Literal["error", "drop"] | None = None
    source: SourceSpec | None = None
    experience: str = "experience"
    place: Literal["system", "before", "after"] = "system"
    template: str = "{experience}"
    separator: str = "\n\n"
    response: Literal["exp", "gold", "none"] = "exp"
    gold: str = "gold"
    thought: str | None = None
    leaks: Literal["report", "drop"] = "report"
    quotes: Literal["report", "drop"] = "report"
    quote_patterns: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class ThinkingMixKeys(Keys):
    source: SourceSpec | None = None
    thinking: SourceSpec | None = None
    non_thinking: SourceSpec | None = None
    mode: Literal["thinking", "non_thinking", "keep"] | None = None
    mode_column: str | None = None
    thinking_share: float | None = None
    teacher: Literal["same", "thinking", "non_thinking"] = "same"
    switch: bool = False
    think_loss: float | None = None
    thought: str | None = None
    without_thought: Literal["leave_out", "non_thinking"] = "leave_out"
    total: int | None = None
    replacement: bool = False
    seed: int = 42


@dataclass(frozen=True)
class MixKeys(Keys):
    sources: dict[str, Any] = field(default_factory=dict)
    total: int | None = None
    replacement: bool = False
    seed: int = 42


@dataclass(frozen=True)
class PartKeys:
    """Keys of a part of a mix that is not just a number."""

    source: SourceSpec | None = None
    weight: float | None = None
    fraction: float | None = None


TYPES = {"rows": RowsKeys, "exp_noexp": ExpNoexpKeys, "thinking_mix": ThinkingMixKeys, "mix": MixKeys}
