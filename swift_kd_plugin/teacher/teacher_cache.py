"""A folder of what teachers said, by sample: any number of readers and writers, on any number of machines.

FOLDER/<identity>/<rank>-<random>.safetensors   shards (`cache_shards.py`), each written whole by one process
FOLDER/weights.json                             digests of models' files (`weight_digests.py`), which may be removed

What a folder holds is read from its shards, so that a writer that is killed loses its open shard and no more, and
writers never touch each other's shards.
"""

import json
import re
from collections.abc import Iterator, KeysView
from pathlib import Path
from tempfile import TemporaryFile
from uuid import uuid4

from swift_kd_plugin.errors import KDError
from swift_kd_plugin.teacher.cache_codecs import Values
from swift_kd_plugin.teacher.cache_identity import CacheIdentity
from swift_kd_plugin.teacher.cache_shards import Shard, ShardGone, read_shard, write_shard

SHARD_BYTES = 64 << 20
ENDING = ".safetensors"
FOLDER_NAME = re.compile("[0-9a-f]{16}")


class TeacherCache:
    """What one teacher said, with one codec. Rows are read from the disk when they are asked for, and what is written
    waits in memory until it fills a shard.

    Args:
        folder: of all teachers.
        about: names for people, put into each shard.
        rank: of this process, a part of its shards' names.

    Raises:
        KDError: a shard is damaged.
    """

    def __init__(self, folder: Path, identity: CacheIdentity, about: dict[str, str], rank: int = 0):
        self.identity, self.about, self.rank = identity, about, rank
        self.folder = folder / identity.folder
        self.shards: list[Shard] = []
        self.pending: dict[bytes, Values] = {}
        self._places: dict[bytes, tuple[int, int]] = {}
        self._files: set[str] = set()
        self._bytes = 0
        self.refresh()

    def __len__(self) -> int:
        return len(self._places | self.pending)

    def __contains__(self, key: bytes) -> bool:
        return key in self._places or key in self.pending

    @property
    def on_disk(self) -> KeysView[bytes]:
        """Keys of what other processes can read, too."""
        return self._places.keys()

    def file_of(self, key: bytes) -> Path | None:
        """The shard that holds a sample, if one does."""
        place = self._places.get(key)
        return None if place is None else self.shards[place[0]].file

    def refresh(self) -> None:
        """Takes up the shards that other processes have written since."""
        for file in shard_files(self.folder):
            if file.name in self._files:
                continue
            try:
                shard = read_shard(file)
            except ShardGone:  # since the folder was listed
                continue
            self._files.add(file.name)
            self.shards.append(shard)
            for number, key in enumerate(shard.keys):
                self._places.setdefault(key, (len(self.shards) - 1, number))

    def check_writable(self) -> None:
        """Raises KDError if its folder cannot be made, or takes no files."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with TemporaryFile(dir=self.folder):
                pass
        except OSError as error:
            raise KDError(
                f"--kd_teacher_cache: {self.folder} cannot be written ({error}); choose another place."
            ) from error

    def read(self, key: bytes) -> Values:
        """Of a sample that is there. Raises KDError if its shard is damaged."""
        if key in self.pending:
            return self.pending[key]
        shard, number = self._places[key]
        return self.shards[shard].read(number)

    def add(self, key: bytes, values: Values) -> None:
        """Raises KDError if a shard is full and cannot be written."""
        if key in self:
            return
        self.pending[key] = {name: value.clone() for name, value in values.items()}
        self._bytes += sum(value.numel() * value.element_size() for value in values.values())
        if self._bytes >= SHARD_BYTES:
            self.flush()

    def flush(self) -> None:
        """Writes what waits. Raises KDError if it cannot be written; it goes on waiting then."""
        if not self.pending:
            return
        file = self.folder / f"{self.rank}-{uuid4().hex}{ENDING}"
        write_shard(file, self.identity.to_json(), json.dumps(self.about), self.pending)
        self.pending, self._bytes = {}, 0
        self.refresh()


def shard_files(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(file for file in folder.iterdir() if file.suffix == ENDING and not file.name.startswith("."))


def folders_in(folder: Path) -> list[Path]:
    """Those of teachers."""
    inner = sorted(folder.iterdir()) if folder.is_dir() else []
    return [one for one in inner if FOLDER_NAME.fullmatch(one.name) and one.is_dir()]


def caches_in(folder: Path) -> Iterator[list[Path]]:
    """The shards of each teacher in a folder."""
    return filter(None, map(shard_files, folders_in(folder)))
