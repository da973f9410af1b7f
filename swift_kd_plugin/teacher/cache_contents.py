"""What a folder of teacher caches holds, whether it is whole, and how it is emptied."""

import json
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from swift_kd_plugin.data.files import PART
from swift_kd_plugin.errors import KDError
from swift_kd_plugin.teacher.cache_identity import VERSION, CacheIdentity
from swift_kd_plugin.teacher.cache_shards import Shard, read_shard
from swift_kd_plugin.teacher.teacher_cache import FOLDER_NAME, caches_in, folders_in
from swift_kd_plugin.teacher.weight_digests import REMEMBERED

OURS = re.compile(r"\d+-[0-9a-f]{32}\.safetensors")


@dataclass(frozen=True)
class Contents:
    """Of one teacher in a folder: `name` is that of its folder, `about` the names for people of its first shard."""

    name: str
    identity: CacheIdentity
    about: dict[str, str]
    shards: int
    samples: int
    tokens: int
    bytes: int

    @property
    def form(self) -> str:
        """Codec, its settings, and what else makes another teacher of the same weights."""
        parts = [self.identity.codec, *(f"{name} {value}" for name, value in sorted(self.identity.settings.items()))]
        parts += [self.identity.dtype] + [f"{self.identity.bits} bits"] * (self.identity.bits != 16)
        parts += [f"{len(self.identity.adapters)} adapters"] * bool(self.identity.adapters)
        parts += ["of an older version, no longer read"] * (self.identity.version != VERSION)
        return ", ".join([*parts, *(f"{name} {value}" for name, value in sorted(self.identity.built.items()))])


def read_contents(folder: Path) -> list[Contents]:
    """Of each teacher, its layers last. A sample that two writers have written counts once.

    Raises:
        KDError: a shard is damaged.
    """
    found = []
    for files in caches_in(existing(folder)):
        shards = [read_shard(file) for file in files]
        tokens = {key: count for shard in shards for key, count in _counts(shard)}
        found.append(
            Contents(
                files[0].parent.name,
                CacheIdentity.from_json(shards[0].identity),
                json.loads(shards[0].about),
                shards=len(shards),
                samples=len(tokens),
                tokens=sum(tokens.values()),
                bytes=sum(file.stat().st_size for file in files),
            )
        )
    return sorted(
        found, key=lambda one: (one.about.get("teacher", ""), one.identity.settings.get("layer", 0), one.name)
    )


def _counts(shard: Shard) -> Iterator[tuple[bytes, int]]:
    for number, key in enumerate(shard.keys):
        yield key, shard.starts[number + 1] - shard.starts[number]


def find_damage(folder: Path) -> Iterator[str | None]:
    """Reads every row of each shard: None, or the sentence for what is wrong."""
    for file in (file for files in caches_in(existing(folder)) for file in files):
        try:
            shard = read_shard(file)
            for number in range(len(shard.keys)):
                shard.read(number)
            yield None
        except KDError as error:
            yield str(error)


def clear(folder: Path, names: list[str]) -> tuple[int, int]:
    """Removes the shards of some teachers, by the names of their folders, and of all teachers what killed writers left.

    Only files that have the names of shards are touched, only folders that are empty then, and with the last teacher
    what was remembered of weights.

    Returns:
        How many files were removed, and their bytes.

    Raises:
        KDError: there is no such teacher.
    """
    there = {files[0].parent.name: files for files in caches_in(existing(folder))}
    if unknown := sorted(set(names) - there.keys()):
        raise KDError(f"{folder} has no teacher {unknown[0]}; it has {', '.join(there) or 'none'}.")
    left = [file for inner in folders_in(folder) for file in inner.iterdir() if PART.fullmatch(file.name)]
    shards = [file for name in names for file in there[name] if OURS.fullmatch(file.name)]
    size = 0
    for file in (*left, *shards):
        size += file.stat().st_size
        file.unlink()
    for inner in {file.parent for file in (*left, *shards)}:
        with suppress(OSError):  # it is not empty
            inner.rmdir()
    if not any(caches_in(folder)):
        (folder / REMEMBERED).unlink(missing_ok=True)
    return len(left) + len(shards), size


def existing(folder: Path) -> Path:
    """The folder. Raises KDError if it is none, or holds other things than what teachers said."""
    if not folder.is_dir():
        raise KDError(f"{folder} is no folder; give that of --kd_teacher_cache.")
    inside = sorted(folder.iterdir())
    if not inside or folders_in(folder):
        return folder
    if FOLDER_NAME.fullmatch(folder.resolve().name) and any(OURS.fullmatch(file.name) for file in inside):
        raise KDError(f"{folder} is what one teacher said; give the folder above, that of --kd_teacher_cache.")
    near = next((inner for inner in inside if inner.is_dir() and folders_in(inner)), None)
    hint = f" (did you mean {near}?)" if near else ""
    raise KDError(
        f"{folder} is no teacher cache: it holds {inside[0].name}{hint}; give the folder of --kd_teacher_cache."
    )
