"""Rows as .jsonl that ms-swift and other tools read."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from swift_kd_plugin.data.columns import IMAGE_COLUMNS, PLACE_COLUMNS
from swift_kd_plugin.data.files import written_whole
from swift_kd_plugin.data.rows import Place, Row
from swift_kd_plugin.errors import KDError


def public_row(row: Row) -> dict[str, Any]:
    """A row as it is written: the source's own columns beside ours. Raises KDError if it holds what JSON cannot."""
    ours = {name: value for name, value in row.items() if name not in PLACE_COLUMNS and value is not None}
    for name in IMAGE_COLUMNS:
        if any(image.get("bytes") is not None for image in ours.get(name, ())):
            raise KDError(f"{Place.of(row)} holds an image as bytes, which JSON cannot; give the path of a file.")
        if name in ours:
            ours[name] = [image["path"] for image in ours[name]]
    return {**row.get("columns", {}), **ours}


def write_jsonl(file: Path, rows: Iterable[Row]) -> int:
    """Writes rows, one per line, whole or not at all. Returns how many."""
    count = 0
    with written_whole(file) as part, open(part, "w", encoding="utf-8") as out:
        for row in rows:
            out.write(json.dumps(public_row(row), ensure_ascii=False) + "\n")
            count += 1
    return count
