"""What a stage was run with, kept in its folder: a changed stage is refused, a finished one is not run again."""

import hashlib
import json
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from swift_kd_plugin.data.files import write_atomically
from swift_kd_plugin.errors import KDError
from swift_kd_plugin.host.train.run_record import STAGE as MARKER
from swift_kd_plugin.recipes.shell_command import LAUNCH_KEYS

OUTPUT_DIR = "{output_dir}"
# Where and how it runs.
LEFT_OUT = (*LAUNCH_KEYS, "output_dir", "kd_teacher_cache", "kd_teacher_cache_mode")
# Of a larger file, this many parts of BLOCK bytes are read.
HASHED_BYTES, PARTS, BLOCK = 64 << 20, 64, 64 << 10
INPUT_KEYS = ("model", "teacher_model", "adapters", "kd_teacher_adapters", "dataset", "val_dataset", "kd_datasets")


@dataclass
class StageRecord:
    """A stage's identity and how far it came.

    Args:
        keys: its flags, without those that say only where and how it runs (LEFT_OUT). What lies in the run's own folder
            is named from there, so that the folder may be moved.
        inputs: local files and folders that it reads, with a digest each.
        started: when its newest attempt began, in seconds since 1970.
        seconds: what its earlier attempts took, and once it is finished all of them.
    """

    keys: dict[str, Any]
    inputs: dict[str, str]
    started: float = 0.0
    seconds: float = 0.0
    finished: bool = False
    result: dict[str, Any] = field(default_factory=dict)

    def write(self, folder: Path) -> None:
        """Raises KDError if it cannot be written."""
        write_atomically(folder / MARKER, json.dumps(asdict(self), ensure_ascii=False, indent=2) + "\n")


def read_record(folder: Path) -> StageRecord | None:
    """The marker of a stage that was started, or None. Raises KDError if the folder is not a stage's."""
    try:
        return StageRecord(**json.loads((folder / MARKER).read_text(encoding="utf-8")))
    except FileNotFoundError:
        if folder.is_dir() and any(folder.iterdir()):
            raise KDError(
                f"{folder} holds files that are not of this command (it has no {MARKER}); choose another output_dir."
            ) from None
        return None
    except (OSError, ValueError, TypeError) as error:
        raise KDError(f"{folder / MARKER} cannot be read ({error}); choose another output_dir.") from error


def new_record(keys: dict[str, Any], root: Path) -> StageRecord:
    """The marker of a stage that is about to be run with these keys.

    Args:
        root: the folder of the whole run.
    """
    flags = {key: value for key, value in keys.items() if key not in LEFT_OUT and value is not None}
    inputs = {_from_root(path, root): digest for path, digest in _inputs(flags).items()}
    return StageRecord(_from_root(json.loads(json.dumps(flags)), root), inputs, started=time.time())


def find_change(old: StageRecord, new: StageRecord) -> str | None:
    """What differs first, in words, or None."""
    for key in sorted(old.keys.keys() | new.keys.keys()):
        before, now = old.keys.get(key), new.keys.get(key)
        if before != now:
            words = [
                f"without {key}" if value is None else f"with {key} {json.dumps(value)}" for value in (before, now)
            ]
            return f"it was run {words[0]} and is now to be run {words[1]}"
    for path in sorted(old.inputs.keys() | new.inputs.keys()):
        if old.inputs.get(path) != new.inputs.get(path):
            return f"its input {path} has changed since it was run"
    return None


def _from_root(value: Any, root: Path) -> Any:
    """A value whose paths into the run's folder begin with OUTPUT_DIR."""
    if isinstance(value, dict):
        return {key: _from_root(item, root) for key, item in value.items()}
    if isinstance(value, list):
        return [_from_root(item, root) for item in value]
    if not isinstance(value, str):
        return value
    for prefix in (str(root), str(root.resolve())):
        if value.startswith(f"{prefix}/"):
            return OUTPUT_DIR + value.removeprefix(prefix)
    return value


def _inputs(keys: dict[str, Any]) -> dict[str, str]:
    """Digests of the local files and folders that the keys name, and of the files that named datasets read."""
    values = {key: keys[key] if isinstance(keys[key], list) else [keys[key]] for key in INPUT_KEYS if key in keys}
    names = [str(name) for items in values.values() for name in items]
    paths = {name.partition("#")[0]: Path(name.partition("#")[0]).expanduser() for name in names}
    if "kd_datasets" in keys:
        # `datasets` and pandas, which `swift-kd --help` does without.
        from swift_kd_plugin.data.build import sources_of
        from swift_kd_plugin.data.data_yaml import read_data_yaml
        from swift_kd_plugin.data.dataset_specs import File

        nodes = read_data_yaml(keys["kd_datasets"])
        for name in {name.partition("#")[0] for name in names} & nodes.keys():
            paths |= {str(s.path): s.path for s in sources_of(nodes[name]) if isinstance(s, File)}
    return {name: _digest(path) for name, path in paths.items() if path.exists()}


def _digest(path: Path) -> str:
    """Of a file its content, or of a large one its size and parts of its content; of a folder that of its files."""
    files = sorted(file for file in path.iterdir() if file.is_file()) if path.is_dir() else [path]
    digest = hashlib.blake2b(digest_size=16)
    for file in files:
        size = file.stat().st_size
        digest.update(f"{file.name} {size} ".encode())
        with file.open("rb") as content:
            if size <= HASHED_BYTES:
                digest.update(content.read())
                continue
            for part in range(PARTS + 1):
                content.seek((size - BLOCK) * part // PARTS)
                digest.update(content.read(BLOCK))
    return digest.hexdigest()
