"""Keys of a file held against the annotations of a class, and how a mistake in them is said."""

from dataclasses import MISSING, fields
from math import isfinite
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from swift_kd_plugin.errors import KDError, suggest


def read_keys(kind: type, given: dict[str, Any], where: str):
    """An instance of `kind` from a mapping. Raises KDError naming an unknown key, a missing one or a wrong type."""
    hints = get_type_hints(kind)
    for key, value in given.items():
        if key not in hints:
            raise KDError(f"{where} has the unknown key {key!r}{suggest(key, hints)}; known are {', '.join(hints)}.")
        if not fits(value, hints[key]):
            raise KDError(f"{where}: {key} is {value!r}; it must be {wanted(value, hints[key])}.")
    for spec in fields(kind):
        if spec.default is MISSING and spec.default_factory is MISSING and spec.name not in given:
            raise KDError(f"{where} lacks the key {spec.name!r}: {describe_hint(hints[spec.name])}.")
    return kind(**given)


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


def wanted(value: Any, hint: Any) -> str:
    """What should stand in the place of a value that is of another type."""
    read_as_number = isinstance(value, (int, float)) and fits("", hint)
    return describe_hint(hint) + (", in quotes (YAML reads 2:2 as 122)" if read_as_number else "")


def describe_hint(hint: Any) -> str:
    """A type hint in words."""
    names = {str: "a text", int: "a whole number", float: "a number", bool: "true or false", dict: "a mapping"}
    origin = get_origin(hint)
    if origin in (Union, UnionType):
        return " or ".join(describe_hint(option) for option in get_args(hint) if option is not type(None))
    if origin is Literal:
        return " or ".join(str(option) for option in get_args(hint) if option is not None)
    if origin is list:
        return f"a list, each item {describe_hint(get_args(hint)[0])}"
    return names.get(hint) or "a mapping"
