"""Rows on disk as Arrow files: written in bounded memory, whole or not at all, and read back memory-mapped."""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import pairwise
from json.encoder import encode_basestring
from pathlib import Path
from typing import Any

import pyarrow as pa
from datasets import Dataset, Features, Json, List

from swift_kd_plugin.data.columns import FEATURES, IMAGE_COLUMNS
from swift_kd_plugin.data.files import written_whole
from swift_kd_plugin.data.rows import Message, Row

BATCH_ROWS = 1000
BATCH_BYTES = 64 << 20
_encode = json.JSONEncoder(ensure_ascii=False, check_circular=False).encode


def write_rows(file: Path, rows: Iterable[Row], keep: Sequence[str] = ()) -> int:
    """Writes rows as an Arrow stream with FEATURES and, as JSON, the columns in `keep`. Returns how many."""
    features = _features(keep)
    return _write(file, _encode_rows(rows, features, keep), features)


def copy_rows(file: Path, dataset: Dataset, keep: Sequence[str] = ()) -> int:
    """`write_rows` of a dataset made of stored ones; its rows are not decoded for it."""
    features = _features(keep)
    return _write(file, _copy_batches(dataset, features, keep), features)


def _features(keep: Sequence[str]) -> Features:
    return Features({**FEATURES, **{name: Json() for name in keep}})


def _write(file: Path, batches: Iterable[pa.RecordBatch], features: Features) -> int:
    count = 0
    with (
        written_whole(file) as part,
        pa.OSFile(str(part), "wb") as sink,
        pa.ipc.new_stream(sink, features.arrow_schema) as writer,
    ):
        for batch in batches:
            writer.write_batch(batch)
            count += len(batch)
    return count


def read_dataset(file: Path) -> Dataset:
    """A stored file as a memory-mapped dataset."""
    return Dataset.from_file(str(file))


def to_rows(dataset: Dataset) -> Iterator[Row]:
    """The rows of a stored dataset, without what they do not have."""
    features = dataset.features
    for table in _tables(dataset):
        columns = {name: _as_values(table.column(name).combine_chunks(), features[name]) for name in table.column_names}
        for index in range(len(table)):
            yield {name: value for name, values in columns.items() if (value := values[index]) is not None}


def used_columns(dataset: Dataset) -> list[str]:
    """The columns in which any row has a value, and messages."""
    table = dataset.data
    return [name for name in table.column_names if name == "messages" or table.column(name).null_count < len(table)]


def _tables(dataset: Dataset) -> Iterator[pa.Table]:
    """The dataset in parts, with its used columns: gathering chosen rows takes time for each column."""
    return dataset.select_columns(used_columns(dataset)).with_format("arrow").iter(batch_size=BATCH_ROWS)


def _as_values(array: pa.Array, feature: Any) -> list:
    if isinstance(feature, Json):
        return [None if text is None else json.loads(text) for text in array.storage.to_pylist()]
    if not _holds_json(feature):
        return array.to_pylist()
    offsets = array.offsets.to_pylist()
    texts = array.values[offsets[0] : offsets[-1]].storage.to_pylist()
    ends = [offset - offsets[0] for offset in offsets]
    lists = [f"[{','.join(texts[start:end])}]" for start, end in pairwise(ends)]
    return [
        json.loads(text) if valid else None for text, valid in zip(lists, array.is_valid().to_pylist(), strict=True)
    ]


def _holds_json(feature: Any) -> bool:
    return isinstance(feature, List) and isinstance(feature.feature, Json)


def _encode_rows(rows: Iterable[Row], features: Features, keep: Sequence[str]) -> Iterator[pa.RecordBatch]:
    encoders = {name: _encoder(feature) for name, feature in features.items()}
    batch: list[Row] = []
    size = 0
    for row in rows:
        columns = {name: row["columns"].get(name) for name in keep} if keep and row.get("columns") else {}
        encoded = {}
        for name, value in (*row.items(), *columns.items()):
            if value is None or name not in encoders:
                continue
            if encode := encoders[name]:
                value = encode(value)
                size += sum(map(len, value)) if isinstance(value, list) else len(value)
            elif name in IMAGE_COLUMNS:
                size += sum(len(image["bytes"] or b"") for image in value)
            encoded[name] = value
        batch.append(encoded)
        if len(batch) == BATCH_ROWS or size > BATCH_BYTES:
            yield _as_batch(batch, features)
            batch, size = [], 0
    yield _as_batch(batch, features)


def _copy_batches(dataset: Dataset, features: Features, keep: Sequence[str]) -> Iterator[pa.RecordBatch]:
    schema = features.arrow_schema
    for table in _tables(dataset):
        values = {}
        if keep and "columns" in table.column_names:
            columns = _as_values(table.column("columns").combine_chunks(), FEATURES["columns"])
            values = {name: [(row or {}).get(name) for row in columns] for name in keep}
        arrays = []
        for field in schema:
            if field.name in values:
                texts = [None if value is None else _encode(value) for value in values[field.name]]
                arrays.append(_as_array(texts, field.type))
            elif field.name in table.column_names:
                arrays.append(table.column(field.name).combine_chunks())
            else:
                arrays.append(pa.nulls(len(table), field.type))
        yield pa.RecordBatch.from_arrays(arrays, schema=schema)


def _encoder(feature: Any) -> Callable[[Any], Any] | None:
    if isinstance(feature, Json):
        return _encode
    return _encode_items if _holds_json(feature) else None


def _encode_items(items: list) -> list[str]:
    return [_encode_turn(item) if isinstance(item, dict) and len(item) == 2 else _encode(item) for item in items]


def _encode_turn(turn: Message) -> str:
    """JSON of a turn; most have a role and a text and nothing else, which goes five times faster by hand."""
    role, content = turn.get("role"), turn.get("content")
    if type(role) is str and type(content) is str:
        return f'{{"role": {encode_basestring(role)}, "content": {encode_basestring(content)}}}'
    return _encode(turn)


def _as_batch(rows: list[Row], features: Features) -> pa.RecordBatch:
    schema = features.arrow_schema
    used = {name for row in rows for name in row}
    arrays = [
        _as_array([row.get(field.name) for row in rows], field.type)
        if field.name in used
        else pa.nulls(len(rows), field.type)
        for field in schema
    ]
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


def _as_array(values: list, kind: pa.DataType) -> pa.Array:
    if all(value is None for value in values):
        return pa.nulls(len(values), kind)
    if pa.types.is_list(kind) and isinstance(kind.value_type, pa.BaseExtensionType):
        texts = pa.array(values, pa.list_(pa.string()))
        items = pa.ExtensionArray.from_storage(kind.value_type, texts.values)
        return pa.ListArray.from_arrays(texts.offsets, items, type=kind, mask=texts.is_null())
    if isinstance(kind, pa.BaseExtensionType):
        return pa.ExtensionArray.from_storage(kind, pa.array(values, pa.string()))
    return pa.array(values, kind)
