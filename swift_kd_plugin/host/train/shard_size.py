"""--max_shard_size, which ms-swift accepts and does not hand on; mcore-bridge reads whole gigabytes only."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from swift_kd_plugin.errors import KDError

UNITS = {"": 1, "B": 1, "KB": 1000, "MB": 1000**2, "GB": 1000**3, "TB": 1000**4}
UNITS |= {"KIB": 1024, "MIB": 1024**2, "GIB": 1024**3, "TIB": 1024**4}


def bytes_of(text: str) -> int:
    """Raises KDError for what is no size."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-zA-Z]*)\s*", str(text))
    if not match or match[2].upper() not in UNITS or not float(match[1]):
        raise KDError(f"--max_shard_size {text} is no size; give one as 5GB or 500MB.")
    return int(float(match[1]) * UNITS[match[2].upper()])


@contextmanager
def shards_up_to(bridge, text: str) -> Iterator[None]:
    """Within it mcore-bridge's `bridge` writes files of at most this size (of one tensor at least)."""
    gigabytes = bytes_of(text) / UNITS["GB"]
    bridge.save_weights = partial(bridge.save_weights, max_shard_size=gigabytes)
    try:
        yield
    finally:
        del bridge.save_weights
