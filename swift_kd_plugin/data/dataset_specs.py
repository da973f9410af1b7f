"""What a data.yaml can say: one class for each `type`, and the sources that they read."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from swift_kd_plugin.data.asked_columns import NOTHING_ASKED, Asked
from swift_kd_plugin.data.experience import Placement
from swift_kd_plugin.data.leaks import Suspicions
from swift_kd_plugin.data.pairing import ResponseRule
from swift_kd_plugin.data.thinking import Modes


@dataclass(frozen=True)
class File:
    """A file of rows: where it is, and what messages call it."""

    path: Path
    label: str


@dataclass(frozen=True)
class DatasetId:
    """A dataset that ms-swift knows how to load: an id of a hub, with its subsets and `#number` of rows."""

    label: str


@dataclass(frozen=True)
class DatasetSpec:
    """What all types have.

    Args:
        name: of the dataset, for messages; a nested one is called by its path, such as "mix.sources.pairs".
        bad_rows: "error" ends at the first row that cannot be used, "drop" leaves such rows out and reports them;
            None: as the run says.
        keep: columns of the source that stay columns of the dataset.
        thought: the column that holds the thoughts of the responses.
    """

    name: str
    bad_rows: Literal["error", "drop"] | None = field(default=None, kw_only=True)
    keep: tuple[str, ...] = field(default=(), kw_only=True)
    thought: str | None = field(default=None, kw_only=True)

    @property
    def strict(self) -> bool | None:
        return None if self.bad_rows is None else self.bad_rows == "error"


@dataclass(frozen=True)
class RowsSpec(DatasetSpec):
    """`type: rows`, and every source that is no dataset of the YAML: rows in any usual form.

    `asked` are the columns that it and the datasets made of it name, see `with_asked`.
    """

    source: File | DatasetId
    columns: tuple[tuple[str, str], ...] = ()
    format: str = "auto"
    response: ResponseRule | None = None
    asked: Asked = NOTHING_ASKED


@dataclass(frozen=True)
class PairsSpec(DatasetSpec):
    """`type: exp_noexp` with `exp` and `noexp`: two sources, joined."""

    exp: DatasetSpec
    noexp: DatasetSpec
    on: str
    duplicates: Literal["refuse", "first", "all"]
    unmatched: Literal["error", "drop"] | None
    response: ResponseRule
    suspicions: Suspicions


@dataclass(frozen=True)
class ExperienceSpec(DatasetSpec):
    """`type: exp_noexp` with `source`: rows with the experience in a column."""

    source: DatasetSpec
    placement: Placement
    response: ResponseRule
    suspicions: Suspicions


@dataclass(frozen=True)
class ThinkingMixSpec(DatasetSpec):
    """`type: thinking_mix` with `source`: each row in its mode."""

    source: DatasetSpec
    modes: Modes


@dataclass(frozen=True)
class MixPart:
    label: str
    source: DatasetSpec
    weight: float | None = None
    fraction: float | None = None


@dataclass(frozen=True)
class MixSpec(DatasetSpec):
    """`type: mix`, and a `thinking_mix` of one source for each mode."""

    parts: tuple[MixPart, ...]
    total: int | None = None
    replacement: bool = False
    seed: int = 42


def with_asked(node: DatasetSpec, asked: Asked) -> DatasetSpec:
    """The dataset, whose sources are read with the columns that are asked for by it and by what is made of it."""
    asked |= _asked_by(node)
    match node:
        case RowsSpec():
            return replace(node, asked=node.asked | asked)
        case PairsSpec():
            return replace(node, exp=with_asked(node.exp, asked), noexp=with_asked(node.noexp, asked))
        case MixSpec():
            parts = (replace(part, source=with_asked(part.source, asked)) for part in node.parts)
            return replace(node, parts=tuple(parts))
    return replace(node, source=with_asked(node.source, asked))


def _asked_by(node: DatasetSpec) -> Asked:
    rule = getattr(node, "response", None)
    beside = [node.thought, node.placement.column if isinstance(node, ExperienceSpec) else None]
    beside += [node.modes.column] if isinstance(node, ThinkingMixSpec) else []
    gold = (rule.gold,) if rule and rule.kind == "gold" else ()
    return Asked(gold, tuple(filter(None, beside)), node.keep)
