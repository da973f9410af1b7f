"""Rows of `datasets` as they were before Arrow: without the keys that it fills with null where a row lacks them."""

from typing import Any

from datasets import Features, Json, LargeList, List

ANY_JSON = (
    "`datasets` has read its texts that are JSON, such as '007' or 'null', as numbers and nulls, because other rows "
    "have no text there; give the file itself, or text in every row"
)


def without_padding(raw: dict[str, Any], features: Features | None) -> dict[str, Any]:
    """A row without keys that hold null only because another row has them; a null in a column of JSON stays."""
    if features is None:
        return raw
    return {name: _without(value, features.get(name)) for name, value in raw.items()}


def _without(value: Any, feature: Any) -> Any:
    if isinstance(feature, dict) and isinstance(value, dict):
        return {key: _without(item, feature.get(key)) for key, item in value.items() if item is not None}
    if isinstance(feature, (List, LargeList)) and isinstance(value, list):
        return [_without(item, feature.feature) for item in value]
    return value


def mixed_columns(raw: dict[str, Any], features: Features | None) -> list[str]:
    """Columns of mixed types, in which `datasets` takes a text that is JSON for its value."""
    columns = [name for name, feature in (features or {}).items() if isinstance(feature, Json)]
    return [name for name in columns if isinstance(raw.get(name), (bool, int, float))]
