"""How many rows are wanted: in all, of each mode, of each value of a column."""

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from swift_kd_plugin.data.rows import Row
from swift_kd_plugin.data.think_block import NON_THINKING, THINKING
from swift_kd_plugin.errors import KDError

_FORM = re.compile(r"(?:(?P<name>[^=:]+)(?::(?P<value>[^=]*))?=)?(?P<count>\d+)")


@dataclass(frozen=True)
class Quota:
    """At most `count` rows.

    Args:
        name: a mode, a column, or None for all rows.
        value: of the column; None: of each of its values.
    """

    count: int
    name: str | None = None
    value: str | None = None

    @classmethod
    def parse(cls, text: str) -> "Quota":
        """Raises KDError if it is not N, thinking=N, non_thinking=N, COLUMN=N or COLUMN:VALUE=N."""
        form = _FORM.fullmatch(text.strip())
        if form is None:
            raise KDError(
                f"--quota {text!r} is none of N, {THINKING}=N, {NON_THINKING}=N, COLUMN=N (of each value) and "
                "COLUMN:VALUE=N."
            )
        return cls(int(form["count"]), form["name"], form["value"])

    def group(self, row: Row, mode: str | None) -> str | None:
        """What it counts a row under; None if it does not count it."""
        if self.name is None:
            return "all"
        if self.name in (THINKING, NON_THINKING):
            return self.name if mode == self.name else None
        value = str(row.get("columns", {}).get(self.name))
        return f"{self.name}:{value}" if self.value in (None, value) else None


@dataclass
class Quotas:
    """Counts accepted rows."""

    quotas: tuple[Quota, ...] = ()
    counts: Counter = field(default_factory=Counter)

    @classmethod
    def parse(cls, texts: Iterable[str]) -> "Quotas":
        return cls(tuple(map(Quota.parse, texts)))

    @property
    def columns(self) -> list[tuple[str, str | None]]:
        """Columns that are counted, each with the value that is, or None for all of its values."""
        modes = (None, THINKING, NON_THINKING)
        return [(quota.name, quota.value) for quota in self.quotas if quota.name not in modes]

    @property
    def full(self) -> bool:
        """Whether no row of any kind can be taken any more."""
        by_name = {quota.name: quota.count for quota in self.quotas if quota.value is None}
        if None in by_name and self.counts["all"] >= by_name[None]:
            return True
        modes = (THINKING, NON_THINKING)
        return by_name.keys() >= set(modes) and all(self.counts[mode] >= by_name[mode] for mode in modes)

    def closed(self, row: Row, mode: str | None) -> str | None:
        """The first group of a row that is full; None if there is room. A mode of None is not known yet."""
        groups = ((quota.group(row, mode), quota.count) for quota in self.quotas)
        return next((group for group, count in groups if group is not None and self.counts[group] >= count), None)

    def take(self, row: Row, mode: str) -> None:
        self.counts.update({quota.group(row, mode) for quota in self.quotas} - {None})
