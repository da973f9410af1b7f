"""What a row has beside its turns, in the one form of it: tools, media, objects, template settings, numbers."""

from typing import Any

from swift_kd_plugin.data.rows import RowError
from swift_kd_plugin.data.values import kind_of, parse_json, shown

TOOL_NAMES = frozenset({"name", "name_for_model", "type"})
# The order matters to ms-swift.
OBJECT_KEYS = ("ref", "bbox", "bbox_type", "image_id")


def to_tools(value: Any, column: str) -> list[Any]:
    """A list of tools from a list, a single tool, or the JSON text of either; what is empty is no tool."""
    tools = _parsed(value)
    tools = [_parsed(tool) for tool in (tools if isinstance(tools, list) else [tools])]
    tools = [tool for tool in tools if tool and not (isinstance(tool, str) and tool.isspace())]
    for number, tool in enumerate(tools, start=1):
        if isinstance(tool, str):
            raise RowError("format", f"tool {number} of {column} is the text {shown(tool)}, not an object with a name")
        if not isinstance(tool, dict):
            raise RowError("format", f"tool {number} of {column} is {kind_of(tool)}, not an object")
        if not (isinstance(tool.get("function"), dict) or tool.keys() & TOOL_NAMES):
            raise RowError("format", f"tool {number} of {column} has no name; its keys are {shown(list(tool))}")
    return tools


def are_tools(value: Any) -> bool:
    """Whether a column holds tools, as the older `functions` of OpenAI does, and not something else of that name."""
    value = _parsed(value)
    items = value if isinstance(value, list) else []
    return bool(items) and all(isinstance(item, dict) and "name" in item for item in items)


def _parsed(value: Any) -> Any:
    if isinstance(value, str):
        try:
            return parse_json(value)
        except RowError:
            return value
    return value


def to_images(value: Any, column: str) -> list[dict[str, Any]]:
    """A list of objects with path and bytes, of which one may be None, from paths, URLs or such objects."""
    images = []
    for number, image in enumerate(_media_list(value), start=1):
        path, data = (image.get("path"), image.get("bytes")) if isinstance(image, dict) else (image, None)
        if not isinstance(path, (str, type(None))) or not isinstance(data, (bytes, type(None))):
            wrong = f"{kind_of(data)} as its bytes" if isinstance(data, str) else f"the form {shown(image)}"
            raise RowError("media", f"image {number} of {column} has {wrong}; give a path or a URL")
        images.append({"bytes": data, "path": path})
    return images


def to_paths(value: Any, column: str) -> list[str]:
    """A list of paths or URLs from one or more of them, or from objects with a path."""
    paths = [item.get("path") if isinstance(item, dict) else item for item in _media_list(value)]
    for number, path in enumerate(paths, start=1):
        if not isinstance(path, str):
            raise RowError("media", f"item {number} of {column} has no path")
    return paths


def _media_list(value: Any) -> list[Any]:
    if isinstance(value, str) and value.startswith("["):
        value = _parsed(value)
    if value == "":
        return []
    return value if isinstance(value, list) else [value]


def to_objects(value: Any, column: str) -> dict[str, Any] | None:
    """Grounding of objects in images as ms-swift orders it: boxes by their upper left and lower right corners."""
    objects = _object(value, column, "media")
    if not objects:
        return None
    objects = {key: objects[key] for key in OBJECT_KEYS if objects.get(key) is not None}
    boxes = objects.get("bbox")
    if not isinstance(boxes, list) or not all(_is_box(box) for box in boxes):
        raise RowError("media", f"{column} has no list bbox of boxes, each of 2 or 4 numbers")
    return objects | {"bbox": [_ordered(box) for box in boxes]}


def _is_box(box: Any) -> bool:
    return isinstance(box, list) and len(box) in (2, 4) and all(type(number) in (int, float) for number in box)


def _ordered(box: list[float]) -> list[float]:
    if len(box) == 2:
        return box
    (left, right), (top, bottom) = sorted(box[::2]), sorted(box[1::2])
    return [left, top, right, bottom]


def to_settings(value: Any, column: str) -> dict[str, Any] | None:
    """Settings of a chat template from an object or its JSON text."""
    return _object(value, column, "format")


def _object(value: Any, column: str, kind: str) -> dict[str, Any] | None:
    value = parse_json(value, f"its column {column!r}") if isinstance(value, str) else value
    if not isinstance(value, (dict, type(None))):
        raise RowError(kind, f"its column {column!r} is {kind_of(value)}, not an object")
    return value


def to_text(value: Any, column: str) -> str:
    if not isinstance(value, str):
        raise RowError("format", f"its column {column!r} is {kind_of(value)}, not text")
    return value


def to_number(value: Any, column: str) -> float:
    """A number from one or its text."""
    try:
        if not isinstance(value, bool):
            return float(value)
    except (TypeError, ValueError, OverflowError):
        pass
    raise RowError("format", f"its column {column!r} is {shown(value)}, not a number")
