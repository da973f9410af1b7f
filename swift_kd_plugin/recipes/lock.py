"""One run at a time writes into an output folder."""

import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from swift_kd_plugin.errors import KDError

LOCK = ".swift-kd.lock"


@contextmanager
def locked(folder: Path) -> Iterator[int]:
    """Holds the folder's lock; yields its file descriptor, which a child that inherits it holds as well.

    Raises:
        KDError: another run holds it, or the folder cannot be written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise KDError(f"the output folder {folder} cannot be used: {error.strerror}.") from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.pread(descriptor, 200, 0).decode("utf-8", "replace") or "another process"
            raise KDError(
                f"{folder} is in use by a run that was started as {holder}; wait for it, end it and its training "
                "processes, or choose another output_dir."
            ) from error
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()}".encode(), 0)
        yield descriptor
    finally:
        os.close(descriptor)
