"""Files that are written whole or not at all."""

import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

from swift_kd_plugin.errors import KDError

LOCK = ".swift-kd.lock"


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


@contextmanager
def locked(folder: Path) -> Iterator[int]:
    """Holds the lock of an output folder, into which one run at a time writes.

    Yields its file descriptor, which a child that inherits it holds as well.

    Raises:
        KDError: another run holds it, or the folder cannot be written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise KDError(f"{folder} cannot be written: {error.strerror}; choose another output folder.") from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.pread(descriptor, 200, 0).decode("utf-8", "replace") or "another process"
            raise KDError(
                f"{folder} is in use by a run that was started as {holder}; wait for it, end it and its "
                "processes, or choose another output folder."
            ) from error
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()}".encode(), 0)
        yield descriptor
    finally:
        os.close(descriptor)
