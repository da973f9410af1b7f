"""Whatever stands in a file, every row of it is either given or in the report, and nothing else is raised."""

import json
import random
import tracemalloc
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from swift_kd_plugin.data.column_names import KNOWN
from swift_kd_plugin.data.formats import to_row
from swift_kd_plugin.data.row_report import Report
from swift_kd_plugin.data.rows import Place, RowError
from swift_kd_plugin.data.sources import read_rows
from swift_kd_plugin.data.turns import ROLE_ALIASES
from swift_kd_plugin.data.validate import check_row
from swift_kd_plugin.errors import KDError
from tests.data.broken_rows import BROKEN, good
from tests.json_lines import write_json_lines

FAST = settings(deadline=None, max_examples=150, suppress_health_check=list(HealthCheck))

TEXTS = st.sampled_from(
    ["", "a", "é", "<think>", "</think>", "<think>x</think>y", "<image>", "[]", "[[1]]", "{", "null", "\ud800", "9" * 9]
) | st.text(max_size=6)
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | TEXTS
JSON = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3), max_leaves=6
)
TYPES = st.sampled_from(["text", "image", "image_url", "audio", "tool_use"])
PARTS = st.lists(st.fixed_dictionaries({"type": TYPES}, optional={"text": JSON, "image": JSON, "image_url": JSON}))
CALLS = st.lists(st.fixed_dictionaries({}, optional={"id": JSON, "function": JSON, "name": JSON, "arguments": JSON}))
TURN = st.fixed_dictionaries(
    {"role": st.sampled_from(sorted(ROLE_ALIASES)) | JSON, "content": TEXTS | PARTS | JSON},
    optional={"tool_calls": CALLS | JSON, "reasoning_content": JSON, "loss": JSON, "tool_call_id": JSON, "name": JSON},
)
PAIR = st.dictionaries(st.sampled_from(["user", "human", "gpt", "from", "value", "assistant"]), JSON, max_size=3)
TURNS = st.lists(TURN | PAIR | JSON, max_size=4)
ROW = st.dictionaries(
    st.sampled_from(sorted({*KNOWN, "id", "columns", "Messages", "topic"})) | TEXTS,
    JSON | TURNS | TURNS.map(lambda turns: json.dumps(turns)),
    max_size=5,
) | st.fixed_dictionaries(
    {"messages": TURNS}, optional={"teacher_messages": TURNS, "teacher_prompt": JSON, "images": JSON, "system": JSON}
)


def counted(report: Report) -> list[int]:
    return sorted(row for entry in report.left_out.values() for rows in entry.rows.values() for row in rows)


def assert_complete(found: list[dict], report: Report, numbers: list[int]) -> None:
    assert sorted([row["kd_row"] for row in found] + counted(report)) == numbers
    assert sum(report.read.values()) == len(numbers)
    json.dumps(report.as_json(), ensure_ascii=False).encode()


def without_own_place(raw: dict) -> dict:
    return {key: value for key, value in raw.items() if not key.lower().startswith("kd_")}


@FAST
@given(ROW)
def test_a_row_is_made_or_refused(raw: dict):
    try:
        row = to_row(raw, Place("x.jsonl", 1))
        check_row(row)
    except RowError as error:
        reason = str(error)
        assert reason
        assert "\n" not in reason
        reason.encode()
    else:
        json.dumps(row["messages"], ensure_ascii=False).encode()
        check_row(to_row({**row, "columns": json.dumps(row.get("columns"))}, Place("y.jsonl", 2)))


@FAST
@given(st.lists(ROW.map(without_own_place), max_size=8))
def test_every_row_of_a_jsonl_file_is_given_or_reported(tmp_path_factory, raws: list[dict]):
    file = tmp_path_factory.mktemp("rows") / "x.jsonl"
    write_json_lines(file, raws)
    report = Report()
    assert_complete(list(read_rows(file, report)), report, list(range(1, len(raws) + 1)))
    bad = counted(report)
    if bad:
        with pytest.raises(KDError, match=rf"x\.jsonl, line {bad[0]}( \(id .*\))? cannot be used: .*; mend the row"):
            list(read_rows(file, Report(strict=True)))


@FAST
@given(st.lists(st.binary(max_size=30), max_size=8), st.sampled_from([".jsonl", ".json", ".csv", ".tsv", ".parquet"]))
def test_any_bytes_are_read_or_refused(tmp_path_factory, lines: list[bytes], suffix: str):
    file = tmp_path_factory.mktemp("bytes") / f"x{suffix}"
    file.write_bytes(b"prompt,completion\n" * (suffix == ".csv") + b"\n".join(lines))
    report, refusal = Report(), None
    try:
        found = list(read_rows(file, report))
    except KDError as error:
        refusal = str(error)
    if refusal is None:
        assert len(found) + len(counted(report)) == sum(report.read.values())
    else:
        assert str(file) in refusal


@FAST
@given(st.lists(st.text(max_size=8), min_size=1, max_size=8))
def test_any_text_comes_back_from_a_csv_file(tmp_path_factory, texts: list[str]):
    import csv

    texts = [text.replace("\0", "").strip() + "." for text in texts if text.isprintable()]
    file = tmp_path_factory.mktemp("csv") / "x.csv"
    with open(file, "w", newline="", encoding="utf-8") as out:
        csv.writer(out).writerows([["prompt"], *([text] for text in texts)])
    report = Report()
    assert [row["messages"][0]["content"] for row in read_rows(file, report)] == texts
    assert report.left_out == {}


def test_ten_thousand_broken_rows_among_good_ones(tmp_path: Path):
    sorts = list(BROKEN.values())
    lines = [sorts[number % len(sorts)] for number in range(10_000)] + [good(number) for number in range(5_000)]
    random.Random(0).shuffle(lines)
    file = tmp_path / "x.jsonl"
    file.write_bytes(b"\n".join(lines))
    good_lines = {good(number) for number in range(5_000)}
    expected = [number for number, line in enumerate(lines, start=1) if line in good_lines]
    report = Report()
    found = list(read_rows(file, report))
    assert_complete(found, report, list(range(1, len(lines) + 1)))
    assert [row["kd_row"] for row in found] == expected
    assert sum(entry.count for entry in report.left_out.values()) == 10_000
    assert set(report.left_out) == {"unreadable", "format", "messages", "empty", "think", "media"}
    assert Report.from_json(report.as_json()).as_json() == report.as_json()


@pytest.mark.parametrize("name", BROKEN)
def test_each_broken_row_stops_a_strict_reading(tmp_path: Path, name: str):
    file = tmp_path / "x.jsonl"
    file.write_bytes(good(1) + b"\n" + BROKEN[name] + b"\n")
    with pytest.raises(KDError, match=r"x\.jsonl, line 2 cannot be used: .*; mend the row"):
        list(read_rows(file, Report(strict=True)))


def test_lines_of_fifty_megabytes_take_bounded_memory(tmp_path: Path):
    file = tmp_path / "x.jsonl"
    with open(file, "wb") as out:
        for number in range(4):
            out.write(good(number) + b"\n")
            if number % 2:
                out.write(b'{"prompt": "')
                for _ in range(50):
                    out.write(b"x" * (1 << 20))
                out.write(b'"}\n')
    report = Report()
    tracemalloc.start()
    try:
        found = list(read_rows(file, report))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert ([row["kd_row"] for row in found], counted(report)) == ([1, 2, 4, 5], [3, 6])
    assert peak < 80 << 20


def test_rows_of_a_parquet_file_are_given_or_reported(tmp_path: Path):
    contents = ["q", None, "", "<think>"] * 50
    table = [{"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": a}]} for a in contents]
    pq.write_table(pa.Table.from_pylist(table), tmp_path / "x.parquet")
    report = Report()
    assert_complete(list(read_rows(tmp_path / "x.parquet", report)), report, list(range(1, 201)))
    assert {kind: entry.count for kind, entry in report.left_out.items()} == {"empty": 100, "think": 50}
