"""Cells of the tables in the docs."""

import re
from collections.abc import Iterable
from typing import Any, Literal, get_args, get_origin


def in_code(values: Iterable[str]) -> str:
    return " ".join(f"`{value}`" for value in values)


def values_of(kind: Any) -> str:
    """The choices of an annotation, or the type as it is written in Python."""
    options = [kind, *get_args(kind)]
    chosen = [value for option in options if get_origin(option) is Literal for value in get_args(option)]
    if chosen:
        return in_code(chosen)
    kinds = [option for option in options if option in (bool, int, float, str, list[str])]
    return getattr(kinds[0], "__name__", str(kinds[0])) if kinds[0] != list[str] else "str …"


def default_of(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return str(value)
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def marked(text: str) -> str:
    """Flags and quoted values in the type of code."""
    text = re.sub(r"(?<![\w`])--\w+", r"`\g<0>`", text)
    return re.sub(r"'(\w+)'", r"`\1`", text)
