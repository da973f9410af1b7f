"""Rows of files, one at a time: .jsonl, .json, .csv, .tsv and .parquet. What cannot be read goes into the report."""

import csv
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from swift_kd_plugin.data.absent_columns import note_unrenamed
from swift_kd_plugin.data.asked_columns import NOTHING_ASKED, Asked
from swift_kd_plugin.data.files import printable, why_not_opened
from swift_kd_plugin.data.formats import NULLS, Raw, check_format, to_row
from swift_kd_plugin.data.row_report import Report
from swift_kd_plugin.data.rows import Place, Row, RowError
from swift_kd_plugin.data.turn_keys import TURNED_OFF, is_off, what_is_lost_with
from swift_kd_plugin.data.turns import UNREAD
from swift_kd_plugin.data.unread_columns import notes_of
from swift_kd_plugin.data.validate import check_row
from swift_kd_plugin.data.values import check_value, decode_json, kind_of, parse_json
from swift_kd_plugin.errors import KDError

Numbered = Iterator[tuple[int, Raw | RowError]]

MAX_LINE_BYTES = 32 << 20
CHUNK_BYTES = 1 << 20
PARQUET_ROWS = 64
BOM = b"\xef\xbb\xbf"
UTF_16 = (b"\xff\xfe", b"\xfe\xff")


def read_rows(
    path: str | Path,
    report: Report,
    *,
    name: str | None = None,
    columns: dict[str, str] | None = None,
    format: str = "auto",
    asked: Asked = NOTHING_ASKED,
    max_line_bytes: int = MAX_LINE_BYTES,
) -> Iterator[Row]:
    """The checked rows of a file, in its order; every other row of it is in the report.

    Args:
        path: a file as `read_file` takes it.
        report: gets the number of rows read, and those left out with the reason.
        name: what places call the file; its path if None.
        columns, asked: see `to_row`.
        format: one of `FORMATS` to read only that form, or "auto".
        max_line_bytes: see `read_file`.

    Raises:
        KDError: as `read_file`, or the format is unknown.
    """
    check_format(format)
    raws = read_file(path, report, name=name, max_line_bytes=max_line_bytes)
    return check_rows(raws, report, columns, format, asked)


def check_rows(
    raws: Iterable[tuple[Place, Raw]],
    report: Report,
    columns: dict[str, str] | None = None,
    format: str = "auto",
    asked: Asked = NOTHING_ASKED,
) -> Iterator[Row]:
    """Raw rows as checked rows of the one row type; the others go into the report."""
    names = asked.names
    for place, raw in note_unrenamed(raws, columns, report) if columns else raws:
        try:
            row = to_row(raw, place, columns, format, asked)
            unread, nulls = row.pop(UNREAD, ()), row.pop(NULLS, ())
            check_row(row)
            for name in asked.keep:
                check_value(row.get("columns", {}).get(name), f"its column {name!r}", stored=True)
        except RowError as error:
            report.leave_out(error, place)
        else:
            last = row["messages"][-1]
            if len(last) > 2 and is_off(last) and not asked.gold:
                report.note("response that is not trained", TURNED_OFF, place)
            for key in dict.fromkeys(unread) if unread else ():
                report.note(f"the key {key!r} of a turn, which is not read", what_is_lost_with(key), place)
            if nulls:
                where = f"{', '.join(nulls)}; if it is padding of a file that datasets wrote, take it out"
                report.note("null in tools or calls, which stays", where, place)
            for kind, text in notes_of(row, names):
                report.note(kind, text, place)
            yield row


def read_file(
    path: str | Path, report: Report, *, name: str | None = None, max_line_bytes: int = MAX_LINE_BYTES
) -> Iterator[tuple[Place, Raw]]:
    """The rows of a file as they stand there, in bounded memory (a .json file is read whole).

    Args:
        path: .jsonl (rows are numbered by line), .json (a list of objects, or an object with one such list), .csv or
            .tsv (with a header; an empty cell is an absent column) or .parquet (null is an absent column or key).
        report: gets the number of rows read, and those that cannot be read with the reason.
        name: what places call the file; its path if None.
        max_line_bytes: a longer line of text is left out without being held in memory.

    Raises:
        KDError: at the call if the file is missing, may not be read or is of another kind; while reading if it is
            broken as a whole, or a row cannot be read and the report is strict.
    """
    file = Path(path)
    reader = READERS.get(file.suffix.lower())
    if reader is None and not file.is_dir():
        raise KDError(f"{printable(file)} is none of the files that are read here: {', '.join(READERS)}.")
    try:
        with open(file, "rb"):
            pass
    except OSError as error:
        raise KDError(why_not_opened(file, error)) from error
    return _placed(reader(file, max_line_bytes), file, report, name or printable(file))


def _placed(rows: Numbered, file: Path, report: Report, name: str) -> Iterator[tuple[Place, Raw]]:
    read = report.read
    read.setdefault(name, 0)
    try:
        for number, raw in rows:
            read[name] += 1
            if isinstance(raw, RowError):
                report.leave_out(raw, Place(name, number))
            else:
                yield place_of(name, number, raw), raw
    except OSError as error:
        raise KDError(f"{printable(file)} cannot be read to its end: {error.strerror or error}.") from error


def place_of(source: str, number: int, raw: Raw) -> Place:
    """Where a raw row stands."""
    key = raw.get("id")
    return Place(source, number, str(key) if type(key) in (str, int) else None)


def _lines(file: BinaryIO, limit: int) -> Iterator[bytes | None]:
    """The lines with their ends, or None for a line of more than `limit` bytes."""
    start = file.peek(len(BOM))
    if start.startswith(UTF_16):
        raise KDError(f"{printable(Path(file.name))} is UTF-16; save it as UTF-8.")
    if start.startswith(BOM):
        file.read(len(BOM))
    while line := file.readline(limit + 1):
        if len(line) <= limit or line.endswith(b"\n"):
            yield line
            continue
        line = b""  # not to be held beside the next one
        while (rest := file.readline(CHUNK_BYTES)) and not rest.endswith(b"\n"):
            pass
        yield None


def _read_jsonl(file: Path, limit: int) -> Numbered:
    with open(file, "rb") as lines:
        for number, line in enumerate(_lines(lines, limit), start=1):
            try:
                if line is None:
                    raise RowError("unreadable", f"the line is longer than {limit:,} bytes")
                if line.isspace():
                    continue
                yield number, _parse_line(line)
            except RowError as error:
                yield number, error


def _parse_line(line: bytes) -> Raw:
    try:
        text = line.rstrip(b"\r\n").decode()
    except UnicodeDecodeError as error:
        raise RowError("unreadable", f"it is not UTF-8 (byte {error.start + 1} of the line)") from error
    raw = parse_json(text)
    if type(raw) is not dict:
        raise RowError("unreadable", f"it is {kind_of(raw)}, not an object")
    return raw


def _read_json(file: Path, limit: int) -> Numbered:
    for number, item in enumerate(_list_in(file), start=1):
        try:
            if type(item) is not dict:
                raise RowError("unreadable", f"it is {kind_of(item)}, not an object")
            check_value(item)
            yield number, item
        except RowError as error:
            yield number, error


def _list_in(file: Path) -> list[Any]:
    try:
        page = decode_json(file.read_bytes().decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise KDError(f"{printable(file)} is not UTF-8 text (byte {error.start + 1}).") from error
    except RowError as error:
        hint = "; if each line is an object of its own, name it .jsonl" if "Extra data" in str(error) else ""
        raise KDError(f"{printable(file)} cannot be used: {error}{hint}.") from error
    if isinstance(page, list):
        return page
    lists = [value for value in page.values() if isinstance(value, list)] if isinstance(page, dict) else []
    lists = [value for value in lists if not value or any(isinstance(item, dict) for item in value)]
    if len(lists) != 1:
        raise KDError(
            f"{printable(file)} is {kind_of(page)} with {len(lists)} lists of objects; it has to be a list of "
            "objects, or an object with one such list."
        )
    return lists[0]


def _read_csv(file: Path, limit: int) -> Numbered:
    delimiter = "\t" if file.suffix.lower() == ".tsv" else ","
    csv.field_size_limit(max(csv.field_size_limit(), limit))
    with open(file, "rb") as lines:
        reader = csv.reader(map(_decode_csv_line, _lines(lines, limit)), delimiter=delimiter, strict=True)
        header = _header(reader, file)
        number = 0
        while True:
            try:
                cells = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                number += 1
                yield number, RowError("unreadable", f"it is not CSV ({error}, line {reader.line_num} of the file)")
                continue
            if cells:
                number += 1
                yield number, _csv_row(header, cells, reader.line_num)


def _decode_csv_line(line: bytes | None) -> str:
    if line is None:
        raise csv.Error("line too long")
    return line.decode("utf-8", "surrogateescape")


def _header(reader: Any, file: Path) -> list[str]:
    try:
        header = next(reader, [])
    except csv.Error as error:
        raise KDError(f"{printable(file)} has no header that can be read: {error}.") from error
    if not any(header):
        raise KDError(f"{printable(file)} has no header; its first line has to name the columns.")
    twice = next((name for name in header if header.count(name) > 1), None)
    if twice is not None:
        raise KDError(f"{printable(file)} has the column {twice!r} twice in its header; rename one.")
    if not _is_text(header):
        raise KDError(f"{printable(file)} is not UTF-8 text; save it as UTF-8.")
    return header


def _csv_row(header: list[str], cells: list[str], line: int) -> Raw | RowError:
    if len(cells) != len(header):
        return RowError("unreadable", f"it has {len(cells)} cells and the header {len(header)} (line {line})")
    if not _is_text(cells):
        return RowError("unreadable", f"it is not UTF-8 (line {line} of the file)")
    if any("\0" in cell for cell in cells):
        return RowError("unreadable", f"it holds a NUL byte (line {line} of the file)")
    return {column: cell for column, cell in zip(header, cells, strict=True) if cell}


def _is_text(cells: list[str]) -> bool:
    try:
        "".join(cells).encode()
    except UnicodeEncodeError:
        return False
    return True


def _read_parquet(file: Path, limit: int) -> Numbered:
    number = 0
    try:
        with pq.ParquetFile(file) as parquet:
            for batch in parquet.iter_batches(batch_size=PARQUET_ROWS):
                for raw in _python_rows(batch):
                    number += 1
                    yield number, raw
    except (pa.ArrowException, ValueError, OSError) as error:
        where = f" after row {number}" if number else ""
        reason = str(error).strip().partition("\n")[0]
        raise KDError(f"{printable(file)} cannot be read as Parquet{where}: {reason}.") from error


def _python_rows(batch: pa.RecordBatch) -> Iterator[Raw | RowError]:
    try:
        rows = batch.to_pylist(maps_as_pydicts="lossy")
    except ValueError as error:  # text that is not UTF-8, a time that Python has not
        if len(batch) == 1:
            yield RowError("unreadable", f"a value cannot be read ({error})")
            return
        for index in range(len(batch)):
            yield from _python_rows(batch.slice(index, 1))
        return
    yield from map(_without_nulls, rows)


def _without_nulls(value: Any) -> Any:
    # Arrow fills the keys that a row lacks with null.
    if isinstance(value, dict):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    return [_without_nulls(item) for item in value] if isinstance(value, list) else value


READERS = {
    ".jsonl": _read_jsonl,
    ".json": _read_json,
    ".csv": _read_csv,
    ".tsv": _read_csv,
    ".parquet": _read_parquet,
}
