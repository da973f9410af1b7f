"""Values from outside: JSON that is parsed without surprises, and checks that a value can be written again."""

import ast
import json
import warnings
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from math import isfinite
from typing import Any, NoReturn

from swift_kd_plugin.data.rows import RowError

MAX_DEPTH = 100
MAX_LITERAL = 1 << 20
SCALAR_TYPES = frozenset({str, int, bool, type(None)})
SHOWN_VALUE = 40
# What `datasets` can read of a stored value.
LEAST_WHOLE, MOST_WHOLE = -(2**63), 2**64 - 1


def _refuse_constant(name: str) -> NoReturn:
    raise RowError("unreadable", f"it holds {name}, which is not JSON")


_decode = json.JSONDecoder(parse_constant=_refuse_constant).decode


def decode_json(text: str, what: str = "it") -> Any:
    """The value of a JSON text, not checked further. Raises RowError, whose reason starts with `what`."""
    try:
        return _decode(text)
    except json.JSONDecodeError as error:
        at = f"column {error.colno}" if error.lineno == 1 else f"line {error.lineno}, column {error.colno}"
        raise RowError("unreadable", f"{what} is not JSON ({error.msg}, {at})") from error
    except RecursionError as error:
        raise RowError("unreadable", f"{what} is nested too deep") from error
    except RowError:
        raise
    except ValueError as error:  # Python's own limit
        raise RowError("unreadable", f"{what} holds a whole number with too many digits") from error


def parse_json(text: str, what: str = "it") -> Any:
    """The value of a JSON text, as `check_value` passes it. Raises RowError, whose reason starts with `what`."""
    value = decode_json(text, what)
    # Nothing else can hold half a surrogate pair, or be deep.
    if "\\ud" in text or "\\uD" in text or text.count("[") + text.count("{") > MAX_DEPTH:
        check_value(value, what)
    return value


def parse_text(text: str, what: str) -> Any:
    """The value of a text that is JSON or a Python literal. Raises RowError, whose reason starts with `what`."""
    try:
        return parse_json(text, what)
    except RowError as not_json:
        if len(text) > MAX_LITERAL:
            raise
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                return as_json(ast.literal_eval(text))
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            raise not_json from None


def check_value(value: Any, what: str = "it", depth: int = 0, stored: bool = False) -> None:
    """Raises RowError if a value is not one of JSON's, is nested too deep, or holds text that is not Unicode.

    The reason starts with `what`. Of what is stored `datasets` has to read the whole numbers, too.
    """
    kind = type(value)
    if kind is str:
        if not value.isascii():
            _check_text(value, what)
    elif kind is dict:
        if depth > MAX_DEPTH:
            raise RowError("unreadable", f"{what} is nested deeper than {MAX_DEPTH} levels")
        for key, item in value.items():
            if type(key) is not str:
                raise RowError("format", f"{what} holds an object with the key {shown(key)}, which is not text")
            if not key.isascii():
                _check_text(key, what)
            if type(item) is not str:
                check_value(item, what, depth + 1, stored)
            elif not item.isascii():
                _check_text(item, what)
    elif kind is list:
        if depth > MAX_DEPTH:
            raise RowError("unreadable", f"{what} is nested deeper than {MAX_DEPTH} levels")
        for item in value:
            check_value(item, what, depth + 1, stored)
    elif kind is int:
        if stored and not LEAST_WHOLE <= value <= MOST_WHOLE:
            raise RowError("format", f"{what} holds a whole number of more than 64 bits; give it as text")
    elif kind is float:
        if not isfinite(value):
            raise RowError("format", f"{what} holds {value}, which JSON does not have")
    elif kind not in SCALAR_TYPES:
        raise RowError("format", f"{what} holds {kind_of(value)}, which JSON does not have")


def _check_text(text: str, what: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        half = ascii(text[error.start])[1:-1]
        raise RowError("unreadable", f"{what} holds {half}, half of a character's surrogate pair") from error


def as_json(value: Any, depth: int = 0) -> Any:
    """A value as one of JSON's: dates and the like as text; None for bytes and for numbers that are not finite.

    Raises RowError if it is nested too deep.
    """
    if type(value) in SCALAR_TYPES:
        return value
    if depth > MAX_DEPTH:
        raise RowError("unreadable", f"it is nested deeper than {MAX_DEPTH} levels")
    if isinstance(value, dict):
        return {str(key): as_json(item, depth + 1) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [as_json(item, depth + 1) for item in value]
    if isinstance(value, float):
        return value if isfinite(value) else None
    return None if isinstance(value, bytes) else str(value)


def kind_of(value: Any) -> str:
    """What a person calls the type of a value: "a number", "an object"."""
    for kinds, name in _NAMES:
        if isinstance(value, kinds):
            return name
    return f"a {type(value).__name__}"


_NAMES = (
    (type(None), "null"),
    (bool, "true or false"),
    ((int, float, Decimal), "a number"),
    (str, "text"),
    (dict, "an object"),
    (list, "a list"),
    (bytes, "bytes"),
    ((date, datetime, time, timedelta), "a date or time"),
)


def shown(value: Any) -> str:
    """A value in a reason: short, and in characters that can be printed."""
    text = ascii(value) if isinstance(value, bytes) else repr(value)
    text = text.encode("utf-8", "backslashreplace").decode()
    return text if len(text) <= SHOWN_VALUE else text[:SHOWN_VALUE] + " ..."
