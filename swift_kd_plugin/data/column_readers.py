"""What a row has beside its turns and tools, in the one form of it: media, objects, template settings, numbers."""

from contextlib import suppress
from typing import Any

from swift_kd_plugin.data.rows import RowError
from swift_kd_plugin.data.values import kind_of, parse_json, shown

# The order matters to ms-swift.
OBJECT_KEYS = ("ref", "bbox", "bbox_type", "image_id")


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
        with suppress(RowError):  # what is not JSON is a path
            value = parse_json(value)
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
