"""Tools in every usual form and under every name of their column."""

from typing import Any

from swift_kd_plugin.data.rows import RowError
from swift_kd_plugin.data.values import kind_of, parse_json, shown

TOOL_COLUMNS = ("tools", "teacher_tools")
# OpenAI's older name of the column, under which other things stand, too.
FUNCTIONS = frozenset({"functions", "teacher_functions"})
NAMES = ("name", "name_for_model")
SCHEMAS = frozenset({"parameters", "input_schema"})


def to_tools(value: Any, column: str) -> list[Any]:
    """A list of tools from a list, a single tool, or the JSON text of either; what is empty is no tool."""
    tools = _parsed(value)
    if isinstance(tools, list) and all(map(_is_usual, tools)):
        return tools
    tools = [_parsed(tool) for tool in (tools if isinstance(tools, list) else [tools])]
    tools = [tool for tool in tools if not _is_nothing(tool)]
    for number, tool in enumerate(tools, start=1):
        if _name_of(tool) is None:
            raise RowError("format", f"tool {number} of {column} {_why_none(tool)}")
    return tools


def _is_usual(tool: Any) -> bool:
    function = tool.get("function") if type(tool) is dict else None
    return type(function) is dict and type(name := function.get("name")) is str and bool(name) and not name.isspace()


def are_meant_as_tools(value: Any) -> bool:
    """Whether a column of FUNCTIONS holds tools, in a wrong form or none at all, and not numbers, prose or records."""
    value = _parsed(value)
    items = [_parsed(item) for item in value] if isinstance(value, list) else [value]
    names = isinstance(value, list) and any(isinstance(item, str) and not set(item) & set(" \n") for item in items)
    return all(map(_is_nothing, items)) or names or any(map(_is_meant_as_tool, items))


def look_like_tools(value: Any, column: str) -> bool:
    """Whether a column of a name that is not known holds nothing but tools."""
    if isinstance(value, str):
        value = _parsed(value) if value.startswith(("[", "{")) and '"name"' in value else None
    items = [_parsed(item) for item in (value if isinstance(value, list) else [value])]
    named = "tool" in column.lower() or "function" in column.lower()
    wanted = SCHEMAS | {"description"} if named else SCHEMAS
    return bool(items) and all(
        _name_of(item) is not None and wanted & bare(item).keys() and "arguments" not in bare(item) for item in items
    )


def same_tools(some: Any, others: Any) -> bool:
    """Whether two lists hold the same tools, in OpenAI's form or without what it has around a function."""
    if not (isinstance(some, list) and isinstance(others, list)):
        return some == others
    return list(map(bare, some)) == list(map(bare, others))


def bare(tool: Any) -> Any:
    if not isinstance(tool, dict):
        return tool
    function = tool["function"] if isinstance(tool.get("function"), dict) else tool
    return {key: value for key, value in function.items() if (key, value) != ("type", "function")}


def _name_of(tool: Any) -> str | None:
    if not isinstance(tool, dict):
        return None
    function = tool if tool.get("function") is None else tool["function"]
    names = [function.get(key) for key in NAMES] if isinstance(function, dict) else []
    return next((name for name in names if isinstance(name, str) and name.strip()), None)


def _why_none(tool: Any) -> str:
    if isinstance(tool, str):
        return f"is the text {shown(tool)}, not an object with a name"
    if not isinstance(tool, dict):
        return f"is {kind_of(tool)}, not an object"
    if tool.get("type", "function") != "function":
        return f"has the type {shown(tool['type'])} and no name; only functions with a name can be told to a model"
    function = tool.get("function")
    if function is not None and not isinstance(function, dict):
        return f"has {kind_of(function)} as its function, not an object with a name"
    keys = list(tool if function is None else function)
    return f"has no name; {'its keys are' if function is None else 'the keys of its function are'} {shown(keys)}"


def _is_nothing(tool: Any) -> bool:
    return not tool or (isinstance(tool, str) and tool.isspace())


def _is_meant_as_tool(item: Any) -> bool:
    if isinstance(item, str):
        return item.lstrip().startswith(("[", "{"))
    return isinstance(item, dict) and (bool(item.keys() & {*NAMES, "function"}) or item.get("type") == "function")


def _parsed(value: Any) -> Any:
    if isinstance(value, str):
        try:
            return parse_json(value)
        except RowError:
            return value
    return value
