"""Preprocessors for `DatasetMeta(preprocess_func=…)`: what a data.yaml does, for users who register from Python.

    from swift.dataset import DatasetMeta, register_dataset
    from swift_kd_plugin.host.rows.preprocessors import ExperiencePreprocessor

    register_dataset(DatasetMeta(
        dataset_name="hints", dataset_path="hints.jsonl", preprocess_func=ExperiencePreprocessor(experience="hint")))

Each takes the keys that its type has in a data.yaml; paths are relative to the current folder. Making one installs the
plugin, as naming it on a command line does: ms-swift removes columns that it does not know. A run takes the script as a
second plugin: `megatron rlhf --external_plugins swift_kd_plugin my.py --dataset hints ...`.

All take these keys, and refuse any other one with KDError, which says what may have been meant:
    bad_rows: "error" ends at the first row that cannot be used, "drop" leaves such rows out and reports them; None: as
        the run says (--kd_bad_rows).
    keep: columns of the source that stay columns of the dataset.
"""

from copy import copy
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, Never

from datasets import Dataset, IterableDataset
from swift.utils import get_logger, safe_ddp_context

from swift_kd_plugin import install
from swift_kd_plugin.data.build import Builder
from swift_kd_plugin.data.data_yaml import read_node
from swift_kd_plugin.data.data_yaml_keys import SourceSpec
from swift_kd_plugin.data.dataset_specs import DatasetId, DatasetSpec, File, MixSpec, RowsSpec
from swift_kd_plugin.errors import KDError, suggest
from swift_kd_plugin.host.rows.row_loader import cache_folder, without_unused_columns

__all__ = [
    "ExperiencePreprocessor",
    "KDPreprocessor",
    "MixPreprocessor",
    "PairPreprocessor",
    "RowsPreprocessor",
    "ThinkingPreprocessor",
]
GIVEN = "dataset"
logger = get_logger()


class KDPreprocessor:
    """A dataset of rows in any usual form becomes one of the rows that the trainer takes.

    Args:
        keys: as in a data.yaml, with GIVEN where the dataset that is preprocessed stands.

    Raises:
        KDError: an unknown key, a wrong value, or (when called with strict=True) a row that cannot be used.
    """

    makes_rows = True  # which need no further check
    trains: str | None = None  # as of `Builder`; a run sets both
    keep: tuple[str, ...] = ()

    def __init__(self, keys: dict[str, Any]) -> None:
        install()
        self.node = read_node(keys, type(self).__name__, GIVEN)

    def __call__(
        self, dataset: Dataset | IterableDataset, *, strict: bool = False, **kwargs: Any
    ) -> Dataset | IterableDataset:
        """ms-swift's call; its other settings (processes, automatic names of columns) have no meaning here."""
        builder = Builder(cache_folder(), lambda name: dataset, strict, self.keep, self.trains)
        if isinstance(dataset, IterableDataset):
            return builder.stream(self.node)
        with safe_ddp_context(None, True):
            made, report = builder.dataset(self.node)
        for line in report.lines():
            logger.info(line)
        return without_unused_columns(made)

    def in_run(self, keep: tuple[str, ...], trains: str | None) -> "KDPreprocessor":
        """The same for a run that reads further columns, and may need responses."""
        made = copy(self)
        made.keep, made.trains = keep, trains
        return made

    def node_of(self, file: Path, label: str) -> DatasetSpec:
        """The same as of a data.yaml, with a file in the place of the dataset."""
        return replace(_with_file(self.node, File(file, label)), name=f"{self.node.name} of {label}")


def _keys(arguments: dict[str, Any], **fixed: str) -> dict[str, Any]:
    """The keys of a data.yaml that the arguments of a constructor stand for; None is a key's default.

    Args:
        arguments: all variables of the constructor, of which `unknown` holds the keywords that it does not have.
    """
    known = {key: value for key, value in arguments.items() if key not in ("self", "unknown", "__class__")}
    for key in arguments["unknown"]:
        name = type(arguments["self"]).__name__
        raise KDError(f"{name} has the unknown key {key!r}{suggest(key, known)}; known are {', '.join(known)}.")
    return {**fixed, **{key: value for key, value in known.items() if value is not None}}


def _with_file(node: DatasetSpec, file: File) -> DatasetSpec:
    if isinstance(node, RowsSpec):
        return replace(node, source=file) if node.source == DatasetId(GIVEN) else node
    sources = {name: _with_file(value, file) for name, value in vars(node).items() if isinstance(value, DatasetSpec)}
    if isinstance(node, MixSpec):
        sources["parts"] = tuple(replace(part, source=_with_file(part.source, file)) for part in node.parts)
    return replace(node, **sources)


class RowsPreprocessor(KDPreprocessor):
    """Rows in any usual form. `RowsPreprocessor(columns={"frage": "query"}, gold="answer")`.

    Args:
        columns: other names of columns, {theirs: ours}.
        format: "auto" tells each row by itself; "messages", "alpaca" or "response" for all rows.
        gold: the column whose text becomes the response, or the last answer of the conversation in it.
        thought: the column with the response's thought.
        bad_rows, keep: as of all preprocessors.
    """

    def __init__(
        self,
        *,
        columns: dict[str, str] | None = None,
        format: str = "auto",
        gold: str | None = None,
        thought: str | None = None,
        bad_rows: Literal["error", "drop"] | None = None,
        keep: list[str] | None = None,
        **unknown: Never,
    ) -> None:
        super().__init__(_keys(locals(), type="rows", source=GIVEN))


class ExperiencePreprocessor(KDPreprocessor):
    """The experience from a column goes into the teacher's view. `ExperiencePreprocessor(place="before")`.

    Args:
        experience: the column with the experience.
        place: "system": behind the system prompt; "before" or "after": the text of the last user turn.
        template: what is put there, with {experience} where the experience goes.
        separator: between it and the text that it stands beside.
        response: "exp": the row's own answer; "gold": the text of the column `gold`; "none": the student writes it.
        gold: the column of the right answer.
        thought: the column with the response's thought.
        leaks: "drop" leaves out rows whose student's view has the experience's text; "report" says how many there are.
        quotes: the same of responses that speak of the experience ("according to the hint").
        quote_patterns: further regular expressions for such responses.
        bad_rows, keep: as of all preprocessors.
    """

    def __init__(
        self,
        *,
        experience: str = "experience",
        place: Literal["system", "before", "after"] = "system",
        template: str = "{experience}",
        separator: str = "\n\n",
        response: Literal["exp", "gold", "none"] = "exp",
        gold: str = "gold",
        thought: str | None = None,
        leaks: Literal["report", "drop"] = "report",
        quotes: Literal["report", "drop"] = "report",
        quote_patterns: list[str] | None = None,
        bad_rows: Literal["error", "drop"] | None = None,
        keep: list[str] | None = None,
        **unknown: Never,
    ) -> None:
        super().__init__(_keys(locals(), type="exp_noexp", source=GIVEN))


class PairPreprocessor(KDPreprocessor):
    """Rows with the experience are joined with those without. `PairPreprocessor(noexp="noexp.jsonl", on="id")`.

    Args:
        noexp: the rows without the experience, which the student sees: a file, an id that ms-swift loads, or the keys
            of a nested dataset.
        on: the column that both sides share, "last_user_message", or "order" (the row's number); None is "id".
        duplicates: rows that share a key and differ: "refuse" uses none of them, "first" the first one, "all" pairs
            every one with the experience.
        unmatched: rows of one side alone: "error" or "drop"; None: as `bad_rows`.
        response: "exp": the answer of the row with the experience; "gold": the text of the column `gold`; "none": the
            student writes it.
        gold, thought, leaks, quotes, quote_patterns: as of `ExperiencePreprocessor`.
        bad_rows, keep: as of all preprocessors.
    """

    def __init__(
        self,
        *,
        noexp: SourceSpec,
        on: str | None = None,
        duplicates: Literal["refuse", "first", "all"] = "refuse",
        unmatched: Literal["error", "drop"] | None = None,
        response: Literal["exp", "gold", "none"] = "exp",
        gold: str = "gold",
        thought: str | None = None,
        leaks: Literal["report", "drop"] = "report",
        quotes: Literal["report", "drop"] = "report",
        quote_patterns: list[str] | None = None,
        bad_rows: Literal["error", "drop"] | None = None,
        keep: list[str] | None = None,
        **unknown: Never,
    ) -> None:
        super().__init__(_keys(locals(), type="exp_noexp", exp=GIVEN))


class ThinkingPreprocessor(KDPreprocessor):
    """Each row in its mode. `ThinkingPreprocessor(thinking_share=0.5, think_loss=0)`.

    Args:
        mode: of all rows; "keep" or None leaves each as it is. Give one of `mode`, `mode_column` and `thinking_share`.
        mode_column: the column that says the mode of its row.
        thinking_share: share of the rows that think, 0 to 1, drawn by seed and content.
        teacher: the teacher's mode.
        switch: also write Qwen3's /think or /no_think behind the question.
        think_loss: weight of the loss on the think block, 0 to 1; None is 1.
        thought: the column with the response's thought.
        without_thought: what becomes of a row that shall think and has no thought.
        seed: of the draw.
        bad_rows, keep: as of all preprocessors.
    """

    def __init__(
        self,
        *,
        mode: Literal["thinking", "non_thinking", "keep"] | None = None,
        mode_column: str | None = None,
        thinking_share: float | None = None,
        teacher: Literal["same", "thinking", "non_thinking"] = "same",
        switch: bool = False,
        think_loss: float | None = None,
        thought: str | None = None,
        without_thought: Literal["leave_out", "non_thinking"] = "leave_out",
        seed: int = 42,
        bad_rows: Literal["error", "drop"] | None = None,
        keep: list[str] | None = None,
        **unknown: Never,
    ) -> None:
        super().__init__(_keys(locals(), type="thinking_mix", source=GIVEN))


class MixPreprocessor(KDPreprocessor):
    """The dataset mixed with other sources. `MixPreprocessor(sources={"dataset": 0.7, "alpaca.json": 0.3})`.

    Args:
        sources: a weight for each source, or {"fraction": 0.5} of its own rows; "dataset" is the one that is
            preprocessed, any other a file, an id that ms-swift loads, or {"source": ..., "weight": ...}.
        total: rows of the mix; None: as many as the weights allow, with `replacement` as few as use every row, with
            fractions their sum.
        replacement: rows may come again.
        seed: of the draw.
        bad_rows, keep: as of all preprocessors.
    """

    def __init__(
        self,
        *,
        sources: dict[str, Any],
        total: int | None = None,
        replacement: bool = False,
        seed: int = 42,
        bad_rows: Literal["error", "drop"] | None = None,
        keep: list[str] | None = None,
        **unknown: Never,
    ) -> None:
        super().__init__(_keys(locals(), type="mix"))


def __dir__() -> list[str]:
    return sorted(__all__)
