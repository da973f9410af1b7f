"""The datasets of a data.yaml as ordinary datasets of ms-swift: `--kd_datasets data.yaml --dataset pairs#1000`."""

import json
import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from datasets import Dataset, IterableDataset
from modelscope.hub.utils.utils import get_cache_dir
from swift.dataset import DatasetLoader, DatasetMeta, load_dataset, register_dataset
from swift.dataset.dataset_meta import DATASET_MAPPING
from swift.utils import get_logger, is_master, safe_ddp_context

from swift_kd_plugin.config.typed_keys import suggest
from swift_kd_plugin.data import row_store
from swift_kd_plugin.data.build import Builder
from swift_kd_plugin.data.data_yaml import read_config
from swift_kd_plugin.data.dataset_specs import Node
from swift_kd_plugin.data.files import write_atomically
from swift_kd_plugin.data.row_report import Report
from swift_kd_plugin.errors import KDError

TAG = "kd_datasets"
REPORT_FILE = "kd_data_report.json"
logger = get_logger()


class NamedLoader(DatasetLoader):
    """Loads one dataset of a data.yaml; sampling, splitting, shuffling and mixing by --interleave_prob stay stock's.

    Args:
        node: what the YAML says of it.
        keep: columns that the run needs.
        reports: where the report goes, by the dataset's name.
    """

    def __init__(self, *args, node: Node, keep: Sequence[str], reports: dict[str, Report], **kwargs):
        super().__init__(*args, **kwargs)
        if self.columns:
            raise KDError(
                f"--columns has no effect on {node.name!r} of --kd_datasets; give its source `columns:` there."
            )
        self.node, self.keep, self.reports = node, tuple(keep), reports

    def load(self, dataset_syntax=None, dataset_meta=None, *, use_hf=None) -> Dataset | IterableDataset:
        settings = {"streaming": self.streaming, "hub_token": self.hub_token, "strict": self.strict}
        opener = partial(open_dataset, use_hf=use_hf, **settings)
        builder = Builder(cache_folder(), opener, self.strict, self.keep)
        # Outside of the context below: loading an id waits for the other ranks by itself.
        builder.open_sources(self.node)
        if self.streaming:
            return builder.stream(self.node)
        with safe_ddp_context(None, True):
            dataset, report = builder.dataset(self.node)
        self.reports[self.node.name] = report
        return used_columns(dataset)


def cache_folder() -> Path:
    return Path(get_cache_dir()) / "datasets" / "swift_kd_plugin"


def used_columns(dataset: Dataset) -> Dataset:
    """A built dataset without the columns that no row uses and without our store of columns that were not kept."""
    return dataset.select_columns([name for name in row_store.used_columns(dataset) if name != "columns"])


def open_dataset(dataset_id: str, **kwargs) -> Dataset | IterableDataset:
    """The rows of an id, as ms-swift loads and understands it, with all columns."""
    return load_dataset([dataset_id], remove_unused_columns=False, **kwargs)[0]


def register_named_datasets(file: str, keep: Sequence[str] = ()) -> dict[str, Report]:
    """Registers every dataset of a data.yaml with ms-swift under its name.

    Returns:
        The reports, by dataset; filled when a dataset is loaded.

    Raises:
        KDError: the YAML has a mistake, or one of its names is a dataset of ms-swift already.
    """
    reports: dict[str, Report] = {}
    for name, node in read_config(file).items():
        other = DATASET_MAPPING.get(name)
        if other is not None and TAG not in other.tags:
            raise KDError(f"{file}: {name!r} is the name of a dataset of ms-swift; choose another.")
        loader = partial(NamedLoader, node=node, keep=keep, reports=reports)
        meta = DatasetMeta(dataset_name=name, ms_dataset_id=name, hf_dataset_id=name, loader=loader, tags=[TAG])
        register_dataset(meta, exist_ok=True)
    return reports


def check_names(file: str, given: Sequence[str]) -> None:
    """Raises KDError for a --dataset that is nearly a name of the YAML; ms-swift would look for it on a hub."""
    names = [name for name, meta in DATASET_MAPPING.items() if TAG in meta.tags]
    for value in given:
        name = value.rsplit("#", 1)[0]
        if not (name in DATASET_MAPPING or os.path.exists(name) or "/" in name or ":" in name):
            raise KDError(f"--dataset {value}: {file} has no dataset {name!r}{suggest(name, names)}; it has {names}.")


def log_reports(reports: dict[str, Report], folder: str | None) -> None:
    """Says what became of the inputs of each dataset, and writes it into the output folder, on the master rank."""
    if not reports or not is_master():
        return
    for name, report in reports.items():
        for line in report.lines():
            logger.info(f"{name}: {line}" if not line.startswith(" ") else line)
    if folder:
        pages = {name: report.as_json() for name, report in reports.items()}
        write_atomically(Path(folder) / REPORT_FILE, json.dumps(pages, ensure_ascii=False, indent=2) + "\n")
        logger.info(f"what became of every input row: {Path(folder) / REPORT_FILE}")
