"""Files that are written whole or not at all, moved aside, locked, or not there."""

import difflib
import fcntl
import os
import re
import socket
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from uuid import uuid4

from swift_kd_plugin.errors import KDError

LOCK = ".swift-kd.lock"
PART = re.compile(r"\..+\.[0-9a-f]{32}\.swift-kd-part")


@contextmanager
def written_whole(file: Path) -> Iterator[Path]:
    """A path to write to. It becomes the file at the end of the block, or is removed if that raises.

    Raises:
        KDError: it cannot be written.
    """
    # Not the process id: machines that share a folder may have the same ones.
    part = file.parent / f".{file.name}.{uuid4().hex}.swift-kd-part"
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


def remove_parts(folder: Path) -> None:
    """Removes what processes that were killed in `written_whole` have left in a folder."""
    for path in folder.iterdir():
        if PART.fullmatch(path.name) and path.is_file():
            path.unlink()


def write_atomically(file: Path, text: str) -> None:
    """Writes a file, whole or not at all. Raises KDError if it cannot be written."""
    with written_whole(file) as part:
        part.write_text(text, encoding="utf-8")


def first_free(folder: Path, name: str) -> Path:
    """NAME-1 in a folder, or with the next number that is free."""
    number = 1
    while (path := folder / f"{name}-{number}").exists():
        number += 1
    return path


def move_aside(folder: Path, paths: Iterable[Path], name: str = "aside") -> Path:
    """Moves what stands in the way into a new folder beside it: nothing is deleted on doubt.

    Args:
        folder: where the new folder is made, as NAME-1, or with the next number that is free.

    Raises:
        KDError: it cannot be moved.
    """
    aside = first_free(folder, name)
    try:
        aside.mkdir(parents=True)
        for path in paths:
            path.rename(aside / path.name)
    except OSError as error:
        with suppress(OSError):  # it is not empty, or is not there
            aside.rmdir()
        raise KDError(f"{error.filename} cannot be moved into {aside}: {error.strerror}.") from error
    return aside


def is_local(path: str) -> bool:
    """Whether a name can only be a path: an id on a hub is OWNER/NAME."""
    return path.startswith(("/", ".", "~")) or path.count("/") > 1


def printable(file: Path) -> str:
    """A path whose bytes may be no text."""
    return str(file).encode("utf-8", "backslashreplace").decode()


def why_not_opened(file: Path, error: OSError) -> str:
    """A sentence that begins with the file, and names files that are called nearly so."""
    if file.is_dir():
        return f"{printable(file)} is a folder; name the files in it."
    if not isinstance(error, FileNotFoundError):
        return f"{printable(file)} cannot be read: {error.strerror}; check its permissions."
    if not file.parent.is_dir():
        return f"{printable(file)} does not exist, nor does its folder; check the path."
    try:
        names = sorted(os.listdir(file.parent))
    except OSError:  # a folder that may not be listed
        names = []
    near = [name for name in difflib.get_close_matches(file.name, names) if os.path.isfile(file.parent / name)]
    hint = f"did you mean {' or '.join(map(repr, near))} in the same folder?" if near else "check the path."
    return f"{printable(file)} does not exist; {hint}"


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
        why = "it is a file" if os.path.isfile(folder) else error.strerror
        raise KDError(f"{folder} cannot be written: {why}; choose another output folder.") from error
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


def is_locked(file: Path) -> bool:
    """Whether a process that lives holds an exclusive lock of a file."""
    try:
        descriptor = os.open(file, os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # a file system without locks
        return False
    finally:
        os.close(descriptor)
    return False
