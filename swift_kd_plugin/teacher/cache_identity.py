"""Whose rows a teacher cache holds: the teacher, by its weights, and the form in which its rows are stored."""

import hashlib
import json
from dataclasses import asdict, dataclass, field, fields
from typing import Any

VERSION = 2  # 1 knew a teacher by pieces of its weights, and a sample without the numbers and texts that describe media


@dataclass(frozen=True)
class CacheIdentity:
    """All that decides what a teacher says of given token ids, and how it is stored; names and places do not.

    Args:
        teacher: `fingerprint` of its folder (`weight_digests.py`), or the name that a server gives.
        adapters: of the folders that are merged into it, in order.
        bits: of its linear weights; 16 as they are stored.
        dtype: in which it computes.
        codec: "hidden" or "topk", or "features" of one inner layer, which has an identity of its own.
        settings: of the codec; a top-k teacher's temperature is one of them, as its tail has no exact form at another.
        built: flags that make another model of the same weights.
        version: of the way in which teachers and samples are known; what was written in another is not found.
    """

    teacher: str
    adapters: tuple[str, ...]
    bits: int
    dtype: str
    codec: str
    settings: dict[str, Any]
    built: dict[str, Any] = field(default_factory=dict)
    version: int = VERSION

    def to_json(self) -> str:
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> "CacheIdentity":
        page = json.loads(text)
        return cls(**{"version": 1, **page, "adapters": tuple(page["adapters"])})

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
