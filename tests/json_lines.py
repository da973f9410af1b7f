"""Files with a JSON object on each line."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any


def read_json_lines(file: Path) -> list[Any]:
    with file.open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def write_json_lines(file: Path, rows: Iterable[Any]) -> Path:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file
