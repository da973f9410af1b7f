"""Files that are written whole or not at all."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

from swift_kd_plugin.errors import KDError


@contextmanager
def written_whole(file: Path) -> Iterator[Path]:
    """A path to write to. It becomes the file at the end of the block, or is removed if that raises.

    Raises:
        KDError: it cannot be written.
    """
    # Not the process id: machines that share a folder may have the same ones.
    part = file.parent / f".{file.name}.{uuid4().hex}"
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        yield part
        os.replace(part, file)
    except OSError as error:
        raise KDError(
            f"{file} cannot be written: {error.strerror or error}; make room or choose another place."
        ) from error
    finally:
        if part.exists():
            part.unlink()


def write_atomically(file: Path, text: str) -> None:
    """Writes a file, whole or not at all. Raises KDError if it cannot be written."""
    with written_whole(file) as part:
        part.write_text(text, encoding="utf-8")
