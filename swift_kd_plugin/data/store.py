"""Rows on disk as Arrow files: written in bounded memory, whole or not at all, and read back memory-mapped."""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import pairwise
from json.encoder import encode_basestring
from pathlib import Path
from typing import Any

import pyarrow as pa
from datasets import Dataset, Features, Json, List

from swift_kd_plugin.data.files import written_whole
from swift_kd_plugin.data.rows import FEATURES, Message, Row

BATCH_ROWS = 1000
BATCH_BYTES = 64 << 20
IMAGE_COLUMNS = ("images", "teacher_images")
_encode = json.JSONEncoder(ensure_ascii=False, check_circular=False).encode


def write_rows(file: Path, rows: Iterable[Row], keep: Sequence[str] = ()) -> int:
    """Writes rows as an Arrow stream with FEATURES and, as JSON, the columns in `keep`. Returns how many."""
    features = Features({**FEATURES, **{name: Json() for name in keep}})
    with (
        written_whole(file) as part,
        pa.OSFile(str(part), "wb") as sink,
        pa.ipc.new_stream(sink, features.arrow_schema) as writer,
    ):
        return _write_batches(writer, rows, features, keep)


def read_dataset(file: Path) -> Dataset:
    """A stored file as a memory-mapped dataset."""
    return Dataset.from_file(str(file))


def to_rows(dataset: Dataset) -> Iterator[Row]:
    """The rows of a stored dataset, without what they do not have."""
    for table in dataset.with_format("arrow").iter(batch_size=BATCH_ROWS):
        columns = {
            name: _as_values(table.column(name).combine_chunks(), dataset.features[name])
            for name in table.column_names
            if table.column(name).null_count < len(table)
        }
        for index in range(len(table)):
            yield {name: value for name, values in columns.items() if (value := values[index]) is not None}


def _as_values(array: pa.Array, feature: Any) -> list:
    if isinstance(feature, Json):
        return [None if text is None else json.loads(text) for text in array.storage.to_pylist()]
    if not _holds_json(feature):
        return array.to_pylist()
    offsets = array.offsets.to_pylist()
    texts = array.values[offsets[0] : offsets[-1]].storage.to_pylist()
    ends = [offset - offsets[0] for offset in offsets]
    whole = [f"[{','.join(texts[start:end])}]" for start, end in pairwise(ends)]
    return [
        json.loads(text) if valid else None for text, valid in zip(whole, array.is_valid().to_pylist(), strict=True)
    ]


def _holds_json(feature: Any) -> bool:
    return isinstance(feature, List) and isinstance(feature.feature, Json)


def _write_batches(writer, rows: Iterable[Row], features: Features, keep: Sequence[str]) -> int:
    count = 0
    encoders = {name: _encoder(feature) for name, feature in features.items()}
    batch: dict[str, list] = {name: [] for name in features}
    size = 0
    for row in rows:
        if keep:
            row = {**row, **{name: row["columns"].get(name) for name in keep if row.get("columns")}}
        size += _append(batch, row, encoders)
        count += 1
        if count % BATCH_ROWS == 0 or size > BATCH_BYTES:
            writer.write_batch(_as_batch(batch, features))
            batch, size = {name: [] for name in features}, 0
    writer.write_batch(_as_batch(batch, features))
    return count


def _append(batch: dict[str, list], row: Row, encoders: dict) -> int:
    size = 0
    for name, values in batch.items():
        value = row.get(name)
        if value is not None and (encode := encoders[name]):
            value = encode(value)
            size += sum(map(len, value)) if isinstance(value, list) else len(value)
        elif value is not None and name in IMAGE_COLUMNS:
            size += sum(len(image["bytes"] or b"") for image in value)
        values.append(value)
    return size


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


def _as_batch(batch: dict[str, list], features: Features) -> pa.RecordBatch:
    schema = features.arrow_schema
    return pa.RecordBatch.from_arrays([_as_array(batch[field.name], field.type) for field in schema], schema=schema)


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
