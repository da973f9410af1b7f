"""The files and folders that a recipe reads: made where the recipe says how, and looked for where it was meant."""

import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from swift_kd_plugin.config.typed_keys import read_keys
from swift_kd_plugin.errors import KDError
from swift_kd_plugin.recipes.shell_command import PREPARE, Where

INPUTS = (
    *("model", "teacher_model", "adapters", "kd_teacher_adapters", "mcore_model", "mcore_adapter", "dataset"),
    *("val_dataset", "kd_datasets", "external_plugins", "custom_dataset_info"),
)
Say = Callable[[str], None]


@dataclass(frozen=True)
class Preparation:
    """The key `prepare`.

    Args:
        folder: of what a run may lack.
        script: a Python file that fills the folder, which is its argument.
    """

    folder: str
    script: str


def provide_inputs(keys: Mapping[str, Any], where: Where, file: Path, say: Say) -> None:
    """Has what is missing made, as `prepare` says.

    Args:
        where: the place of a key in words.
        file: the recipe.

    Raises:
        KDError: a path is none here, and would be one from another folder; the script fails.
    """
    _check_folder(keys, where, file)
    if keys.get(PREPARE) is None:
        return
    wanted = read_keys(Preparation, keys[PREPARE], f"{where(PREPARE)}: {PREPARE}")
    folder = Path(wanted.folder)
    missing = [path for _, path in _paths(keys) if folder in (path, *path.parents) and not path.exists()]
    if not missing:
        return
    if not Path(wanted.script).is_file():
        raise KDError(
            f"{where(PREPARE)}: {PREPARE} names {wanted.script}, which is to make {missing[0]}, and is not there."
        )
    say(f"{missing[0]} is not there: python {wanted.script} {wanted.folder}")
    code = subprocess.run([sys.executable, wanted.script, wanted.folder], check=False).returncode
    if code:
        raise KDError(f"{where(PREPARE)}: {wanted.script} ended with exit code {code}; its own message stands above.")


def _check_folder(keys: Mapping[str, Any], where: Where, file: Path) -> None:
    """Whether the current folder is the one from which the recipe's paths begin."""
    for key, path in _paths(keys):
        if path.is_absolute() or path.exists() or len(path.parts) < 2:
            continue
        for folder in file.resolve().parents:
            if (folder / path).exists():
                raise KDError(
                    f"{where(key)}: {key} {path} is not in the current folder, {Path.cwd()}, but in {folder}; paths of "
                    f"a recipe begin in the current folder, so start it from there (cd {folder})."
                )


def _paths(keys: Mapping[str, Any]) -> Iterator[tuple[str, Path]]:
    """What may be a file or folder, by its key."""
    for key in INPUTS:
        value = keys.get(key)
        for name in value if isinstance(value, list) else [value]:
            if isinstance(name, str):
                yield key, Path(name if Path(name).exists() else name.partition("#")[0]).expanduser()
