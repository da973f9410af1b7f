"""What a run has generated, on disk: shards that are written whole, and whose run they are.

manifest.json            the run: everything that decides its rows
shards/000000.jsonl      the samples of some prompts, one prompt a line, behind a line about the shard
shards/000000.part.jsonl the same of a shard that an error left unfinished
responses.jsonl          the rows, written at the end
"""

import json
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from swift_kd_plugin.data.files import locked, move_aside, remove_parts, write_atomically
from swift_kd_plugin.errors import KDError
from swift_kd_plugin.generation.judging import Sample

MANIFEST, SHARDS = "manifest.json", "shards"
RESPONSES, REPORT, PAGE = "responses.jsonl", "report.json", "report.html"
RUN_FILES = (MANIFEST, SHARDS, RESPONSES, REPORT, PAGE)


@dataclass(frozen=True)
class Record:
    """What became of one task.

    Args:
        task: its index.
        prompt_tokens: of its prompt.
        samples: its responses, empty if there are none.
        refused: why the prompt was not answered, or None.
        skipped: the quota that was full before it was asked, or None.
    """

    task: int
    prompt_tokens: int = 0
    samples: tuple[Sample, ...] = ()
    refused: str | None = None
    skipped: str | None = None

    @classmethod
    def from_json(cls, page: dict[str, Any]) -> "Record":
        return cls(**{**page, "samples": tuple(Sample(**sample) for sample in page["samples"])})


class Store:
    """A run's folder, locked as long as it is open.

    Args:
        folder: of the output.
        identity: everything that decides the run's rows, by the flag that says it.
        tasks: how many there are.
        shard_size: tasks of a shard.
        overwrite: take the place of another run.

    Raises:
        KDError: the folder holds another run, is used by another process, or cannot be written.
    """

    def __init__(self, folder: Path, identity: dict[str, Any], tasks: int, shard_size: int, overwrite: bool = False):
        self.folder, self.tasks, self.shard_size = folder, tasks, shard_size
        self.shards = -(-tasks // shard_size)
        with ExitStack() as held:
            held.enter_context(locked(folder))
            self._claim(json.loads(json.dumps(identity)), overwrite)
            self._held = held.pop_all()

    def _claim(self, identity: dict[str, Any], overwrite: bool) -> None:
        if overwrite:
            put_aside(self.folder, RUN_FILES)
        manifest = self.folder / MANIFEST
        if manifest.exists():
            refuse_another(self.folder, read_manifest(manifest), identity)
        else:
            refuse_unknown(self.folder, RUN_FILES)
            write_atomically(manifest, json.dumps(identity, ensure_ascii=False, indent=2) + "\n")
        (self.folder / SHARDS).mkdir(exist_ok=True)
        for place in (self.folder, self.folder / SHARDS):
            remove_parts(place)

    def close(self) -> None:
        self._held.close()

    def __enter__(self) -> "Store":
        return self

    def __exit__(self, *error) -> None:
        self.close()

    def tasks_of(self, shard: int) -> range:
        """Indices of a shard's tasks."""
        return range(shard * self.shard_size, min((shard + 1) * self.shard_size, self.tasks))

    def is_whole(self, shard: int) -> bool:
        return self._file(shard).exists()

    def read(self, shard: int) -> tuple[list[Record], float]:
        """A whole shard's records in the order of the tasks, and the seconds that it took."""
        records, seconds = _read(self._file(shard))
        if [record.task for record in records] != list(self.tasks_of(shard)):
            raise KDError(f"{self._file(shard)} is damaged; remove it, and start again to have it made anew.")
        return records, seconds

    def read_part(self, shard: int) -> list[Record]:
        """What an unfinished shard has."""
        part = self._file(shard, ".part")
        return _read(part)[0] if part.exists() else []

    def write(self, shard: int, records: Iterable[Record], seconds: float) -> None:
        """A whole shard, in any order."""
        _write(self._file(shard), records, seconds)
        self._file(shard, ".part").unlink(missing_ok=True)

    def write_part(self, shard: int, records: Iterable[Record]) -> None:
        _write(self._file(shard, ".part"), records, 0.0)

    def _file(self, shard: int, kind: str = "") -> Path:
        return self.folder / SHARDS / f"{shard:06d}{kind}.jsonl"


def put_aside(folder: Path, names: Sequence[str]) -> None:
    """Moves another run's files into `replaced-1` of their folder, or the next number."""
    if files := [folder / name for name in names if (folder / name).exists()]:
        move_aside(folder, files, "replaced")


def refuse_unknown(folder: Path, names: Sequence[str]) -> None:
    """Raises KDError if a folder has files that this run would replace, and no manifest says whose they are."""
    if there := [name for name in names if (folder / name).exists()]:
        raise KDError(
            f"{folder} has {', '.join(there)} of an unknown run; choose another folder, or give --overwrite, which "
            "moves them aside."
        )


def read_manifest(file: Path) -> dict[str, Any]:
    """Raises KDError if it is none."""
    try:
        page = json.loads(file.read_text(encoding="utf-8"))
        return dict(page)
    except (OSError, ValueError, TypeError) as error:
        raise KDError(f"{file} cannot be read; choose another --output, or give --overwrite.") from error


def refuse_another(folder: Path, before: dict[str, Any], now: dict[str, Any]) -> None:
    """Raises KDError, which names what differs, if a folder's manifest is not the one that a run has now."""
    for name in [*now, *before]:
        if before.get(name) != now.get(name):
            raise KDError(
                f"{folder} holds another run: its {name} is {_shown(before.get(name))}, and now it is "
                f"{_shown(now.get(name))}; give the same to go on with it, another --output, or --overwrite."
            )


def _read(file: Path) -> tuple[list[Record], float]:
    try:
        head, *lines = map(json.loads, file.read_text(encoding="utf-8").rstrip("\n").split("\n"))
        return [Record.from_json(line) for line in lines], head["seconds"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise KDError(f"{file} is damaged; remove it, and start again to have it made anew.") from error


def _write(file: Path, records: Iterable[Record], seconds: float) -> None:
    ordered = sorted(records, key=lambda record: record.task)
    lines = [{"seconds": round(seconds, 3)}, *map(asdict, ordered)]
    write_atomically(file, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 120 else text[:120] + " ..."
