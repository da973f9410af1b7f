"""Which entry of a teacher cache belongs to a sample: told by what the teacher sees of it and what is asked of it."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from swift_kd_plugin.errors import KDError
from swift_kd_plugin.host.samples.response_labels import IGNORED, trained_tokens
from swift_kd_plugin.host.samples.sample import KDSample
from swift_kd_plugin.teacher.cache_shards import KEY

NOT_MEDIA = {"input_ids", "labels", "loss_scale", "length", "lengths", "channel"}  # of a view; a model sees the rest
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

    Raises:
        KDError: the view holds a value of which it cannot be told whether it is the same.
    """
    labels = view["labels"]
    end = next((place for place in range(len(labels), 0, -1) if labels[place - 1] != IGNORED), 0)
    if not end:
        return CacheEntry(sample.name, {}, [])
    seen: list[bytes | memoryview] = [
        np.asarray(ids[:end], dtype=np.int64).tobytes() for ids in (view["input_ids"], labels)
    ]
    for name in sorted(view.keys() - NOT_MEDIA):
        value = view[name]
        if isinstance(value, list) and len(value) == len(labels):  # one for each token
            value = value[:end]
        try:
            seen += [name.encode(), *_content(value)]
        except TypeError as error:
            raise KDError(
                f"{sample.name} has media of the type {error} ({name}), which --kd_teacher_cache cannot tell from "
                "others; drop the flag."
            ) from error
    keys = {part: _key(identity, seen) for part, identity in identities.items()}
    return CacheEntry(sample.name, keys, trained_tokens(labels), bool(sample.response_token_ids))


def _content(value) -> Iterator[bytes | memoryview]:
    """What tells a value from others. Raises TypeError with the name of a type that is not known."""
    if isinstance(value, Tensor):
        yield f"{value.dtype} {tuple(value.shape)}".encode()
        yield value.detach().cpu().reshape(-1).view(torch.uint8).numpy().data
    elif isinstance(value, np.ndarray | np.generic) and not value.dtype.hasobject:
        yield f"{value.dtype} {value.shape}".encode()
        yield value.tobytes()
    elif value is None or isinstance(value, bool | int | float | str | bytes):
        text = repr(value).encode()
        yield f"{type(value).__name__} {len(text)}".encode()
        yield text
    elif isinstance(value, Mapping):
        yield f"mapping {len(value)}".encode()
        for key in sorted(value, key=str):
            yield from _content(str(key))
            yield from _content(value[key])
    elif isinstance(value, Sequence):
        yield f"sequence {len(value)}".encode()
        for one in value:
            yield from _content(one)
    else:
        raise TypeError(type(value).__name__)


def _key(identity: bytes, seen: list[bytes | memoryview]) -> bytes:
    digest = hashlib.sha256(identity)
    for content in seen:
        digest.update(content)
    return digest.digest()[:KEY]
