"""What an image that cannot be read is called: readers of images name an object in memory."""

import re
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image

from swift_kd_plugin.data.columns import IMAGE_COLUMNS
from swift_kd_plugin.errors import named_line

IN_MEMORY = re.compile(r"<_io\.BytesIO object at 0x[0-9a-f]+>")


def say_why(error: Exception, row: Mapping[str, Any]) -> str:
    """The error in one line, with the image that it is about."""
    line = named_line(error)
    if not IN_MEMORY.search(line):
        return line
    images = [image for name in IMAGE_COLUMNS for image in row.get(name) or ()]
    problems = (_problem(number, image) for number, image in enumerate(images, start=1))
    return next(filter(None, problems), IN_MEMORY.sub("one of its images", line))


def _problem(number: int, image: Any) -> str | None:
    """Why an image cannot be opened; None if it can, or if it lies elsewhere."""
    path, data = (image.get("path"), image.get("bytes")) if isinstance(image, dict) else (image, None)
    local = isinstance(path, str) and not path.startswith(("http", "data:")) and len(path) < 4096
    if data is None and not local:
        return None
    name = f"the image {path}" if local else f"image {number} of the row"
    if data is None and not Path(path).expanduser().is_file():
        return f"{name} does not exist"
    try:
        Image.open(BytesIO(data) if data is not None else Path(path).expanduser()).close()
    except OSError:
        return f"{name} is no image that can be read"
    return None
