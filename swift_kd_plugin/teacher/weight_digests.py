"""By what a teacher cache knows a model: a digest of its configuration and of every byte of its weights.

xxh3 takes some 8 GB/s on two cores, so that the disk decides: a file is read as fast as it is loaded. What was read
once is remembered beside the cache, and read again when the file changes.
"""

import hashlib
import json
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import xxhash

from swift_kd_plugin.data.files import write_atomically
from swift_kd_plugin.errors import KDError

PIECE, BUFFER = 64 << 20, 4 << 20  # bytes: what a thread digests, and what it reads at once
THREADS = 8
REMEMBERED = "weights.json"  # in the folder of a cache


def fingerprint(folder: Path, config: str = "config.json", memory: Path | None = None) -> str:
    """Of a model or an adapter: its configuration, and each safetensors file whole.

    Args:
        memory: file that remembers digests, and is written where it can be.

    Raises:
        KDError: there are no safetensors files, or one of them cannot be read.
    """
    files = _weights(folder)
    known = _recall(memory)
    try:
        digest = hashlib.sha256((folder / config).read_bytes())
        found = {str(file.resolve()): known.get(str(file.resolve())) for file in files}
        for file in _changed(files, known):
            state = _state(file)  # of before it is read: what is written meanwhile is read again
            found[str(file.resolve())] = [_digest(file), *state]
    except OSError as error:
        raise KDError(f"the weights in {folder} cannot be read: {error}; check the folder.") from error
    for of_file, *_ in found.values():
        digest.update(bytes.fromhex(of_file))
    if memory and known | found != known:
        with suppress(KDError):  # a folder that is only read: the next start reads the weights again
            write_atomically(memory, json.dumps(_recall(memory) | found, indent=0))
    return digest.hexdigest()[:32]


def bytes_to_read(folder: Path, memory: Path) -> int:
    """Of the weights that are not remembered. Raises KDError as `fingerprint`."""
    return sum(file.stat().st_size for file in _changed(_weights(folder), _recall(memory)))


def _weights(folder: Path) -> list[Path]:
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise KDError(
            f"{folder} has no safetensors files by which a teacher cache could know it; give it in that form."
        )
    return files


def _recall(memory: Path | None) -> dict[str, list]:
    """By path: the digest, and the state that the file had."""
    page = None
    with suppress(OSError, ValueError):
        page = json.loads(memory.read_text()) if memory else None
    return page if isinstance(page, dict) else {}


def _changed(files: Iterable[Path], known: dict[str, list]) -> list[Path]:
    return [file for file in files if known.get(str(file.resolve()), [])[1:] != _state(file)]


def _state(file: Path) -> list[int]:
    """What changes whenever the content does: unlike the time of its last change, that of the file's cannot be set."""
    there = file.stat()
    return [there.st_size, there.st_mtime_ns, there.st_ctime_ns, there.st_ino]


def _digest(file: Path) -> str:
    """Of the whole content, in hexadecimal digits: that of its pieces' digests, in order."""
    places = range(0, file.stat().st_size, PIECE)
    whole = xxhash.xxh3_128()
    with ThreadPoolExecutor(THREADS) as pool, file.open("rb") as stream:
        for piece in pool.map(lambda place: _digest_piece(stream.fileno(), place), places):
            whole.update(piece)
    return whole.hexdigest()


def _digest_piece(descriptor: int, place: int) -> bytes:
    digest, end = xxhash.xxh3_128(), place + PIECE
    buffer = memoryview(bytearray(BUFFER))
    while place < end and (size := os.preadv(descriptor, [buffer[: end - place]], place)):
        digest.update(buffer[:size])
        place += size
    return digest.digest()
