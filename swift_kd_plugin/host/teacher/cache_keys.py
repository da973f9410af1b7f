"""Which entry of a teacher cache belongs to a sample: told by what the teacher sees of it and what is asked of it."""

import hashlib
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from swift_kd_plugin.host.samples.response_labels import IGNORED, trained_tokens
from swift_kd_plugin.host.samples.sample import KDSample
from swift_kd_plugin.teacher.cache_shards import KEY

OUTPUTS = 0  # the part that the losses take; those of inner layers go by their numbers


@dataclass(frozen=True)
class CacheEntry:
    """A sample of a micro-batch.

    Args:
        name: as messages to people call it.
        keys: of its entries in the parts of a cache that this rank holds; none where nothing is asked.
        token_ids: of its response.
        written: by a model in this run; it is none of the dataset's.
    """

    name: str
    keys: dict[int, bytes]
    token_ids: list[int]
    written: bool = False


def cache_entry(identities: dict[int, bytes], sample: KDSample, view: dict) -> CacheEntry:
    """
    Args:
        identities: digests of those of the parts of a cache.
        view: encoded and not collated: `input_ids` and `labels` of equal length, not shifted, and what media became.
    """
    labels = view["labels"]
    end = next((place for place in range(len(labels), 0, -1) if labels[place - 1] != IGNORED), 0)
    if not end:
        return CacheEntry(sample.name, {}, [])
    seen: list[bytes | memoryview] = [
        np.asarray(ids[:end], dtype=np.int64).tobytes() for ids in (view["input_ids"], labels)
    ]
    for media, value in sorted(view.items()):
        if isinstance(value, Tensor):
            seen.append(f"{media} {value.dtype} {tuple(value.shape)}".encode())
            seen.append(value.contiguous().view(torch.uint8).numpy().data)
    keys = {part: _key(identity, seen) for part, identity in identities.items()}
    return CacheEntry(sample.name, keys, trained_tokens(labels), bool(sample.response_token_ids))


def _key(identity: bytes, seen: list[bytes | memoryview]) -> bytes:
    digest = hashlib.sha256(identity)
    for content in seen:
        digest.update(content)
    return digest.digest()[:KEY]
