"""Columns that are asked for by name and that no row has: a misspelt name would be passed over in silence."""

from collections.abc import Iterable, Iterator
from typing import Any

from swift_kd_plugin.config.typed_keys import suggest
from swift_kd_plugin.data.row_report import Report
from swift_kd_plugin.data.rows import Place, Row

Placed = tuple[Place, dict[str, Any]]


def note_unkept(rows: Iterable[Row], keep: Iterable[str], report: Report) -> Iterator[Row]:
    """The rows; at their end the columns to keep that none had go into the report."""
    missing, last = set(keep), None
    for row in rows:
        if missing:
            last = row
            missing.difference_update(row.get("columns", ()))
        yield row
    for name in sorted(missing) if last else ():
        near = suggest(name, last.get("columns", ()))
        report.note("a column to keep that no row has", f"keep: {name}{near}; nothing is kept", Place.of(last))


def note_unrenamed(raws: Iterable[Placed], columns: dict[str, str], report: Report) -> Iterator[Placed]:
    """The raw rows; at their end the columns to rename that none had go into the report."""
    missing, last = {old.lower(): old for old in columns}, None
    for place, raw in raws:
        if missing:
            last = place, raw
            for name in raw:
                missing.pop(name.lower(), None)
        yield place, raw
    for old in missing.values() if last else ():
        text = f"columns: {{{old}: {columns[old]}}}{suggest(old, last[1])}; nothing is renamed"
        report.note("a column to rename that no row has", text, last[0])
