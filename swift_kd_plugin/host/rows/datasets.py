"""Dataset rows on their way through ms-swift: the teacher's columns survive, and no row is lost in silence."""

import json
import os
from contextlib import contextmanager
from typing import Any

import numpy as np
from datasets import Dataset, IterableDataset

from swift_kd_plugin.errors import KDError

TEACHER_COLUMN = "teacher_messages"
TEACHER_TOOLS = "teacher_tools"
TEACHER_KWARGS = "teacher_chat_template_kwargs"
TEACHER_THOUGHT = "teacher_thought"
THINK_LOSS = "think_loss"
TEACHER_COLUMNS = (TEACHER_COLUMN, TEACHER_TOOLS, TEACHER_KWARGS, TEACHER_THOUGHT, THINK_LOSS)
SOURCE_COLUMN, ROW_COLUMN, ID_COLUMN = "kd_source", "kd_row", "kd_id"
ROLES = ("system", "user", "assistant", "tool", "tool_call", "tool_response")
LAST_ROLES = ("user", "tool", "tool_response")
SHOWN_LENGTH = 200


class BadRow(KDError):
    """A row that cannot be used. `row` is the row as it was read, so that its line can be looked up."""

    def __init__(self, reason: str, row: dict[str, Any], place: str | None = None):
        row = dict(row)
        source, number, _ = (row.pop(column, None) for column in (SOURCE_COLUMN, ROW_COLUMN, ID_COLUMN))
        named = [source] if source else []
        place = place or ", ".join([*named, "row" if number is None else f"row {number}"])
        shown = json.dumps(row, ensure_ascii=False, default=str)
        if len(shown) > SHOWN_LENGTH:
            shown = shown[:SHOWN_LENGTH] + " ..."
        super().__init__(
            f"A dataset row cannot be used: {reason} ({place}: {shown}); "
            "mend the row, or pass --kd_bad_rows drop to leave such rows out."
        )
        self.reason, self.row, self.place = reason, row, place

    def __reduce__(self):
        return type(self), (self.reason, self.row, self.place)


def add_row_numbers(dataset: Dataset | IterableDataset) -> Dataset | IterableDataset:
    """Adds ROW_COLUMN, counted from 1, and the text of a column `id` as ID_COLUMN, so that errors can name a row after
    sampling, splitting and shuffling. (A user's own column is removed, and its type may differ between datasets.)

    A dataset of which only a part or one of several shards is read is left as it is: its rows have other numbers.
    """
    if isinstance(dataset, IterableDataset):
        return dataset if dataset.num_shards > 1 else dataset.map(_with_number, with_indices=True)
    if ROW_COLUMN in dataset.column_names or dataset._indices is not None:
        return dataset
    if "id" in dataset.column_names:
        dataset = dataset.add_column(ID_COLUMN, [_text(value) for value in dataset["id"]])
    return dataset.add_column(ROW_COLUMN, np.arange(1, len(dataset) + 1))


def _with_number(row: dict[str, Any], index: int) -> dict[str, Any]:
    if row.get(ROW_COLUMN) is not None:
        return row
    return {**row, ROW_COLUMN: index + 1} | ({ID_COLUMN: _text(row["id"])} if "id" in row else {})


def _text(value: Any) -> str | None:
    return None if value is None else str(value)


def check_teacher_columns(row: dict[str, Any]) -> None:
    """Raises ValueError if what the row gives to the teacher alone is malformed."""
    if row.get(TEACHER_COLUMN) is not None:
        _check_messages(row[TEACHER_COLUMN])
        if row.get("teacher_prompt"):
            raise ValueError(f"it has both {TEACHER_COLUMN} and teacher_prompt; keep one of the two columns")
    kwargs = row.get(TEACHER_KWARGS)
    if kwargs is not None and not isinstance(kwargs, dict):
        raise ValueError(f"{TEACHER_KWARGS} is {kwargs!r}, not an object such as {{'enable_thinking': true}}")
    if kwargs and kwargs.get("response_prefix") is not None:
        raise ValueError(f"{TEACHER_KWARGS} sets response_prefix, but what stands before the response is shared")
    _check_thoughts(row.get(TEACHER_THOUGHT), row.get(THINK_LOSS))
    for tool in _as_list(row.get(TEACHER_TOOLS)):
        if not isinstance(tool, (dict, str)):
            raise ValueError(f"{TEACHER_TOOLS} holds {tool!r}, which is neither an object nor a text")
    for image in _as_list(row.get("teacher_images")):
        if not (isinstance(image, str) or (isinstance(image, dict) and (image.get("bytes") or image.get("path")))):
            raise ValueError(f"teacher_images holds {image!r}, which is no path and has neither bytes nor path")


def _check_thoughts(thought: Any, weight: Any) -> None:
    if thought is not None and not isinstance(thought, str):
        raise ValueError(f"{TEACHER_THOUGHT} is {thought!r}, not a text")
    if thought and ("<think>" in thought or "</think>" in thought):
        raise ValueError(f"{TEACHER_THOUGHT} holds a <think> or </think>, but it stands between the two already")
    if weight is None:
        return
    if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not 0 <= weight <= 1:
        raise ValueError(f"{THINK_LOSS} is {weight!r}, not a number from 0 to 1")
    if thought is not None and weight > 0:
        raise ValueError(
            f"it has {THINK_LOSS} {weight} beside {TEACHER_THOUGHT}, with which the two views have different think "
            f"blocks that cannot be compared; give 0 or leave {THINK_LOSS} out"
        )


def _as_list(value: Any) -> list:
    if value is None:
        return []
    return value if isinstance(value, list) else [value]


def _check_messages(view: Any) -> None:
    if not isinstance(view, list) or not view:
        raise ValueError(f"{TEACHER_COLUMN} is not a list of messages")
    for message in view:
        if message.get("role") not in ROLES or message.get("content") is None:
            raise ValueError(f"{TEACHER_COLUMN} holds {message!r}, which lacks a known role or a content")
    if view[-1]["role"] not in LAST_ROLES:
        raise ValueError(
            f"{TEACHER_COLUMN} ends with the role {view[-1]['role']!r}; it must end with the user's turn, "
            "because the response is shared with messages"
        )


def preprocess_or_name_the_row(preprocess, batch: dict[str, list], may_filter: bool, **kwargs) -> dict[str, list]:
    """Runs ms-swift's batched preprocessing; a row that it refuses or loses is raised as BadRow.

    Args:
        preprocess: the stock `RowPreprocessor.batched_preprocess`, bound.
        batch: columns of equal length.
        may_filter: whether the preprocessor is one that leaves rows out on purpose.
    """
    done, failure = None, None
    try:
        done = preprocess(dict(batch), strict=True, **kwargs)
    except Exception as error:
        failure = error
    expected = len(next(iter(batch.values())))
    if done is not None and (may_filter or len(done["messages"]) == expected):
        return done
    for index in range(expected):
        row = {key: values[index] for key, values in batch.items()}
        reason = _find_reason(preprocess, row, may_filter, kwargs)
        if reason:
            raise BadRow(reason, row)
    if failure:
        raise failure
    return done


def _find_reason(preprocess, row: dict[str, Any], may_filter: bool, kwargs: dict) -> str | None:
    try:
        done = preprocess({key: [value] for key, value in row.items()}, strict=True, **kwargs)
    except Exception as error:
        detail = str(error).strip() or type(error).__name__
        return f"{type(error).__name__}: {detail}" if isinstance(error, (KeyError, TypeError)) else detail
    return None if may_filter or done["messages"] else "it has no messages"


@contextmanager
def locate_bad_row(sources: list[str]):
    """Adds file and line to a BadRow, looked up in the local .jsonl files among `sources`."""
    try:
        yield
    except BadRow as error:
        place = _find_line(error.row, sources)
        if place is None:
            raise
        raise BadRow(error.reason, error.row, place) from error


def _find_line(row: dict[str, Any], sources: list[str]) -> str | None:
    wanted = _without_nulls(row)
    for source in sources:
        path = source.split("#")[0]
        if not path.endswith(".jsonl") or not os.path.isfile(path):
            continue
        with open(path, encoding="utf-8") as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip() and _without_nulls(json.loads(line)) == wanted:
                    return f"{path}, line {number}"
    return None


def _without_nulls(value: Any) -> Any:
    # Arrow fills the fields that a row lacks with null.
    if isinstance(value, dict):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    return [_without_nulls(item) for item in value] if isinstance(value, list) else value
