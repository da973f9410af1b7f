"""Whose rows a teacher cache holds: the teacher, by its weights, and the form in which its rows are stored."""

import hashlib
import json
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, BinaryIO

from swift_kd_plugin.errors import KDError

WHOLE = 1 << 20  # bytes: smaller tensors are read whole
PIECES, PIECE = 16, 4096  # of a larger one


@dataclass(frozen=True)
class CacheIdentity:
    """All that decides what a teacher says of given token ids, and how it is stored; names and places do not.

    Args:
        teacher: `fingerprint` of its folder.
        adapters: of the folders that are merged into it, in order.
        bits: of its linear weights; 16 as they are stored.
        dtype: in which it computes.
        codec: "hidden" or "topk", or "features" of one inner layer, which has an identity of its own.
        settings: of the codec; a top-k teacher's temperature is one of them, as its tail has no exact form at another.
        built: flags that make another model of the same weights.
    """

    teacher: str
    adapters: tuple[str, ...]
    bits: int
    dtype: str
    codec: str
    settings: dict[str, Any]
    built: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> str:
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> "CacheIdentity":
        page = json.loads(text)
        return cls(**{**page, "adapters": tuple(page["adapters"])})

    @property
    def digest(self) -> bytes:
        return hashlib.sha256(self.to_json().encode()).digest()

    @property
    def folder(self) -> str:
        """Name of the folder of its shards."""
        return self.digest.hex()[:16]

    def differs_in(self, other: "CacheIdentity") -> dict[str, tuple[Any, Any]]:
        """What is not the same, by its name: here and there."""
        found = {}
        for name in (one.name for one in fields(self)):
            here, there = getattr(self, name), getattr(other, name)
            if isinstance(here, dict):
                keys = sorted(here.keys() | there.keys())
                found |= {key: (here.get(key), there.get(key)) for key in keys if here.get(key) != there.get(key)}
            elif here != there:
                found[name] = (here, there)
        return found


def fingerprint(folder: Path, config: str = "config.json") -> str:
    """Of a model or an adapter: its configuration, and of each safetensors file the header and the content.

    Tensors of up to 1 MiB count whole, of larger ones 64 KiB in 16 pieces: a 70B model takes some hundred reads of its
    files in place of 140 GB, and training changes every tensor all over.

    Raises:
        KDError: there are no safetensors files, or one of them cannot be read.
    """
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise KDError(
            f"{folder} has no safetensors files by which a teacher cache could know it; give it in that form."
        )
    try:
        digest = hashlib.sha256((folder / config).read_bytes())
        for file in files:
            with file.open("rb") as stream:
                _add(digest, stream)
    except (OSError, ValueError, KeyError) as error:
        raise KDError(f"the weights in {folder} cannot be read: {error}; check the folder.") from error
    return digest.hexdigest()[:32]


def _add(digest, stream: BinaryIO) -> None:
    """A safetensors file: 8 bytes that say how long its header is, the header (JSON), and the tensors."""
    header = stream.read(int.from_bytes(stream.read(8), "little"))
    digest.update(header)
    content = 8 + len(header)
    for name, tensor in json.loads(header).items():
        if name == "__metadata__":
            continue
        start, end = tensor["data_offsets"]
        for place, size in _pieces(end - start):
            stream.seek(content + start + place)
            digest.update(stream.read(size))


def _pieces(size: int) -> list[tuple[int, int]]:
    """What is read of a tensor: places and sizes."""
    if size <= WHOLE:
        return [(0, size)]
    return [(index * (size - PIECE) // (PIECES - 1), PIECE) for index in range(PIECES)]
