"""Reads a data.yaml: named datasets, whose sources may be files, ids, each other, or nested datasets."""

import os
import re
from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path
from typing import Any

from swift_kd_plugin.config.mapping_files import read_mapping, resolve
from swift_kd_plugin.config.typed_keys import read_keys, suggest
from swift_kd_plugin.data.data_yaml_keys import (
    TYPES,
    ExpNoexpKeys,
    Keys,
    MixKeys,
    PartKeys,
    RowsKeys,
    ThinkingMixKeys,
)
from swift_kd_plugin.data.dataset_specs import (
    DatasetId,
    DatasetSpec,
    ExperienceSpec,
    File,
    MixPart,
    MixSpec,
    PairsSpec,
    RowsSpec,
    ThinkingMixSpec,
)
from swift_kd_plugin.data.experience import MARK, Placement
from swift_kd_plugin.data.leaks import Suspicions
from swift_kd_plugin.data.pairing import ORDER, ResponseRule
from swift_kd_plugin.data.sources import READERS
from swift_kd_plugin.data.think_block import NON_THINKING, THINKING
from swift_kd_plugin.data.thinking import KEEP, Modes
from swift_kd_plugin.errors import KDError

EXAMPLE = "names to datasets, for example `pairs: {type: exp_noexp, exp: …, noexp: …}`"
NAME_PATTERN = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")


def read_data_yaml(file: str | Path) -> dict[str, DatasetSpec]:
    """The datasets of a data.yaml by name. Raises KDError naming file, dataset and key of a mistake."""
    file = Path(file)
    content = _with_on(resolve(read_mapping(file, example=EXAMPLE), file))
    if not content:
        raise KDError(f"{file} must map {EXAMPLE}.")
    reader = _Reader(file, content)
    for name in content:
        if not isinstance(name, str) or not NAME_PATTERN.fullmatch(name):
            raise KDError(
                f"{file}: the name {name!r} cannot be given to --dataset; use letters, digits, '_', '-', '.'."
            )
    return {name: reader.named(name) for name in content}


def read_node(keys: dict[str, Any], name: str, given: str) -> DatasetSpec:
    """A dataset from keys as they stand in a data.yaml; the source called `given` is one that the caller has.

    Paths are relative to the current folder. Raises KDError as `read_data_yaml` does.
    """
    source = RowsSpec(given, DatasetId(given))
    return _Reader(Path(name), {}, {given: source}).dataset(keys, name)


@dataclass
class _Reader:
    file: Path
    content: dict[str, Any]
    given: dict[str, DatasetSpec] = field(default_factory=dict)
    open: list[str] = field(default_factory=list)

    def named(self, name: str) -> DatasetSpec:
        if name in self.open:
            raise KDError(f"{self.file}: {' -> '.join([*self.open, name])} goes in a circle.")
        self.open.append(name)
        node = self.dataset(self.content[name], name)
        self.open.pop()
        return node

    def dataset(self, entry: Any, name: str) -> DatasetSpec:
        where = name if self.given else f"{self.file}: {name}"
        if not isinstance(entry, dict):
            raise KDError(f"{where} must be a mapping with a type ({', '.join(TYPES)}).")
        kind = entry.get("type")
        if kind not in TYPES:
            raise KDError(f"{where}: type is {kind!r}{suggest(kind, TYPES)}; it must be one of {', '.join(TYPES)}.")
        keys = read_keys(TYPES[kind], entry, where)
        make = {"rows": self._rows, "exp_noexp": self._exp_noexp, "thinking_mix": self._thinking_mix, "mix": self._mix}
        return make[kind](keys, name, where)

    def source(self, entry: str | dict, name: str, where: str) -> DatasetSpec:
        """A nested dataset, a dataset of this YAML, or the rows of a file or an id."""
        if isinstance(entry, dict):
            return self.dataset(entry, name)
        if entry in self.given:
            return self.given[entry]
        if entry in self.content:
            return self.named(entry)
        return RowsSpec(name, self._file_or_id(entry, where))

    def _file_or_id(self, text: str, where: str) -> File | DatasetId:
        if text in self.given:
            return DatasetId(text)
        path = self.file.parent / os.path.expanduser(text)
        if path.is_file():
            return File(path.resolve(), text)
        if path.is_dir():
            return DatasetId(str(path.resolve()))
        if not text or text.startswith((".", "/", "~")) or text.split("#")[0].endswith(tuple(READERS)):
            raise KDError(f"{where}: there is no file {text!r} in {self.file.parent.resolve()}.")
        if not re.search("[/:]", text):
            raise KDError(
                f"{where}: {text!r} is neither a dataset of this file{suggest(text, self.content)} nor a file nor "
                "an id such as owner/name."
            )
        return DatasetId(text)

    def _rows(self, keys: RowsKeys, name: str, where: str) -> DatasetSpec:
        if isinstance(keys.source, dict) or keys.source in self.content:
            raise KDError(f"{where}: a dataset of type rows reads a file or an id; use the other dataset directly.")
        rule = None
        if keys.gold is not None:
            rule = ResponseRule("gold", keys.gold, keys.thought)
        elif keys.thought is not None:
            rule = ResponseRule(thought=keys.thought)
        source = self._file_or_id(keys.source, where)
        return RowsSpec(name, source, tuple(keys.columns.items()), keys.format, rule, **_common(keys))

    def _exp_noexp(self, keys: ExpNoexpKeys, name: str, where: str) -> DatasetSpec:
        rule = ResponseRule(keys.response, keys.gold, keys.thought)
        suspicions = Suspicions(keys.leaks, keys.quotes, tuple(keys.quote_patterns))
        _check_patterns(suspicions.patterns, where)
        if keys.source is not None:
            if keys.exp is not None or keys.noexp is not None or keys.on is not None:
                raise KDError(f"{where}: give either exp, noexp and on, or source with an experience column.")
            if MARK not in keys.template:
                raise KDError(f"{where}: template has no {MARK} where the experience goes.")
            placement = Placement(keys.experience, keys.place, keys.template, keys.separator)
            source = self.source(keys.source, f"{name}.source", where)
            return ExperienceSpec(name, source, placement, rule, suspicions, **_common(keys))
        if keys.exp is None or keys.noexp is None:
            raise KDError(f"{where} needs exp and noexp (a file each), or source (rows with an experience column).")
        exp, noexp = (self.source(getattr(keys, side), f"{name}.{side}", where) for side in ("exp", "noexp"))
        on = keys.on or "id"
        if on == ORDER and any(_has_no_order(side) for side in (exp, noexp)):
            raise KDError(f"{where}: on: order needs one file on each side, because a mix has no order of its own.")
        return PairsSpec(name, exp, noexp, on, keys.duplicates, keys.unmatched, rule, suspicions, **_common(keys))

    def _thinking_mix(self, keys: ThinkingMixKeys, name: str, where: str) -> DatasetSpec:
        for key in ("thinking_share", "think_loss"):
            if (value := getattr(keys, key)) is not None and not 0 <= value <= 1:
                raise KDError(f"{where}: {key} is {value}; it must lie between 0 and 1.")
        if keys.think_loss and keys.teacher != "same":
            raise KDError(f"{where}: with a teacher in another mode the think blocks differ, so think_loss must be 0.")
        _check_counts(keys, where)
        if keys.source is None:
            return self._two_modes(keys, name, where)
        choices = [key for key in ("mode", "mode_column", "thinking_share") if getattr(keys, key) is not None]
        if len(choices) > 1 or keys.thinking is not None or keys.non_thinking is not None:
            raise KDError(f"{where}: give one of mode, mode_column and thinking_share, and one source.")
        if keys.total is not None or keys.replacement:
            raise KDError(f"{where}: total and replacement belong to two sources, thinking and non_thinking.")
        source = self.source(keys.source, f"{name}.source", where)
        return ThinkingMixSpec(name, source, _modes(keys, keys.mode or KEEP), **_common(keys))

    def _two_modes(self, keys: ThinkingMixKeys, name: str, where: str) -> DatasetSpec:
        if keys.thinking is None or keys.non_thinking is None:
            raise KDError(f"{where} needs source, or thinking and non_thinking (a source each).")
        if keys.mode is not None or keys.mode_column is not None:
            raise KDError(f"{where}: with a source for each mode, mode and mode_column have nothing to say.")
        share = keys.thinking_share
        weights = {THINKING: share, NON_THINKING: None if share is None else 1 - share}
        parts = []
        for mode in (THINKING, NON_THINKING):
            source = self.source(getattr(keys, mode), f"{name}.{mode}", where)
            node = ThinkingMixSpec(
                f"{name}.{mode}", source, _modes(keys, mode), bad_rows=keys.bad_rows, thought=keys.thought
            )
            parts.append(MixPart(mode, node, weights[mode], 1.0 if share is None else None))
        return MixSpec(name, tuple(parts), keys.total, keys.replacement, keys.seed, **_common(keys))

    def _mix(self, keys: MixKeys, name: str, where: str) -> DatasetSpec:
        if not keys.sources:
            raise KDError(f"{where} needs sources, for example `sources: {{a.jsonl: 0.7, b.jsonl: 0.3}}`.")
        parts = tuple(self._part(label, entry, f"{name}.{label}", where) for label, entry in keys.sources.items())
        if len({part.weight is None for part in parts}) > 1:
            raise KDError(f"{where}: give every source a weight, or every source a fraction.")
        if parts[0].weight is not None and not sum(part.weight for part in parts):
            raise KDError(f"{where}: all weights are 0.")
        if parts[0].weight is None and keys.replacement:
            raise KDError(f"{where}: fractions of the sources need no replacement; use weights.")
        _check_counts(keys, where)
        return MixSpec(name, parts, keys.total, keys.replacement, keys.seed, **_common(keys))

    def _part(self, label: str, entry: Any, name: str, where: str) -> MixPart:
        if not (_is_number(entry) or isinstance(entry, dict)):
            raise KDError(f"{where}: {label} is {entry!r}; it must be a weight or a mapping.")
        keys = PartKeys(weight=entry) if _is_number(entry) else read_keys(PartKeys, entry, f"{where}: {label}")
        if (keys.weight is None) == (keys.fraction is None):
            raise KDError(f"{where}: {label} needs a weight (its share of the mix) or a fraction (of its own rows).")
        if keys.weight is not None and keys.weight < 0:
            raise KDError(f"{where}: the weight of {label} is {keys.weight}; it must be at least 0.")
        if keys.fraction is not None and not 0 < keys.fraction <= 1:
            raise KDError(f"{where}: the fraction of {label} is {keys.fraction}; it must lie above 0 and be at most 1.")
        source = self.source(label if keys.source is None else keys.source, name, where)
        return MixPart(label, source, keys.weight, keys.fraction)


def _with_on(value: Any) -> Any:
    """The content with its keys `on`, which YAML 1.1 reads as true."""
    if isinstance(value, dict):
        return {"on" if key is True else key: _with_on(item) for key, item in value.items()}
    return [_with_on(item) for item in value] if isinstance(value, list) else value


def _common(keys: Keys) -> dict[str, Any]:
    return {"bad_rows": keys.bad_rows, "keep": tuple(keys.keep), "thought": getattr(keys, "thought", None)}


def _modes(keys: ThinkingMixKeys, mode: str) -> Modes:
    share = keys.thinking_share if keys.source is not None else None
    return Modes(
        mode, keys.mode_column, share, keys.teacher, keys.switch, keys.think_loss, keys.without_thought, keys.seed
    )


def _check_counts(keys: MixKeys | ThinkingMixKeys, where: str) -> None:
    for key, least in (("total", 1), ("seed", 0)):
        if (value := getattr(keys, key)) is not None and value < least:
            raise KDError(f"{where}: {key} is {value}; it must be at least {least}.")


def _check_patterns(patterns: tuple[str, ...], where: str) -> None:
    for pattern in patterns:
        try:
            re.compile(pattern)
        except re.error as error:
            raise KDError(f"{where}: quote_patterns has {pattern!r}, which is no regular expression: {error}.") from (
                error
            )


def _has_no_order(node: DatasetSpec) -> bool:
    return isinstance(node, MixSpec | PairsSpec) or (hasattr(node, "source") and _has_no_order(node.source))


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and isfinite(value)
