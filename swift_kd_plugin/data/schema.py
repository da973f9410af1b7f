"""Which keys each `type` of a data.yaml takes, with their types and defaults, and how a mistake in them is said."""

import difflib
from dataclasses import MISSING, dataclass, field, fields
from math import isfinite
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from swift_kd_plugin.errors import KDError

# A source is a file, the name of a dataset of the same YAML, an id that ms-swift loads, or a nested dataset.
Source = str | dict


@dataclass(frozen=True)
class Keys:
    """Keys of every type."""

    type: Literal["rows", "exp_noexp", "thinking_mix", "mix"]
    bad_rows: Literal["error", "drop"] | None = None
    keep: list[str] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class RowsKeys(Keys):
    source: Source
    columns: dict[str, str] = field(default_factory=dict)
    format: str = "auto"
    gold: str | None = None


@dataclass(frozen=True)
class ExpNoexpKeys(Keys):
    exp: Source | None = None
    noexp: Source | None = None
    on: str | None = None
    duplicates: Literal["refuse", "first", "all"] = "refuse"
    unmatched: Literal["error", "drop"] | None = None
    source: Source | None = None
    experience: str = "experience"
    place: Literal["system", "before", "after"] = "system"
    template: str = "{experience}"
    separator: str = "\n\n"
    response: Literal["exp", "gold", "none"] = "exp"
    gold: str = "gold"
    leaks: Literal["report", "drop"] = "report"
    quotes: Literal["report", "drop"] = "report"
    quote_patterns: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class ThinkingMixKeys(Keys):
    source: Source | None = None
    thinking: Source | None = None
    non_thinking: Source | None = None
    mode: Literal["thinking", "non_thinking", "keep"] | None = None
    mode_column: str | None = None
    thinking_share: float | None = None
    teacher: Literal["same", "thinking", "non_thinking"] = "same"
    switch: bool = False
    think_loss: float | None = None
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

    source: Source | None = None
    weight: float | None = None
    fraction: float | None = None


TYPES = {"rows": RowsKeys, "exp_noexp": ExpNoexpKeys, "thinking_mix": ThinkingMixKeys, "mix": MixKeys}


def read_keys(kind: type, given: dict[str, Any], where: str):
    """An instance of `kind` from a mapping. Raises KDError naming an unknown key, a missing one or a wrong type."""
    hints = get_type_hints(kind)
    for key, value in given.items():
        if key not in hints:
            raise KDError(f"{where} has the unknown key {key!r}{suggest(key, hints)}; known are {', '.join(hints)}.")
        if not fits(value, hints[key]):
            raise KDError(f"{where}: {key} is {value!r}; it must be {say(hints[key])}.")
    for spec in fields(kind):
        if spec.default is MISSING and spec.default_factory is MISSING and spec.name not in given:
            raise KDError(f"{where} lacks the key {spec.name!r}: {say(hints[spec.name])}.")
    return kind(**given)


def suggest(word: str, known) -> str:
    """`` (did you mean 'x'?)`` with the nearest known word, or nothing."""
    near = difflib.get_close_matches(str(word), [str(name) for name in known], 1)
    return f" (did you mean {near[0]!r}?)" if near else ""


def fits(value: Any, hint: Any) -> bool:
    """Whether a value from YAML is of the type that a hint names."""
    origin = get_origin(hint)
    if origin in (Union, UnionType):
        return any(fits(value, option) for option in get_args(hint))
    if origin is Literal:
        return any(value == option and type(value) is type(option) for option in get_args(hint))
    if origin is list:
        return isinstance(value, list) and all(fits(item, get_args(hint)[0]) for item in value)
    if origin is dict:
        of_key, of_value = get_args(hint)
        return isinstance(value, dict) and all(fits(k, of_key) and fits(v, of_value) for k, v in value.items())
    if hint is Any:
        return True
    if hint in (int, float):
        return isinstance(value, (int, hint)) and not isinstance(value, bool) and isfinite(value)
    return isinstance(value, hint)


def say(hint: Any) -> str:
    """A type hint in words."""
    names = {str: "a text", int: "a whole number", float: "a number", bool: "true or false", dict: "a mapping"}
    origin = get_origin(hint)
    if origin in (Union, UnionType):
        return " or ".join(say(option) for option in get_args(hint) if option is not type(None))
    if origin is Literal:
        return " or ".join(str(option) for option in get_args(hint) if option is not None)
    if origin is list:
        return f"a list, each item {say(get_args(hint)[0])}"
    return names.get(hint) or "a mapping"
