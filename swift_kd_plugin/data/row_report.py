"""What became of every input row: read, used, left out and why, or used and worth a look."""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from swift_kd_plugin.data.files import write_atomically
from swift_kd_plugin.data.rows import Place, RowError
from swift_kd_plugin.errors import KDError

ROW_EXAMPLES, LEFT_OUT_SHOWN = 5, 3
SHOWN_CHARACTERS, RANGES_SHOWN, SOURCES_SHOWN = 200, 80, 3
# So many rows that may not be left out end the reading.
MOST_REFUSED = 100


@dataclass
class ReportEntry:
    """Rows with one thing in common: how many, the first few with the reason, and the numbers of all by source."""

    count: int = 0
    examples: list[dict[str, str]] = field(default_factory=list)
    rows: dict[str, list[int]] = field(default_factory=dict)

    def add(self, place: Place, text: str) -> None:
        """Counts a row. Of the examples each says something else."""
        self.count += 1
        self.rows.setdefault(place.source, []).append(place.row)
        if len(self.examples) < ROW_EXAMPLES and text not in (example["text"] for example in self.examples):
            self.examples.append({"place": str(place), "text": text})

    @property
    def places(self) -> str:
        """The rows by source, of many the first; a file's name is never cut."""
        sources = list(self.rows.items())
        rows = [f"{source} {shorten(as_ranges(numbers), RANGES_SHOWN)}" for source, numbers in sources[:SOURCES_SHOWN]]
        return "; ".join(rows + ["..."] * (len(sources) > SOURCES_SHOWN))

    def merge(self, other: "ReportEntry") -> None:
        self.count += other.count
        known = {example["text"] for example in self.examples}
        further = [example for example in other.examples if example["text"] not in known]
        self.examples = (self.examples + further)[:ROW_EXAMPLES]
        for source, numbers in other.rows.items():
            self.rows.setdefault(source, []).extend(numbers)


@dataclass
class Report:
    """Counts of one dataset's making.

    Args:
        strict: raise at the first row that is left out; or, with `refused`, when MOST_REFUSED are.
        read: rows read from each source.
        left_out: rows that are not in the output, by kind.
        notes: rows that are in the output and worth a look, by kind.
        facts: everything else, by the dataset's name: rows joined, shares of a mix.
        refused: collects the rows that may not be left out, for `refuse` to name all of them at the end.
    """

    strict: bool = False
    read: dict[str, int] = field(default_factory=dict)
    left_out: dict[str, ReportEntry] = field(default_factory=dict)
    notes: dict[str, ReportEntry] = field(default_factory=dict)
    facts: dict[str, dict[str, Any]] = field(default_factory=dict)
    refused: ReportEntry | None = None

    def leave_out(self, error: RowError, place: Place) -> None:
        """Counts a row as left out. Raises KDError with place and reason if the report is strict."""
        self.left_out.setdefault(error.kind, ReportEntry()).add(place, shorten(str(error)))
        if not self.strict:
            return
        if self.refused is None:
            raise row_refusal(str(place), str(error))
        self.refused.add(place, str(error))
        if self.refused.count >= MOST_REFUSED:
            self.refuse()

    def refuse(self) -> None:
        """Raises KDError if rows that may not be left out were collected: the first with its reason, and which."""
        if self.refused is not None and self.refused.count:
            first = self.refused.examples[0]
            raise row_refusal(first["place"], first["text"], self.refused)

    def note(self, kind: str, text: str, place: Place) -> None:
        self.notes.setdefault(kind, ReportEntry()).add(place, shorten(text))

    def state(self, dataset: str, **facts: Any) -> None:
        self.facts.setdefault(dataset, {}).update(facts)

    def but(self, strict: bool | None) -> "Report":
        """The same report, filled together with this one, but with another strictness; None: with this one's."""
        return self if strict is None else replace(self, strict=strict)

    def merge(self, other: "Report") -> None:
        """Adds what another report has counted."""
        for source, count in other.read.items():
            self.read[source] = self.read.get(source, 0) + count
        for entries, other_entries in ((self.left_out, other.left_out), (self.notes, other.notes)):
            for kind, entry in other_entries.items():
                entries.setdefault(kind, ReportEntry()).merge(entry)
        self.facts |= other.facts

    def first_reason(self) -> str:
        """Place and reason of the first example of a row that was left out, or nothing."""
        return next((f"{e.examples[0]['place']}: {e.examples[0]['text']}" for e in self.left_out.values()), "")

    def as_json(self) -> dict[str, Any]:
        """The report as it is written: row numbers as ranges ("1-3, 7")."""
        page = asdict(self)
        del page["strict"], page["refused"]
        for entries in (page["left_out"], page["notes"]):
            for entry in entries.values():
                entry["rows"] = {source: as_ranges(numbers) for source, numbers in entry["rows"].items()}
        return page

    @classmethod
    def from_json(cls, page: dict[str, Any]) -> "Report":
        entries = {
            part: {
                kind: ReportEntry(e["count"], e["examples"], {s: from_ranges(text) for s, text in e["rows"].items()})
                for kind, e in page[part].items()
            }
            for part in ("left_out", "notes")
        }
        return cls(read=page["read"], facts=page["facts"], **entries)

    def write(self, file: Path) -> None:
        """Writes the report as JSON, whole or not at all."""
        write_atomically(file, json.dumps(self.as_json(), ensure_ascii=False, indent=2) + "\n")

    def lines(self) -> list[str]:
        """The report as text, a line each."""
        return [*self._counts(), *_entries("left out", self.left_out), *_entries("note", self.notes)]

    def summary(self, quiet: bool = False, left_out: str = "left out") -> list[str]:
        """What a person reads at a command's end: of each note one example, of what is left out a few.

        Args:
            quiet: only how many rows are left out, and why.
            left_out: what that is called.
        """
        if quiet:
            return _entries(left_out, self.left_out, 0)
        return [*self._counts(), *_entries(left_out, self.left_out, LEFT_OUT_SHOWN), *_entries("note", self.notes, 1)]

    def _counts(self) -> list[str]:
        lines = [f"read {count:,} rows of {source}" for source, count in self.read.items()]
        for name, facts in self.facts.items():
            lines.append(f"made {name}: " + ", ".join(f"{key} {_shown(value)}" for key, value in facts.items()))
        return lines


def _entries(verb: str, entries: dict[str, ReportEntry], examples: int = ROW_EXAMPLES) -> list[str]:
    lines = []
    for kind, entry in entries.items():
        others = f" ({entry.places})" if entry.count > len(entry.examples[:examples]) else ""
        lines.append(f"{verb}: {entry.count:,} x {kind}{others}")
        lines += [f"    {example['place']}: {example['text']}" for example in entry.examples[:examples]]
    return lines


def no_row_left(name: str, report: Report) -> KDError:
    """The error for a dataset of which no row is left."""
    return KDError(f"{name} has no row that can be used ({report.first_reason() or 'it is empty'}).")


def row_refusal(place: str, reason: str, entry: ReportEntry | None = None) -> KDError:
    """The error for a row that may not be left out.

    Args:
        entry: all rows that may not, of which this one is the first.
    """
    more = ""
    if entry is not None and entry.count > 1:
        at_least = "at least " * (entry.count >= MOST_REFUSED)
        more = f" ({at_least}{entry.count:,} rows cannot: {entry.places})"
    return KDError(
        f"{place} cannot be used: {reason}{more}; mend {'them' if more else 'the row'}, or have such rows left out "
        "(--kd_bad_rows drop, `bad_rows: drop` of the dataset, swift-kd without --strict)."
    )


def shorten(text: str, length: int = SHOWN_CHARACTERS) -> str:
    return text if len(text) <= length else text[:length] + " ..."


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return "(" + ", ".join(f"{key}: {_shown(item)}" for key, item in value.items()) + ")"
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}" if isinstance(value, float) else str(value)


def as_ranges(numbers: Iterable[int]) -> str:
    """[1, 2, 3, 7] as "1-3, 7"."""
    ranges: list[list[int]] = []
    for number in sorted(numbers):
        if ranges and number <= ranges[-1][1] + 1:
            ranges[-1][1] = number
        else:
            ranges.append([number, number])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in ranges)


def from_ranges(text: str) -> list[int]:
    numbers: list[int] = []
    for part in filter(None, text.split(", ")):
        first, _, last = part.partition("-")
        numbers += range(int(first), int(last or first) + 1)
    return numbers
