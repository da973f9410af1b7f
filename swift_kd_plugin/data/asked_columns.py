"""Columns of a source that are asked for by name, whatever its rows would be read as without that."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Asked:
    """Names of columns.

    Args:
        gold: hold the gold answer.
        beside: hold a thought or an experience: no turn is made of them.
        keep: are kept as columns, and are turns as well.
    """

    gold: tuple[str, ...] = ()
    beside: tuple[str, ...] = ()
    keep: tuple[str, ...] = ()

    def __or__(self, other: "Asked") -> "Asked":
        gold, beside = {*self.gold, *other.gold}, {*self.beside, *other.beside}
        return Asked(tuple(sorted(gold)), tuple(sorted(beside)), tuple(sorted({*self.keep, *other.keep})))

    @property
    def names(self) -> frozenset[str]:
        return frozenset((*self.gold, *self.beside, *self.keep))


NOTHING_ASKED = Asked()
