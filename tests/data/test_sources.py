"""Rows of files: each kind of file, what is broken in them, and how it is named."""

import csv
import json
import os
import tracemalloc
from datetime import date
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from swift_kd_plugin.data.columns import FEATURES
from swift_kd_plugin.data.row_report import Report
from swift_kd_plugin.data.rows import Place
from swift_kd_plugin.data.sources import read_file, read_rows
from swift_kd_plugin.errors import KDError
from tests.json_lines import write_json_lines

GOOD = {"prompt": "q", "completion": "a"}
GOOD_LINE = json.dumps(GOOD).encode() + b"\n"


def write(file: Path, data: bytes | str) -> Path:
    file.write_bytes(data if isinstance(data, bytes) else data.encode())
    return file


def read(file: Path, **kwargs) -> tuple[list[tuple[Place, dict]], Report]:
    report = Report()
    return list(read_file(file, report, name="f" + file.suffix, **kwargs)), report


def left_out(report: Report) -> dict[str, str]:
    """Reasons by place."""
    return {example["place"]: example["text"] for entry in report.left_out.values() for example in entry.examples}


def test_jsonl_rows_are_numbered_by_line(tmp_path: Path):
    data = b"\xef\xbb\xbf" + b'{"id": "a"}\r\n' + b"\n  \t\r\n" + b'{"id": 7}\n' + '{"x": "é\u2028"}'.encode()
    rows, report = read(write(tmp_path / "x.jsonl", data))
    assert rows == [
        (Place("f.jsonl", 1, "a"), {"id": "a"}),
        (Place("f.jsonl", 4, "7"), {"id": 7}),
        (Place("f.jsonl", 5), {"x": "é\u2028"}),
    ]
    assert (report.read, report.left_out) == ({"f.jsonl": 3}, {})


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"{", "it is not JSON (Expecting property name enclosed in double quotes, column 2)"),
        (b'{"a": 1} {"b": 2}', "it is not JSON (Extra data, column 10)"),
        (b'{"a": "b', "it is not JSON (Unterminated string starting at, column 7)"),
        (b'{"a": "\x00"}', "it is not JSON (Invalid control character at, column 8)"),
        (b'\xef\xbb\xbf{"a": 1}', "it is not JSON (Expecting value, column 1)"),
        (b'{"a": "\xff"}', "it is not UTF-8 (byte 8 of the line)"),
        (b"[1]", "it is a list, not an object"),
        (b"null", "it is null, not an object"),
        (b"12", "it is a number, not an object"),
        (b'"text"', "it is text, not an object"),
        (b'{"a": NaN}', "it holds NaN, which is not JSON"),
        (b'{"a": -Infinity}', "it holds -Infinity, which is not JSON"),
        (b'{"a": ' + b"9" * 5000 + b"}", "it holds a whole number with too many digits"),
        (b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "it is nested too deep"),
        (b'{"a": ' + b"[" * 200 + b"]" * 200 + b"}", "it is nested deeper than 100 levels"),
        (b'{"a": ["x\\ud800"]}', r"it holds \ud800, half of a character's surrogate pair"),
        (b'{"\\uDC01": 1}', r"it holds \udc01, half of a character's surrogate pair"),
        (b'{"a": "' + b"x" * 2_000_000 + b'"}', "the line is longer than 1,000,000 bytes"),
    ],
)
def test_a_bad_line_is_left_out_and_reading_goes_on(tmp_path: Path, line: bytes, reason: str):
    file = write(tmp_path / "x.jsonl", GOOD_LINE + line + b"\n" + GOOD_LINE)
    rows, report = read(file, max_line_bytes=1_000_000)
    assert [place.row for place, _ in rows] == [1, 3]
    assert left_out(report) == {"f.jsonl, line 2": reason}
    assert report.left_out["unreadable"].rows == {"f.jsonl": [2]}
    assert report.read == {"f.jsonl": 3}


def test_a_strict_report_stops_at_a_bad_line(tmp_path: Path):
    file = write(tmp_path / "x.jsonl", GOOD_LINE + b"{\n" + GOOD_LINE)
    rows = read_file(file, Report(strict=True))
    next(rows)
    with pytest.raises(
        KDError, match=r"x\.jsonl, line 2 cannot be used: it is not JSON \(.*, column 2\); mend the row"
    ):
        next(rows)


def test_escaped_pairs_are_characters(tmp_path: Path):
    rows, _ = read(write(tmp_path / "x.jsonl", b'{"a": "\\ud83d\\ude00"}'))
    assert rows[0][1] == {"a": "\U0001f600"}


@pytest.mark.parametrize("limit", [len(GOOD_LINE) - 2, len(GOOD_LINE) - 1, len(GOOD_LINE)])
def test_the_limit_is_a_line_without_its_end(tmp_path: Path, limit: int):
    rows, _ = read(write(tmp_path / "x.jsonl", GOOD_LINE + GOOD_LINE), max_line_bytes=limit)
    assert len(rows) == (2 if limit >= len(GOOD_LINE) - 1 else 0)


@pytest.mark.parametrize("suffix", [".jsonl", ".csv"])
def test_lines_of_any_length_take_bounded_memory(tmp_path: Path, suffix: str):
    start = {".jsonl": b'{"a": "', ".csv": b""}[suffix]
    with open(tmp_path / f"x{suffix}", "wb") as file:
        file.write(GOOD_LINE if suffix == ".jsonl" else b"prompt\nq\n")
        for _ in range(2):
            file.write(start)
            for _ in range(50):
                file.write(b"x" * (1 << 20))
            file.write(b"\n")
        file.write(GOOD_LINE if suffix == ".jsonl" else b"q\n")
    tracemalloc.start()
    try:
        rows, report = read(tmp_path / f"x{suffix}")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert (len(rows), report.left_out["unreadable"].count) == (2, 2)
    assert peak < 80 << 20


def test_rows_are_read_one_at_a_time(tmp_path: Path):
    report = Report()
    rows = read_file(write(tmp_path / "x.jsonl", GOOD_LINE * 1000), report, name="x")
    next(rows)
    assert report.read == {"x": 1}


@pytest.mark.parametrize(
    "page", [[GOOD, GOOD], {"data": [GOOD, GOOD]}, {"version": 1, "tags": ["a"], "rows": [GOOD, GOOD]}]
)
def test_json_lists(tmp_path: Path, page):
    rows, report = read(write(tmp_path / "x.json", "\ufeff" + json.dumps(page, indent=1)))
    assert rows == [(Place("f.json", 1), GOOD), (Place("f.json", 2), GOOD)]
    assert report.read == {"f.json": 2}


def test_json_items_that_are_no_rows_are_left_out(tmp_path: Path):
    rows, report = read(write(tmp_path / "x.json", '[{"id": 1}, 2, [], {"a": "\\ud800"}, {"id": "b"}]'))
    assert [place for place, _ in rows] == [Place("f.json", 1, "1"), Place("f.json", 5, "b")]
    assert list(left_out(report).items()) == [
        ("f.json, row 2", "it is a number, not an object"),
        ("f.json, row 3", "it is a list, not an object"),
        ("f.json, row 4", r"it holds \ud800, half of a character's surrogate pair"),
    ]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"[{]", r"x\.json cannot be used: it is not JSON \(.*, column 3\)\."),
        (b'[\n{"a": }]', r"it is not JSON \(Expecting value, line 2, column 7\)\."),
        (
            b'{"a": 1}\n{"a": 2}',
            r"Extra data, line 2, column 1\); if each line is an object of its own, name it \.jsonl",
        ),
        (b"", r"it is not JSON \(Expecting value, column 1\)"),
        (b"[" * 100_000, "it is nested too deep"),
        (b"\xff\xfe", r"x\.json is not UTF-8 text \(byte 1\)\."),
        (b"3", "is a number with 0 lists of objects; it has to be a list of objects, or"),
        (b'{"a": 1}', "is an object with 0 lists of objects"),
        (b'{"a": [{}], "b": [{}]}', "is an object with 2 lists of objects"),
    ],
)
def test_a_json_file_that_is_broken_as_a_whole(tmp_path: Path, data: bytes, message: str):
    with pytest.raises(KDError, match=message):
        read(write(tmp_path / "x.json", data))


def test_csv_cells_are_text_and_empty_ones_absent(tmp_path: Path):
    file = tmp_path / "x.csv"
    with open(file, "w", newline="", encoding="utf-8-sig") as out:
        csv.writer(out).writerows([["id", "prompt", "completion"], ["1", 'a,"b"\nc', "é"], ["", "q", ""]])
    rows, report = read(file)
    assert rows == [
        (Place("f.csv", 1, "1"), {"id": "1", "prompt": 'a,"b"\nc', "completion": "é"}),
        (Place("f.csv", 2), {"prompt": "q"}),
    ]
    assert report.read == {"f.csv": 2}


def test_tsv(tmp_path: Path):
    rows, _ = read(write(tmp_path / "x.tsv", "prompt\tcompletion\r\nq, r\ta\r\n"))
    assert rows == [(Place("f.tsv", 1), {"prompt": "q, r", "completion": "a"})]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"q", "it has 1 cells and the header 2 (line 3)"),
        (b"q,a,b", "it has 3 cells and the header 2 (line 3)"),
        (b"q,\xff", "it is not UTF-8 (line 3 of the file)"),
        (b"q,a\x00", "it holds a NUL byte (line 3 of the file)"),
        (b'"q"x,a', "it is not CSV (',' expected after '\"', line 3 of the file)"),
        (b"q," + b"a" * 300_000, "it is not CSV (line too long, line 2 of the file)"),
    ],
)
def test_a_bad_csv_row_is_left_out_and_reading_goes_on(tmp_path: Path, line: bytes, reason: str):
    file = write(tmp_path / "x.csv", b"prompt,completion\nq,a\n" + line + b"\n\nq,b\n")
    rows, report = read(file, max_line_bytes=200_000)
    assert [(place.row, raw["completion"]) for place, raw in rows] == [(1, "a"), (3, "b")]
    assert left_out(report) == {"f.csv, row 2": reason}


def test_a_quote_that_is_never_closed_is_named(tmp_path: Path):
    rows, report = read(write(tmp_path / "x.csv", 'prompt,completion\nq,a\n"q,b\nq,c\n'))
    assert len(rows) == 1
    assert left_out(report) == {"f.csv, row 2": "it is not CSV (unexpected end of data, line 4 of the file)"}


def test_cells_longer_than_pythons_own_limit(tmp_path: Path):
    rows, _ = read(write(tmp_path / "x.csv", "prompt\n" + "x" * 500_000 + "\n"))
    assert len(rows[0][1]["prompt"]) == 500_000


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "has no header"),
        (b",,\n1,2,3\n", "has no header"),
        (b"a,b,a\n", "has the column 'a' twice in its header"),
        (b"a,\xff\n", "is not UTF-8 text"),
        (b'"a"b\n', "has no header that can be read"),
        ("a,b\n".encode("utf-16"), "is UTF-16; save it as UTF-8"),
    ],
)
def test_a_csv_file_without_a_header(tmp_path: Path, data: bytes, message: str):
    with pytest.raises(KDError, match=message):
        read(write(tmp_path / "x.csv", data))


def test_parquet_without_arrows_padding(tmp_path: Path):
    table = [
        {
            "id": 5,
            "messages": [{"role": "user", "content": "q", "loss": None}],
            "image": {"bytes": b"\x00", "path": "p"},
        },
        {
            "id": None,
            "messages": [{"role": "user", "content": "r", "loss": True}],
            "image": None,
            "day": date(2024, 1, 2),
        },
    ]
    pq.write_table(pa.Table.from_pylist([row | {"day": row.get("day")} for row in table]), tmp_path / "x.parquet")
    rows, report = read(tmp_path / "x.parquet")
    assert rows == [
        (
            Place("f.parquet", 1, "5"),
            {"id": 5, "messages": [{"role": "user", "content": "q"}], "image": {"bytes": b"\x00", "path": "p"}},
        ),
        (
            Place("f.parquet", 2),
            {"messages": [{"role": "user", "content": "r", "loss": True}], "day": date(2024, 1, 2)},
        ),
    ]
    assert report.read == {"f.parquet": 2}


def test_parquet_text_that_is_not_utf8_is_left_out(tmp_path: Path):
    values = pa.array([b"a", b"\xff", b"b"]).view(pa.string())
    pq.write_table(pa.table({"prompt": values}), tmp_path / "x.parquet")
    rows, report = read(tmp_path / "x.parquet")
    assert [(place.row, raw) for place, raw in rows] == [(1, {"prompt": "a"}), (3, {"prompt": "b"})]
    assert "it" not in left_out(report)
    assert left_out(report)["f.parquet, row 2"].startswith("a value cannot be read ('utf-8' codec can't decode")


@pytest.mark.parametrize("cut", [0, 3, 10, -10, -200])
def test_a_broken_parquet_file(tmp_path: Path, cut: int):
    pq.write_table(pa.table({"prompt": [str(i) for i in range(1000)]}), tmp_path / "x.parquet")
    data = (tmp_path / "x.parquet").read_bytes()
    with pytest.raises(KDError, match=r"x\.parquet cannot be read as Parquet"):
        read(write(tmp_path / "x.parquet", data[:cut]))


def test_damage_inside_a_parquet_file(tmp_path: Path):
    pq.write_table(pa.table({"prompt": [str(i) for i in range(10_000)]}), tmp_path / "x.parquet", compression="gzip")
    data = bytearray((tmp_path / "x.parquet").read_bytes())
    data[100:2000] = b"\xff" * 1900
    with pytest.raises(KDError, match=r"x\.parquet cannot be read as Parquet"):
        read(write(tmp_path / "x.parquet", bytes(data)))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("exp.jsonl", r"exp\.jsonl does not exist; did you mean 'expp\.jsonl' in the same folder\?$"),
        ("other.csv", r"other\.csv does not exist; check the path\.$"),
        ("none/exp.jsonl", r"exp\.jsonl does not exist, nor does its folder; check the path\.$"),
        ("x.txt", r"x\.txt is none of the files that are read here: \.jsonl, \.json, \.csv, \.tsv, \.parquet\.$"),
        ("folder.jsonl", r"folder\.jsonl is a folder; name the files in it\.$"),
        ("folder", r"folder is a folder; name the files in it\.$"),
    ],
)
def test_files_that_cannot_be_opened(tmp_path: Path, name: str, message: str):
    write(tmp_path / "expp.jsonl", "")
    (tmp_path / "folder.jsonl").mkdir()
    (tmp_path / "folder").mkdir()
    with pytest.raises(KDError, match=message):
        read_file(tmp_path / name, Report())


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every file")
def test_a_file_that_may_not_be_read(tmp_path: Path):
    write(tmp_path / "x.jsonl", "").chmod(0)
    with pytest.raises(KDError, match=r"x\.jsonl cannot be read: Permission denied; check its permissions\.$"):
        read_file(tmp_path / "x.jsonl", Report())


def test_a_file_name_that_is_no_text(tmp_path: Path):
    file = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.jsonl"))
    report = Report()
    assert list(read_file(write(file, "{\n"), report)) == []
    report.write(tmp_path / "report.json")
    assert list(report.read) == [f"{tmp_path}/\\udcff.jsonl"]


def test_an_empty_file_has_no_rows(tmp_path: Path):
    rows, report = read(write(tmp_path / "x.jsonl", ""))
    assert (rows, report.read) == ([], {"f.jsonl": 0})


def test_rows_are_the_same_from_every_kind_of_file(tmp_path: Path):
    table = [{"prompt": "q", "completion": "a", "topic": "t"}, {"prompt": "r", "completion": "b", "topic": "é"}]
    write_json_lines(tmp_path / "x.jsonl", table)
    write(tmp_path / "x.json", json.dumps(table))
    write(tmp_path / "x.csv", "prompt,completion,topic\nq,a,t\nr,b,é\n")
    pq.write_table(pa.Table.from_pylist(table), tmp_path / "x.parquet")
    found = [list(read_rows(file, Report(), name="x")) for file in sorted(tmp_path.iterdir())]
    assert found == [found[0]] * 4
    assert found[0][1] == {
        "messages": [{"role": "user", "content": "r"}, {"role": "assistant", "content": "b"}],
        "columns": {"topic": "é"},
        "kd_source": "x",
        "kd_row": 2,
    }


TOOLS = '[{"name": "f"}]'
EMPTY = (
    *({"prompt": "q", name: ""} for name in ("response", "output", "completion")),
    {"prompt": "q", "response": "", "answer": "a"},
    {"instruction": "q", "input": "", "output": ""},
    {"instruction": "q", "response": "", "output": "a"},
    *(
        {"prompt": "q", "response": "a", name: ""}
        for name in ("teacher_tools", "teacher_images", "teacher_chat_template_kwargs", "objects", "think_loss")
    ),
    *({"prompt": "q", "response": "a", name: ""} for name in ("teacher_messages", "chat_template_kwargs")),
    {"prompt": "q", "response": "a", "tools": TOOLS, "teacher_tools": ""},
    {"prompt": "q", "response": "a", "tools": TOOLS, "teacher_tools": "[]"},
)


@pytest.mark.parametrize("raw", EMPTY, ids=str)
def test_an_empty_text_is_absent_in_every_kind_of_file(tmp_path: Path, raw: dict):
    write_json_lines(tmp_path / "x.jsonl", [raw])
    write(tmp_path / "x.json", json.dumps([raw]))
    with open(tmp_path / "x.csv", "w", newline="", encoding="utf-8") as out:
        csv.writer(out).writerows([list(raw), list(raw.values())])
    pq.write_table(pa.Table.from_pylist([raw]), tmp_path / "x.parquet")
    found = [list(read_rows(file, Report(strict=True), name="x")) for file in sorted(tmp_path.iterdir())]
    assert found == [found[0]] * 4
    assert ("teacher_tools" in found[0][0]) == (raw.get("teacher_tools") == "[]")


@pytest.mark.parametrize("response", [[], [""], None, ""])
def test_an_empty_response_is_none(tmp_path: Path, response):
    write_json_lines(tmp_path / "x.jsonl", [{"prompt": "q", "response": response}])
    (made,) = read_rows(tmp_path / "x.jsonl", Report(strict=True), name="x")
    assert made == {"messages": [{"role": "user", "content": "q"}], "kd_source": "x", "kd_row": 1}


def test_rows_name_what_is_wrong_with_them(tmp_path: Path):
    table = [GOOD, {"topic": 1}, {"messages": []}, {"prompt": "q", "completion": "<think>a"}, GOOD]
    file = write_json_lines(tmp_path / "x.jsonl", table)
    report = Report()
    assert [row["kd_row"] for row in read_rows(file, report, name="x.jsonl")] == [1, 5]
    assert left_out(report) == {
        "x.jsonl, line 2": "it has the columns 'topic', and needs messages, or a prompt with or without a response",
        "x.jsonl, line 3": "its column 'messages' is empty",
        "x.jsonl, line 4": "turn 2 (assistant) opens <think> and does not close it",
    }


def test_an_unknown_format_is_refused_at_the_call(tmp_path: Path):
    with pytest.raises(
        KDError, match=r"^there is no format 'sharegpt' of rows; use auto, messages, alpaca, response\.$"
    ):
        read_rows(write(tmp_path / "x.jsonl", ""), Report(), format="sharegpt")


def test_rows_that_were_written_by_this_package_come_back(tmp_path: Path):
    from datasets import Dataset

    given = {
        "messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a", "loss": True}],
        "tools": [{"name": "add", "default": None}],
        "images": [{"bytes": b"\x00", "path": None}],
        "teacher_messages": [{"role": "user", "content": "book"}],
        "teacher_images": [],
        "chat_template_kwargs": {"enable_thinking": True},
        "think_loss": 0.0,
        "columns": {"id": 3, "topic": ["t"]},
        "kd_source": "exp.jsonl",
        "kd_row": 17,
        "kd_id": "3",
    }
    dataset = Dataset.from_list([dict.fromkeys(FEATURES) | given], features=FEATURES)
    dataset.to_parquet(tmp_path / "x.parquet")
    dataset.remove_columns("images").to_json(tmp_path / "x.jsonl")
    assert list(read_rows(tmp_path / "x.parquet", Report())) == [given]
    assert list(read_rows(tmp_path / "x.jsonl", Report())) == [
        {key: value for key, value in given.items() if key != "images"}
    ]
