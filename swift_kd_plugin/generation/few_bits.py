"""Weights in few bits: how many there may be, and what they need, told without loading anything."""

from importlib.util import find_spec

from swift_kd_plugin.errors import KDError

BITS = (8, 4)


def check_bitsandbytes(flag: str) -> None:
    """Raises KDError if bitsandbytes, which quantises, is not installed; `flag` is what asks for it."""
    if not find_spec("bitsandbytes"):
        raise KDError(f"{flag} needs bitsandbytes, which is not installed; `pip install 'swift-kd-plugin[bits]'`.")
