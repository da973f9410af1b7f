"""Preprocessors for `DatasetMeta(preprocess_func=…)`: what a data.yaml does, for users who register from Python.

    from swift.dataset import DatasetMeta, register_dataset
    from swift_kd_plugin.host.rows.preprocessors import ExperiencePreprocessor

    register_dataset(DatasetMeta(
        dataset_name="hints", dataset_path="hints.jsonl", preprocess_func=ExperiencePreprocessor(experience="hint")))

Each takes the keys that its type has in a data.yaml; paths are relative to the current folder. Making one installs the
plugin, as naming it on a command line does: ms-swift removes columns that it does not know.
"""

from copy import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

from datasets import Dataset, IterableDataset
from swift.utils import get_logger, safe_ddp_context

from swift_kd_plugin import install
from swift_kd_plugin.data.build import Builder
from swift_kd_plugin.data.data_yaml import read_node
from swift_kd_plugin.data.dataset_specs import DatasetId, DatasetSpec, File, MixSpec, RowsSpec
from swift_kd_plugin.host.rows.row_loader import cache_folder, without_unused_columns

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

    def __init__(self, keys: dict[str, Any]):
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


def _with_file(node: DatasetSpec, file: File) -> DatasetSpec:
    if isinstance(node, RowsSpec):
        return replace(node, source=file) if node.source == DatasetId(GIVEN) else node
    sources = {name: _with_file(value, file) for name, value in vars(node).items() if isinstance(value, DatasetSpec)}
    if isinstance(node, MixSpec):
        sources["parts"] = tuple(replace(part, source=_with_file(part.source, file)) for part in node.parts)
    return replace(node, **sources)


class RowsPreprocessor(KDPreprocessor):
    """Rows in any usual form. `RowsPreprocessor(columns={"frage": "query"}, gold="answer")`."""

    def __init__(self, **keys: Any):
        super().__init__({"type": "rows", "source": GIVEN, **keys})


class ExperiencePreprocessor(KDPreprocessor):
    """The experience from a column goes into the teacher's view. `ExperiencePreprocessor(place="before")`."""

    def __init__(self, **keys: Any):
        super().__init__({"type": "exp_noexp", "source": GIVEN, **keys})


class PairPreprocessor(KDPreprocessor):
    """Rows with the experience are joined with those without. `PairPreprocessor(noexp="noexp.jsonl", on="id")`."""

    def __init__(self, *, noexp: str, **keys: Any):
        super().__init__({"type": "exp_noexp", "exp": GIVEN, "noexp": noexp, **keys})


class ThinkingPreprocessor(KDPreprocessor):
    """Each row in its mode. `ThinkingPreprocessor(thinking_share=0.5, think_loss=0)`."""

    def __init__(self, **keys: Any):
        super().__init__({"type": "thinking_mix", "source": GIVEN, **keys})


class MixPreprocessor(KDPreprocessor):
    """The dataset mixed with other sources. `MixPreprocessor(sources={"dataset": 0.7, "alpaca.json": 0.3})`."""

    def __init__(self, *, sources: dict[str, Any], **keys: Any):
        super().__init__({"type": "mix", "sources": sources, **keys})
