"""Builds the datasets of a data.yaml: sources are read once, joined and mixed on disk, in bounded memory."""

import hashlib
import json
import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any
from uuid import uuid4

from datasets import Dataset, IterableDataset
from tqdm import tqdm

from swift_kd_plugin.data.absent_columns import note_unkept
from swift_kd_plugin.data.arrow_values import ANY_JSON, mixed_columns, without_padding
from swift_kd_plugin.data.asked_columns import Asked
from swift_kd_plugin.data.columns import FEATURES
from swift_kd_plugin.data.dataset_specs import (
    DatasetId,
    DatasetSpec,
    ExperienceSpec,
    File,
    MixSpec,
    PairsSpec,
    RowsSpec,
    ThinkingMixSpec,
    with_asked,
)
from swift_kd_plugin.data.experience import experienced_rows
from swift_kd_plugin.data.files import write_atomically
from swift_kd_plugin.data.leaks import with_two_views
from swift_kd_plugin.data.mixing import Part, mix
from swift_kd_plugin.data.pairing import PairSide, ResponseRule, join_sides, paired_rows, told_thoughts, with_response
from swift_kd_plugin.data.row_report import Report, ReportEntry
from swift_kd_plugin.data.row_store import copy_rows, read_dataset, to_rows, write_rows
from swift_kd_plugin.data.rows import Place, Row
from swift_kd_plugin.data.sources import MAX_LINE_BYTES, check_rows, place_of, read_rows
from swift_kd_plugin.data.thinking import rows_in_modes
from swift_kd_plugin.data.trained_turns import answered_rows
from swift_kd_plugin.errors import KDError
from swift_kd_plugin.version import __version__

# Raise it when stored rows change in form or meaning.
STORE_VERSION = 3

logger = logging.getLogger(__name__)

Opener = Callable[[str], Dataset | IterableDataset]


def no_opener(dataset_id: str) -> Dataset:
    raise KDError(f"{dataset_id!r} is no file, and datasets of a hub are not loaded here; give a file.")


@dataclass
class Builder:
    """Builds datasets and keeps what it built in a folder, where the next run with the same inputs finds it.

    Args:
        folder: for stored rows; a file is written whole or not at all.
        opener: loads an id that is no file, as ms-swift does; what it leaves out by itself is in no report.
        strict: end at the first row that cannot be used, where a dataset does not say otherwise.
        keep: columns that every dataset keeps, besides its own `keep`.
        trains: where nobody writes responses ms-swift's strategy of the loss (`--loss_scale`), under which every row
            needs a turn to train on; None: a row may lack a response.
        max_line_bytes: longest line of a .jsonl file; a longer one is left out.
        tolerant: leave out what cannot be used, whatever a dataset says of itself.
    """

    folder: Path
    opener: Opener = no_opener
    strict: bool = False
    keep: tuple[str, ...] = ()
    trains: str | None = None
    max_line_bytes: int = MAX_LINE_BYTES
    tolerant: bool = False
    _opened: dict[str, tuple[Any, str]] = field(default_factory=dict)

    def dataset(self, node: DatasetSpec) -> tuple[Dataset, Report]:
        """The node's rows with the columns of FEATURES and the kept ones, and what became of its inputs."""
        node, keep = with_asked(node, Asked(keep=self.keep)), self._keep(node)
        file = self.folder / f"{self._fingerprint(node, keep)}.arrow"
        page = file.with_suffix(".json")
        if stored := read_stored(file, page):
            return stored
        report = Report(strict=self.strict, refused=ReportEntry())
        try:
            count = self._write(file, node, keep, report)
        except KDError:
            report.refuse()  # the rows that cannot be used come first
            raise
        if not isinstance(node, RowsSpec):  # of which everything is said by what was read and left out
            report.state(node.name, rows=count)
        write_atomically(page, json.dumps({"rows": count, "report": report.as_json()}, ensure_ascii=False))
        return read_dataset(file), report

    def _write(self, file: Path, node: DatasetSpec, keep: tuple[str, ...], report: Report) -> int:
        """Writes a dataset's rows; returns how many. Raises KDError for rows that may not be left out."""

        def checked(rows: Iterable[Row]) -> Iterator[Row]:
            yield from rows
            report.refuse()

        if isinstance(node, MixSpec):
            return copy_rows(file, self._mix(node, self._strictness(node, report)), keep)
        rows = tqdm(self.rows(node, report), node.name, unit=" rows", unit_scale=True, disable=None, delay=2)
        return write_rows(file, checked(rows), keep)

    def _strictness(self, node: DatasetSpec, report: Report) -> Report:
        return report.but(False if self.tolerant else node.strict)

    def stream(self, node: DatasetSpec) -> IterableDataset:
        """The same rows as a stream. Joined and mixed sources are stored first; all others are read on the way."""
        features = {**FEATURES, **dict.fromkeys(self._keep(node), FEATURES["columns"])}
        return IterableDataset.from_generator(self._stream, type(FEATURES)(features), gen_kwargs={"node": node})

    def _stream(self, node: DatasetSpec) -> Iterator[Row]:
        keep, empty = self._keep(node), dict.fromkeys(FEATURES)
        report, kinds = Report(strict=self.strict), set()
        for row in self.rows(node, report):
            if len(report.left_out) + len(report.notes) > len(kinds):
                kinds = _say_new_kinds(report, kinds)
            columns = row.get("columns", {})
            # A text of its own would be taken for JSON that is encoded already.
            texts = {name: json.dumps(columns[name], ensure_ascii=False) for name in keep if name in columns}
            yield {**empty, **row, **dict.fromkeys(keep), **texts}
        for line in report.lines() if report.left_out or report.notes else ():
            logger.warning(line)

    def rows(self, node: DatasetSpec, report: Report) -> Iterator[Row]:
        """The node's rows, made on the way; what cannot be used goes into the report."""
        report = self._strictness(node, report)
        rows = self._made(with_asked(node, Asked(keep=self.keep)), report)
        if unknown := [name for name in node.keep if name not in FEATURES]:
            rows = note_unkept(rows, unknown, report)
        if self.trains is None or isinstance(node, MixSpec | ThinkingMixSpec):  # their sources are checked
            return rows
        return answered_rows(rows, self.trains, report)

    def _made(self, node: DatasetSpec, report: Report) -> Iterator[Row]:
        match node:
            case RowsSpec():
                rows = self._read(node, report)
                return self._answered(node, rows, node.response, report) if node.response else rows
            case ExperienceSpec():
                rows = replace(self, trains=None).rows(node.source, report)
                rows = told_thoughts(rows, node.response, node.name) if node.thought else rows
                return experienced_rows(rows, node.placement, node.response, node.suspicions, report)
            case ThinkingMixSpec():
                return rows_in_modes(self._thinking_rows(node, report), node.modes, node.name, report)
            case PairsSpec():
                return self._pair(node, report)
            case MixSpec():
                return to_rows(self._mix(node, report))
        raise TypeError(node)

    def _thinking_rows(self, node: ThinkingMixSpec, report: Report) -> Iterator[Row]:
        rows = self.rows(node.source, report)
        rule = ResponseRule(thought=node.thought)
        return rows if node.thought is None else self._answered(node, rows, rule, report)

    def _answered(self, node: DatasetSpec, rows: Iterator[Row], rule: ResponseRule, report: Report) -> Iterator[Row]:
        return with_response(told_thoughts(rows, rule, node.name) if node.thought else rows, rule, report)

    def _keep(self, node: DatasetSpec) -> tuple[str, ...]:
        """Names of the columns to keep, without our own, which every dataset has."""
        return tuple(name for name in dict.fromkeys((*node.keep, *self.keep)) if name not in FEATURES)

    def _read(self, node: RowsSpec, report: Report) -> Iterator[Row]:
        columns = dict(node.columns)
        if isinstance(node.source, File):
            return read_rows(
                node.source.path,
                report,
                name=node.source.label,
                columns=columns,
                format=node.format,
                asked=node.asked,
                max_line_bytes=self.max_line_bytes,
            )
        return check_rows(self._numbered(node.source.label, report), report, columns, node.format, node.asked)

    def _numbered(self, label: str, report: Report) -> Iterator[tuple[Place, dict[str, Any]]]:
        report.read.setdefault(label, 0)
        opened = self._open(label)[0]
        features, mixed = getattr(opened, "features", None), set()
        for number, raw in enumerate(opened, start=1):
            report.read[label] += 1
            place = place_of(label, number, raw)
            for name in mixed_columns(raw, features):
                if name not in mixed:
                    mixed.add(name)
                    report.note(f"the column {name!r} of mixed types", ANY_JSON, place)
            yield place, without_padding(raw, features)

    def open_sources(self, node: DatasetSpec) -> None:
        """Opens the ids that the node reads."""
        for source in sources_of(node):
            if isinstance(source, DatasetId):
                self._open(source.label)

    def _open(self, label: str) -> tuple[Any, str]:
        """An id's rows and what tells them from other rows; of a stream nothing does, so it is like no other."""
        if label not in self._opened:
            opened = self.opener(label)
            self._opened[label] = opened, getattr(opened, "_fingerprint", None) or uuid4().hex
        return self._opened[label]

    def _child(self, node: DatasetSpec, report: Report, trains: str | None = None) -> tuple[Dataset, Report]:
        dataset, made = replace(self, strict=report.strict, keep=(), trains=trains).dataset(node)
        report.merge(made)
        return dataset, made

    def _pair(self, node: PairsSpec, report: Report) -> Iterator[Row]:
        exp, noexp = (PairSide(self._child(child, report)[0], label_of(child)) for child in (node.exp, node.noexp))
        if node.thought:
            sides = (exp, noexp) if node.response.kind == "gold" else (exp,)
            rows = (row for side in sides for row in to_rows(side.rows))
            any(node.response.has_thought(row) for row in told_thoughts(rows, node.response, node.name))
        unmatched = report
        if node.unmatched is not None and not self.tolerant:
            unmatched = report.but(strict=node.unmatched == "error")
        pairs = join_sides(exp, noexp, node.on, node.duplicates, report, unmatched)
        report.state(node.name, joined=len(pairs))
        rows = paired_rows(exp, noexp, pairs, node.response, node.suspicions, report)
        yield from with_two_views(rows, exp.name, noexp.name, report)

    def _mix(self, node: MixSpec, report: Report) -> Dataset:
        parts = {}
        for part in node.parts:
            rows, made = self._child(part.source, report, self.trains)
            parts[part.label] = Part(rows, part.weight, part.fraction, made.first_reason())
        mixed, facts = mix(parts, total=node.total, replacement=node.replacement, seed=node.seed, name=node.name)
        report.state(node.name, **facts)
        return mixed

    def _fingerprint(self, node: DatasetSpec, keep: Iterable[str]) -> str:
        parts = [STORE_VERSION, __version__, self.strict, self.tolerant, self.trains, self.max_line_bytes]
        parts += [list(keep), type(node).__name__, asdict(node), [self._state(source) for source in sources_of(node)]]
        return hashlib.blake2b(json.dumps(parts, default=str).encode(), digest_size=16).hexdigest()

    def _state(self, source: File | DatasetId) -> list:
        if isinstance(source, DatasetId):
            return [source.label, self._open(source.label)[1]]
        try:
            stat = source.path.stat()
        except OSError:
            return [str(source.path), None]  # the reader says what is wrong with it
        return [str(source.path), stat.st_size, stat.st_mtime_ns]


def read_stored(file: Path, page: Path) -> tuple[Dataset, Report] | None:
    """What was built before; None if there is nothing, or a part only, as a power failure may leave it."""
    try:
        record = json.loads(page.read_text(encoding="utf-8"))
        dataset = read_dataset(file)
        return (dataset, Report.from_json(record["report"])) if len(dataset) == record["rows"] else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def children_of(node: DatasetSpec) -> list[DatasetSpec]:
    """The datasets that a dataset is made of."""
    match node:
        case PairsSpec():
            return [node.exp, node.noexp]
        case MixSpec():
            return [part.source for part in node.parts]
        case RowsSpec():
            return []
    return [node.source]


def sources_of(node: DatasetSpec) -> list[File | DatasetId]:
    """All files and ids that a dataset reads."""
    if isinstance(node, RowsSpec):
        return [node.source]
    return [source for child in children_of(node) for source in sources_of(child)]


def label_of(node: DatasetSpec) -> str:
    """What messages call a dataset: its file or id if it is nothing but that, else its name."""
    return node.source.label if isinstance(node, RowsSpec) else node.name


def _say_new_kinds(report: Report, kinds: set[tuple[str, str]]) -> set[tuple[str, str]]:
    """Says of a stream the first row of each kind at once, as its pass may never end. Returns all that were said."""
    entries = {
        (verb, kind): entry
        for verb, part in (("left out", report.left_out), ("note", report.notes))
        for kind, entry in part.items()
    }
    for verb, kind in entries.keys() - kinds:
        first = entries[verb, kind].examples[0]
        logger.warning(f"{verb}: {kind}, first {first['place']}: {first['text']}")
    return set(entries)
