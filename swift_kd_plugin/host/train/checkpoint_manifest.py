"""What a checkpoint says of itself: being written, or whole with the size of each of its files."""

import json
import os
import re
import shutil
from enum import Enum
from pathlib import Path
from typing import Any

from swift_kd_plugin.data.files import move_aside, write_atomically
from swift_kd_plugin.errors import KDError

MANIFEST = "kd_files.json"
MERGED = "-merged"
# What reading a manifest raises that is none.
UNREADABLE = (OSError, ValueError, KeyError, TypeError, RecursionError)
LAST = "last-checkpoint"  # ms-swift's link to the checkpoint that was written whole last
MANIFEST_FILE = re.compile(r"checkpoint-(0|[1-9][0-9]*)")  # as ms-swift writes it
# Writers in Rust and C++ (safetensors, torch) report a full disk in their own exceptions.
WRITE_FAILURE = re.compile(r"No space left on device|File too large|Disk quota exceeded|failed writing file")
CUT_OFF = re.compile(r"inline_container.*unexpected pos")  # torch's word for a file that the disk did not take wholly


class State(Enum):
    """What the files of a checkpoint tell."""

    WHOLE = "all files are there that were written"
    UNFINISHED = "its writer did not come to the end"
    DAMAGED = "a file is missing or has another size than was written"
    UNKNOWN = "nothing but ms-swift's link can tell"


def step_of(folder: Path) -> int | None:
    """The step in a checkpoint's name; None for another name, such as checkpoint-4-merged or checkpoint-best."""
    match = MANIFEST_FILE.fullmatch(folder.name)
    return int(match[1]) if match else None


def read_saved_args(folder: Path) -> dict[str, Any]:
    """The flags of the run that wrote a checkpoint; empty for one of another program."""
    file = folder / "args.json"
    if not file.is_file():
        return {}
    try:
        saved = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise KDError(f"{file} is not valid JSON: {error}.") from error
    return saved if isinstance(saved, dict) else {}


def projected_pairs(args: dict[str, Any]) -> list[tuple[int, int]]:
    """The pairs of layers whose projections a run with these flags trains."""
    pairs, sizes = args.get("kd_feature_pairs"), args.get("kd_feature_sizes")
    return [tuple(pair) for pair in pairs] if pairs and sizes[0] != sizes[1] else []


def make_room(folder: Path) -> Path | None:
    """Moves what stands in a checkpoint's place, which would be mixed in or lost, into the folder that is returned."""
    old = [place for place in (folder, merged_folder(folder)) if place.is_dir() and any(place.iterdir())]
    return move_aside(folder.parent, old) if old else None


def begin(folder: Path) -> None:
    """Marks a checkpoint as being written."""
    folder.mkdir(parents=True, exist_ok=True)
    _write(folder, None, linked_before=linked(folder.parent) == folder)


def finish(folder: Path) -> None:
    """Marks a checkpoint, and what was merged of it, as whole with the files that are there now."""
    for place in (merged_folder(folder), folder):
        if place.is_dir():
            _write(place, {str(path.relative_to(place)): path.stat().st_size for path in _files(place)})


def state_of(folder: Path) -> State:
    """What a checkpoint's own files say."""
    try:
        manifest = _read(folder)
        files = manifest["files"]
    except FileNotFoundError:
        return State.UNKNOWN
    except UNREADABLE:
        return State.DAMAGED
    if files is None:
        # A link that was set after the writing had begun was set when all was written.
        new_link = linked(folder.parent) == folder and not manifest.get("linked_before")
        return State.UNKNOWN if new_link else State.UNFINISHED
    return State.DAMAGED if first_damage(folder, files) else State.WHOLE


def first_damage(folder: Path, files: Any) -> str | None:
    """What is wrong with a checkpoint, held against the sizes in its manifest; None if nothing is."""
    if not isinstance(files, dict) or not files:
        return f"{MANIFEST} lists no files"
    for name, size in sorted(files.items()):
        try:
            actual_size = (folder / name).stat().st_size
        except OSError as error:
            return f"{name}: {error.strerror}"
        if actual_size != size:
            return f"{name} has {actual_size:,} bytes in place of {size:,}"
        if not os.access(folder / name, os.R_OK):
            return f"{name} may not be read"
    return None


def describe_damage(folder: Path) -> str:
    """A damaged checkpoint's reason, in words."""
    try:
        return first_damage(folder, _read(folder)["files"]) or ""
    except UNREADABLE:
        return f"{MANIFEST} cannot be read"


def linked(folder: Path) -> Path | None:
    """The checkpoint that ms-swift's link in a run's folder names, whether it is there or not."""
    link = folder / LAST
    return folder / Path(os.readlink(link)).name if link.is_symlink() else None


def merged_folder(folder: Path) -> Path:
    """Where ms-swift puts the model into which a checkpoint's adapter is merged."""
    return folder.with_name(folder.name + MERGED)


def describe_failed_save(error: BaseException, folder: Path, last_good: str | None, began: bool) -> BaseException:
    """Takes what was half-written away and returns the exception to raise.

    Args:
        last_good: the checkpoint before it, if that is known to be whole.
        began: whether this rank has begun the checkpoint, so that what is there is its own.
    """
    if began:
        for place in (folder, merged_folder(folder)):
            shutil.rmtree(place, ignore_errors=True)
    reason = _find_write_failure(error)
    if reason is None:
        return error
    notes = ["the half-written folder is removed"] if began else []
    notes += [f"the last good checkpoint is {last_good}"] if last_good else []
    return KDError(f"Writing {folder} failed ({reason}); {', '.join([*notes, 'make room'])}.")


def _read(folder: Path) -> Any:
    return json.loads((folder / MANIFEST).read_text(encoding="utf-8"))


def _write(folder: Path, files: dict[str, int] | None, **more: bool) -> None:
    write_atomically(folder / MANIFEST, json.dumps({"files": files, **more}, indent=1) + "\n")


def _files(folder: Path) -> list[Path]:
    walked = [Path(where) / name for where, _, names in os.walk(folder) for name in names]
    return sorted(path for path in walked if path.is_file() and path.name != MANIFEST)


def _find_write_failure(error: BaseException | None) -> str | None:
    while error is not None:
        match = WRITE_FAILURE.search(str(error))
        if match:
            return match[0]
        if CUT_OFF.search(str(error)):
            return "a file was not taken to its end, as by a full disk"
        if isinstance(error, OSError):
            return error.strerror or str(error)
        error = error.__cause__ or error.__context__
    return None
