"""A shard of a teacher cache: one safetensors file, written whole, with the rows of some samples.

keys     [samples, 16]  of each sample
counts   [samples]      of its tokens
digests  [samples, 8]   of its key and rows
and the values of a codec, [tokens, ...] each, sample after sample. The metadata say whose rows they are and hold a
digest of themselves, of the values' names and of the three tensors above.
"""

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
import xxhash
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from swift_kd_plugin.data.files import written_whole
from swift_kd_plugin.errors import KDError
from swift_kd_plugin.teacher.cache_codecs import Values

FORMAT = "swift-kd teacher cache 1"
KEY, DIGEST = 16, 8  # bytes
INDEX = ("keys", "counts", "digests")
ABOUT = ("identity", "about")


class ShardGone(KDError):
    """A file that was found, and is there no longer."""

    def __init__(self, file: Path):
        super().__init__(f"{file} was removed after it had been found (swift-kd cache clear?); start again.")


@dataclass(frozen=True)
class Shard:
    """What a shard says of itself; its rows stay on the disk.

    Args:
        identity: `CacheIdentity` as JSON.
        about: names for people, as JSON.
        keys: of its samples.
        starts: of each sample's tokens, and at the end of all [samples + 1].
        digests: of each sample.
        names: of the values.
    """

    file: Path
    identity: str
    about: str
    keys: list[bytes]
    starts: list[int]
    digests: list[bytes]
    names: list[str]

    def read(self, number: int) -> Values:
        """A sample's values. Raises KDError if they are not what was written, ShardGone if the file is not there."""
        part = slice(self.starts[number], self.starts[number + 1])
        try:
            with safe_open(self.file, "pt") as opened:
                values = {name: opened.get_slice(name)[part] for name in self.names}
        except FileNotFoundError as error:
            raise ShardGone(self.file) from error
        except (OSError, SafetensorError) as error:
            raise damaged(self.file, error) from error
        if digest_of(self.keys[number], values) != self.digests[number]:
            raise damaged(self.file)
        return values


def write_shard(file: Path, identity: str, about: str, samples: Mapping[bytes, Values]) -> None:
    """Writes a shard and waits until it is on the disk. Raises KDError, and leaves nothing, if there is no room."""
    names = sorted(next(iter(samples.values())))
    tensors = {name: torch.cat([values[name] for values in samples.values()]).contiguous() for name in names}
    counts = torch.tensor([len(values[names[0]]) for values in samples.values()], dtype=torch.int32)
    tensors |= {"keys": _table(list(samples)), "counts": counts}
    tensors["digests"] = _table([digest_of(key, values) for key, values in samples.items()])
    metadata = {"format": FORMAT, "identity": identity, "about": about}
    metadata["digest"] = _index_digest(metadata, names, tensors)
    content = save(tensors, metadata)
    with written_whole(file) as part, part.open("wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())
    _sync_folder(file.parent)


def read_shard(file: Path) -> Shard:
    """Raises KDError for a file that is no shard, or was changed, ShardGone for one that is not there."""
    try:
        with safe_open(file, "pt") as opened:
            metadata = opened.metadata() or {}
            names = sorted(set(opened.keys()) - set(INDEX))
            index = {name: opened.get_tensor(name) for name in INDEX}
            sizes = {opened.get_slice(name).get_shape()[0] for name in names}
        if metadata["format"] != FORMAT or metadata["digest"] != _index_digest(metadata, names, index):
            raise damaged(file)
    except FileNotFoundError as error:
        raise ShardGone(file) from error
    except (OSError, SafetensorError, KeyError) as error:
        raise damaged(file, error) from error
    starts = [0, *index["counts"].long().cumsum(0).tolist()]
    if sizes != {starts[-1]}:
        raise damaged(file)
    keys, digests = ([bytes(row) for row in index[name].numpy()] for name in ("keys", "digests"))
    return Shard(file, metadata["identity"], metadata["about"], keys, starts, digests, names)


def digest_of(key: bytes, values: Values) -> bytes:
    digest = xxhash.xxh3_64(key)
    for name in sorted(values):
        digest.update(_bytes(values[name]))
    return digest.digest()


def damaged(file: Path, error: Exception | None = None) -> KDError:
    why = f" ({' '.join(str(error).split())})" if error else ""
    return KDError(f"{file} is damaged{why}; remove it, and what it held is scored again.")


def _index_digest(metadata: Mapping[str, str], names: list[str], tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256("\n".join([*(metadata[name] for name in ABOUT), *names]).encode())
    for name in INDEX:
        digest.update(_bytes(tensors[name]))
    return digest.hexdigest()


def _bytes(tensor: Tensor) -> memoryview:
    return tensor.contiguous().view(torch.uint8).numpy().data


def _table(rows: list[bytes]) -> Tensor:
    return torch.frombuffer(bytearray(b"".join(rows)), dtype=torch.uint8).view(len(rows), -1)


def _sync_folder(folder: Path) -> None:
    """Waits until the names in a folder are on the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
