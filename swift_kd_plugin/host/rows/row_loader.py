"""Every dataset of the command line is read as a source of a data.yaml is: one form of rows, one check of them.

Files and ids without a preprocessor of their own never meet ms-swift's; what a user's preprocessor makes is checked
behind it. Sampling, splitting, shuffling and mixing stay stock's.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import swift.dataset.dataset_syntax as syntax_module
from datasets import Dataset, Features, IterableDataset, Value
from modelscope.hub.utils.utils import get_cache_dir
from swift.dataset import AutoPreprocessor, DatasetLoader, DatasetMeta, RowPreprocessor, register_dataset
from swift.dataset.dataset_meta import DATASET_MAPPING, SubsetDataset
from swift.dataset.dataset_syntax import DatasetSyntax
from swift.utils import get_logger, safe_ddp_context, use_hf_hub

from swift_kd_plugin.data import row_store
from swift_kd_plugin.data.build import Builder, no_opener
from swift_kd_plugin.data.dataset_specs import DatasetId, DatasetSpec, File, RowsSpec
from swift_kd_plugin.data.row_report import Report, no_row_left
from swift_kd_plugin.data.rows import Place
from swift_kd_plugin.data.sources import READERS
from swift_kd_plugin.errors import KDError, named_line

Loaded = Dataset | IterableDataset
# Rows of a stream that are looked at for the names of further columns.
SEEN_ROWS = 1000
STREAM = "its rows are read while they are trained on, and the log says what is left out"
logger = get_logger()


@dataclass
class Reading:
    """How a run reads its rows.

    Args:
        keep: columns that it needs besides those of a row.
        all_columns: keep every column (`--remove_unused_columns false`).
        trains: as of `Builder`.
        reports: what became of each dataset's rows, by its name; filled when it is loaded.
        features: of all columns of streams, likewise.
    """

    keep: tuple[str, ...] = ()
    all_columns: bool = False
    trains: str | None = None
    # Checkpoints keep the text of what hangs on the arguments, and compare it between ranks.
    reports: dict[str, Report] = field(default_factory=dict, repr=False)
    features: dict[str, Any] = field(default_factory=dict, repr=False)


class RowLoader(DatasetLoader):
    """Loads one dataset of the command line.

    Args:
        reading: of the run.
        node: what a data.yaml says of it; None for a file or an id.
    """

    def __init__(self, *args, reading: Reading, node: DatasetSpec | None = None, **kwargs):
        super().__init__(*args, **kwargs)
        self.reading, self.node = reading, node
        self.remove_unused_columns = False  # done here
        if node is not None and self.columns:
            raise KDError(
                f"--columns has no effect on {node.name!r} of --kd_datasets; give its source `columns:` there."
            )

    def load(
        self, dataset_syntax: DatasetSyntax, dataset_meta: DatasetMeta | None = None, *, use_hf: bool | None = None
    ) -> Loaded:
        if self.node is not None:
            return self._build(self.node, partial(open_dataset, use_hf=use_hf, **self._settings()))
        meta = dataset_meta or DatasetMeta()
        stock = partial(super().load, dataset_syntax, use_hf=use_hf)
        label, columns, file = dataset_syntax.get_raw(), {}, _file_of(dataset_syntax)
        if makes_rows(meta):
            if file and not self.columns:
                return self._build(meta.preprocess_func.node_of(file.resolve(), str(file)))
            return stock(
                replace(meta, preprocess_func=meta.preprocess_func.in_run(self.reading.keep, self.reading.trains))
            )
        if type(meta.preprocess_func) is not AutoPreprocessor or self.disable_auto_column_mapping:
            meta = replace(meta, preprocess_func=partial(_name_the_row, meta.preprocess_func, label))
        else:
            columns, self.columns = {**meta.preprocess_func.columns, **(self.columns or {})}, None
            if file:
                return self._build(RowsSpec(str(file), File(file.resolve(), str(file)), tuple(columns.items())))
            meta = _without_preprocessing(meta)
        return self._build(RowsSpec(label, DatasetId(label), tuple(columns.items())), lambda _: stock(meta))

    def concat_datasets(self, datasets: list[Loaded]) -> Loaded | None:
        return super().concat_datasets(self._with_features(datasets))

    def interleave_datasets(self, datasets: list[Loaded], *args: Any, **settings: Any) -> Loaded | None:
        return super().interleave_datasets(self._with_features(datasets), *args, **settings)

    def _with_features(self, datasets: list[Loaded]) -> list[Loaded]:
        """Gives streams that are to be joined the features that they lose with ms-swift's column `dataset`: first rows
        alone do not tell them, as a content may be a text or a call."""
        for dataset in datasets if len(datasets) > 1 else ():
            if isinstance(dataset, IterableDataset) and dataset.features is None:
                dataset.info.features = Features({**self.reading.features, "dataset": Value("string")})
        return datasets

    def _settings(self) -> dict[str, Any]:
        return {"streaming": self.streaming, "hub_token": self.hub_token, "strict": self.strict}

    def _build(self, node: DatasetSpec, opener: Callable[[str], Loaded] = no_opener) -> Loaded:
        builder = Builder(cache_folder(), opener, self.strict, self.reading.keep, self.reading.trains)
        # Outside of the context below: loading an id waits for the other ranks by itself.
        builder.open_sources(node)
        if self.streaming:
            stream = self._with_all_columns(builder, node).stream(node)
            self.reading.features |= stream.features
            self.reading.reports.setdefault(node.name, Report()).state(node.name, stream=STREAM)
            return stream
        with safe_ddp_context(None, True):
            dataset, report = self._with_all_columns(builder, node).dataset(node)
        self.reading.reports[node.name] = report
        if not len(dataset):
            raise no_row_left(node.name, report)
        return without_unused_columns(dataset)

    def _with_all_columns(self, builder: Builder, node: DatasetSpec) -> Builder:
        if not self.reading.all_columns:
            return builder
        if self.streaming:
            rows = islice(builder.rows(node, Report()), SEEN_ROWS)
        else:
            rows = row_store.to_rows(builder.dataset(node)[0])
        names = {name for row in rows for name in row.get("columns", {})}
        return replace(builder, keep=(*builder.keep, *sorted(names)))


def makes_rows(meta: DatasetMeta | None) -> bool:
    """Whether a preprocessor of the plugin reads the dataset."""
    return hasattr(getattr(meta, "preprocess_func", None), "makes_rows")


def load_for_script(loader: DatasetLoader, *args, **kwargs) -> Loaded:
    """What a preprocessor of the plugin makes of a dataset that is loaded outside of a run.

    Args:
        loader: ms-swift's, with its settings.
    """
    reading = Reading(all_columns=not loader.remove_unused_columns)
    loaded = RowLoader(**vars(loader), reading=reading).load(*args, **kwargs)
    for name, report in reading.reports.items():
        for line in report.lines():
            logger.info(f"{name}: {line}" if not line.startswith(" ") else line)
    return loaded


def _file_of(syntax: DatasetSyntax) -> Path | None:
    """The file that is read without `datasets`."""
    file = Path(syntax.dataset)
    return file if syntax.dataset_type == "path" and file.suffix.lower() in READERS else None


def cache_folder() -> Path:
    return Path(get_cache_dir()) / "datasets" / "swift_kd_plugin"


def without_unused_columns(dataset: Dataset) -> Dataset:
    """A built dataset without the columns that no row uses and without our store of columns that were not kept."""
    return dataset.select_columns([name for name in row_store.used_columns(dataset) if name != "columns"])


def open_dataset(dataset_id: str, **kwargs) -> Loaded:
    """The rows of an id, as ms-swift loads and understands it, with all columns."""
    from swift.dataset import load_dataset

    return load_dataset([dataset_id], remove_unused_columns=False, **kwargs)[0]


@contextmanager
def rows_read_here(given: Sequence[str], reading: Reading) -> Iterator[None]:
    """Within the block ms-swift loads the datasets that are named with `RowLoader`."""
    before = dict(DATASET_MAPPING)
    for name in given:
        syntax = DatasetSyntax.parse(name)
        meta = DATASET_MAPPING.get(syntax.dataset)
        meta = meta or syntax.get_dataset_meta(use_hf_hub() if syntax.use_hf is None else syntax.use_hf)
        if meta.loader is DatasetLoader:
            _register(syntax, meta, partial(RowLoader, reading=reading))
    try:
        yield
    finally:
        DATASET_MAPPING.clear()
        DATASET_MAPPING.update(before)
        syntax_module._dataset_meta_mapping = None  # made of it


def _register(syntax: DatasetSyntax, meta: DatasetMeta, loader: Callable[..., RowLoader]) -> None:
    name = syntax.dataset
    where = {"dataset_path": meta.dataset_path or name} if syntax.dataset_type == "path" else {}
    where |= {key: getattr(meta, key) or name for key in ("ms_dataset_id", "hf_dataset_id")}
    register_dataset(replace(meta, dataset_name=name, loader=loader, **where), exist_ok=True)


def as_it_is(dataset: Loaded, **_: Any) -> Loaded:
    """In place of ms-swift's own preprocessing: rows of every usual form are read later."""
    return dataset


def _without_preprocessing(meta: DatasetMeta) -> DatasetMeta:
    def plain(subset: SubsetDataset) -> SubsetDataset:
        function = subset.preprocess_func
        return replace(subset, preprocess_func=as_it_is if type(function) is AutoPreprocessor else function)

    return replace(meta, preprocess_func=as_it_is, subsets=[plain(subset) for subset in meta.subsets])


def _name_the_row(preprocess: Any, name: str, dataset: Loaded, *, strict: bool = False, **kwargs: Any) -> Loaded:
    """A user's preprocessing; a row with which it fails is named."""
    try:
        return preprocess(dataset, strict=strict, **kwargs)
    except Exception as error:  # of any kind: it is the user's code
        if not isinstance(preprocess, RowPreprocessor) or isinstance(dataset, IterableDataset):
            raise
        for number, row in enumerate(dataset, start=1):
            try:
                preprocess.batched_preprocess(
                    {key: [value] for key, value in row.items()}, strict=True, ignore_max_length_error=True
                )
            except Exception as reason:  # of any kind: it is the user's code
                raise KDError(
                    f"{Place(name, number)} cannot be used: {type(preprocess).__name__} says {named_line(reason)}; "
                    "mend the row, or pass --kd_bad_rows drop to leave such rows out."
                ) from error
        raise
