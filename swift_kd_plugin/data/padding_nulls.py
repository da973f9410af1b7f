"""Nulls that `datasets` writes into tools and calls, for keys that other rows have: out where they mean nothing."""

import marshal
from typing import Any

NONE_OF_MARSHAL = marshal.dumps(None)

# In a schema: keywords that have a value, which may be null, and lists of values.
VALUES, LISTS = frozenset({"default", "const", "example"}), frozenset({"enum", "examples"})
# What maps names to schemas; the name of an argument may be that of a keyword.
MAPS = frozenset({"properties", "patternProperties", "$defs", "definitions", "dependentSchemas"})


def has_null(value: Any) -> bool:
    """Whether a key anywhere in a value of JSON holds null."""
    # Four times faster than to look: where marshal's sign for None is nowhere, not even in a text, there is none.
    try:
        return NONE_OF_MARSHAL in marshal.dumps(value) and _has_null(value)
    except ValueError:  # it is none of JSON's, or nested deep, which is said later
        return _has_null(value)


def _has_null(value: Any) -> bool:
    if type(value) is dict:
        for item in value.values():
            if item is None or (type(item) in (dict, list) and _has_null(item)):
                return True
    elif type(value) is list:
        return any(type(item) in (dict, list) and _has_null(item) for item in value)
    return False


def without_nulls_of_schemas(value: Any, path: str, left: list[str], is_map: bool = False) -> Any:
    """A tool without the keys that hold null, which no schema may; `left` gets those that may be meant."""
    if isinstance(value, list):
        return [without_nulls_of_schemas(item, f"{path}.{at}", left) for at, item in enumerate(value)]
    if not isinstance(value, dict):
        return value
    kept = {}
    for key, item in value.items():
        is_value = not is_map and (key in VALUES or key.startswith("x-") or (key in LISTS and item is not None))
        if item is None and not is_value:
            continue
        if is_value:
            if (item is None and not _allows_null(value)) or has_null(item):
                left.append(f"{path}.{key}")
            kept[key] = item
        else:
            kept[key] = without_nulls_of_schemas(item, f"{path}.{key}", left, not is_map and key in MAPS)
    return kept


def without_nulls_of_call(value: Any, schema: Any, path: str, left: list[str]) -> Any:
    """Arguments without those that hold null and that their function does not have; `left` gets the other nulls."""
    schema = schema if isinstance(schema, dict) else {}
    if isinstance(value, list):
        return [without_nulls_of_call(item, schema.get("items"), f"{path}.{at}", left) for at, item in enumerate(value)]
    if not isinstance(value, dict):
        return value
    properties, kept = schema.get("properties") or {}, {}
    for key, item in value.items():
        known = properties.get(key)
        if item is not None:
            kept[key] = without_nulls_of_call(item, known, f"{path}.{key}", left)
        elif known is not None or not properties or schema.get("additionalProperties"):
            kept[key] = None
            if not (key in (schema.get("required") or ()) and _allows_null(known or {})):
                left.append(f"{path}.{key}")
    return kept


def arguments_schema(tools: list[Any], name: str) -> Any:
    """The schema of the arguments of a function, None if there is none."""
    for tool in tools:
        function = tool.get("function") or tool
        if function.get("name") == name:
            return function.get("parameters") or function.get("input_schema")
    return None


def _allows_null(schema: dict[str, Any]) -> bool:
    kinds = schema.get("type")
    choices = [*(schema.get("anyOf") or ()), *(schema.get("oneOf") or ())]
    return (
        "null" in (kinds if isinstance(kinds, list) else [kinds])
        or bool(schema.get("nullable"))
        or None in (schema.get("enum") or ())
        or any(isinstance(choice, dict) and _allows_null(choice) for choice in choices)
    )
