"""The datasets of a data.yaml as ordinary datasets of ms-swift: `--kd_datasets data.yaml --dataset pairs#1000`."""

import json
import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from swift.dataset import DatasetMeta, register_dataset
from swift.dataset.dataset_meta import DATASET_MAPPING
from swift.utils import get_logger, is_master

from swift_kd_plugin.config.typed_keys import suggest
from swift_kd_plugin.data.data_yaml import read_data_yaml
from swift_kd_plugin.data.files import write_atomically
from swift_kd_plugin.data.row_report import Report
from swift_kd_plugin.errors import KDError
from swift_kd_plugin.host.rows.row_loader import Reading, RowLoader

TAG = "kd_datasets"
REPORT_FILE = "kd_data_report.json"
logger = get_logger()


def register_named_datasets(file: str, reading: Reading) -> None:
    """Registers every dataset of a data.yaml with ms-swift under its name.

    Raises:
        KDError: the YAML has a mistake, or one of its names is a dataset of ms-swift already.
    """
    for name, node in read_data_yaml(file).items():
        other = DATASET_MAPPING.get(name)
        if other is not None and TAG not in other.tags:
            raise KDError(f"{file}: {name!r} is the name of a dataset of ms-swift; choose another.")
        loader = partial(RowLoader, node=node, reading=reading)
        meta = DatasetMeta(dataset_name=name, ms_dataset_id=name, hf_dataset_id=name, loader=loader, tags=[TAG])
        register_dataset(meta, exist_ok=True)


def check_names(file: str, given: Sequence[str]) -> None:
    """Raises KDError for a --dataset that is nearly a name of the YAML; ms-swift would look for it on a hub."""
    names = [name for name, meta in DATASET_MAPPING.items() if TAG in meta.tags]
    for value in given:
        name = value.rsplit("#", 1)[0]
        if not (name in DATASET_MAPPING or os.path.exists(name) or "/" in name or ":" in name):
            raise KDError(f"--dataset {value}: {file} has no dataset {name!r}{suggest(name, names)}; it has {names}.")


def log_reports(reports: dict[str, Report], folder: str | None) -> None:
    """Says what became of the inputs of each dataset, and writes it into the output folder, on the master rank."""
    add_reports({}, reports, folder)


def add_reports(known: dict[str, Report], further: dict[str, Report], folder: str | None) -> None:
    """Says what further reports say, and writes all of them."""
    if not further or not is_master():
        return
    for name, report in further.items():
        for line in report.lines():
            logger.info(f"{name}: {line}" if not line.startswith(" ") else line)
    if folder:
        pages = {name: report.as_json() for name, report in (known | further).items()}
        write_atomically(Path(folder) / REPORT_FILE, json.dumps(pages, ensure_ascii=False, indent=2) + "\n")
        logger.info(f"what became of every input row: {Path(folder) / REPORT_FILE}")
