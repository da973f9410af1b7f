"""What a checkpoint says of itself: being written, or whole with the size of each of its files."""

import json
import os
import re
import shutil
from enum import Enum
from pathlib import Path

from swift_kd_plugin.data.files import move_aside, write_atomically
from swift_kd_plugin.errors import KDError

MANIFEST = "kd_files.json"
MERGED = "-merged"
NAME = re.compile(r"checkpoint-(\d+)")
# Writers in Rust and C++ (safetensors, torch) report a full disk in their own exceptions.
WRITE_FAILURE = re.compile(r"No space left on device|File too large|Disk quota exceeded|failed writing file")


class State(Enum):
    """What the files of a checkpoint tell."""

    WHOLE = "all files are there that were written"
    UNFINISHED = "its writer did not come to the end"
    DAMAGED = "a file is missing or has another size than was written"
    UNKNOWN = "it was written without the plugin, or asynchronously"


def step_of(folder: Path) -> int | None:
    """The step in a checkpoint's name; None for another name, such as checkpoint-4-merged or checkpoint-best."""
    found = NAME.fullmatch(folder.name)
    return int(found[1]) if found else None


def begin(folder: Path) -> Path | None:
    """Marks a checkpoint as being written. What stands in its place already, which would be mixed in or lost, is moved
    into the folder that is returned."""
    old = [place for place in (folder, merged(folder)) if place.is_dir() and any(place.iterdir())]
    aside = move_aside(folder.parent, old) if old else None
    folder.mkdir(parents=True, exist_ok=True)
    _write(folder, None)
    return aside


def finish(folder: Path) -> None:
    """Marks a checkpoint, and what was merged of it, as whole with the files that are there now."""
    for place in (merged(folder), folder):
        if place.is_dir():
            _write(place, {str(path.relative_to(place)): path.stat().st_size for path in _files(place)})


def state_of(folder: Path) -> State:
    """What a checkpoint's own files say."""
    try:
        files = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["files"]
    except FileNotFoundError:
        return State.UNKNOWN
    except (OSError, ValueError, KeyError, TypeError):
        return State.DAMAGED
    if files is None:
        return State.UNFINISHED
    present = {str(path.relative_to(folder)): path.stat().st_size for path in _files(folder)}
    return State.WHOLE if files.items() <= present.items() else State.DAMAGED


def merged(folder: Path) -> Path:
    """Where ms-swift puts the model into which a checkpoint's adapter is merged."""
    return folder.with_name(folder.name + MERGED)


def describe_failed_save(error: Exception, folder: Path, last_good: str | None, is_owner: bool) -> Exception:
    """Takes what was half-written away (on the owning rank) and returns the exception to raise."""
    if is_owner and state_of(folder) is State.UNFINISHED:
        for place in (folder, merged(folder)):
            shutil.rmtree(place, ignore_errors=True)
    reason = _find_write_failure(error)
    if reason is None:
        return error
    kept = f"the last good checkpoint is {last_good}" if last_good else "there is no earlier checkpoint"
    return KDError(f"Writing {folder} failed ({reason}); the half-written folder is removed, {kept}.")


def _write(folder: Path, files: dict[str, int] | None) -> None:
    write_atomically(folder / MANIFEST, json.dumps({"files": files}, indent=1) + "\n")


def _files(folder: Path) -> list[Path]:
    walked = [Path(where) / name for where, _, names in os.walk(folder) for name in names]
    return sorted(path for path in walked if path.is_file() and path.name != MANIFEST)


def _find_write_failure(error: BaseException | None) -> str | None:
    while error is not None:
        found = WRITE_FAILURE.search(str(error))
        if found:
            return found[0]
        if isinstance(error, OSError):
            return error.strerror or str(error)
        error = error.__cause__ or error.__context__
    return None
