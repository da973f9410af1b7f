"""The report of what became of every row."""

import json
from pathlib import Path

import pytest

from swift_kd_plugin.data.row_report import (
    ROW_EXAMPLES,
    SHOWN_CHARACTERS,
    Report,
    ReportEntry,
    as_ranges,
    from_ranges,
    shorten,
)
from swift_kd_plugin.data.rows import Place, RowError
from swift_kd_plugin.errors import KDError


def place(row: int, source: str = "exp.jsonl", key: str | None = None) -> Place:
    return Place(source, row, key)


def filled() -> Report:
    report = Report(read={"exp.jsonl": 9, "b.csv": 2}, facts={"mix": {"rows": 1200, "share": 0.25, "by": {"a": 3}}})
    for row in (7, 1, 2, 3):
        report.leave_out(RowError("think", f"reason {row}"), place(row))
    report.leave_out(RowError("think", "other"), place(1, "b.csv"))
    report.leave_out(RowError("media", "no path"), place(2, "b.csv", "x"))
    report.note("duplicate", "as line 1", place(9))
    return report


@pytest.mark.parametrize(
    ("numbers", "text"),
    [([], ""), ([3], "3"), ([1, 2], "1-2"), ([1, 2, 3, 7], "1-3, 7"), ([9, 1, 8, 3], "1, 3, 8-9")],
)
def test_numbers_are_written_as_ranges(numbers: list[int], text: str):
    assert as_ranges(numbers) == text
    assert from_ranges(text) == sorted(numbers)


def test_counts_examples_and_rows_by_kind():
    report = filled()
    assert {kind: entry.count for kind, entry in report.left_out.items()} == {"think": 5, "media": 1}
    assert report.left_out["think"].rows == {"exp.jsonl": [7, 1, 2, 3], "b.csv": [1]}
    assert report.left_out["media"].examples == [{"place": "b.csv, row 2 (id 'x')", "text": "no path"}]


def test_only_the_first_rows_are_examples_and_all_are_counted():
    report = Report()
    for row in range(1, 101):
        report.leave_out(RowError("format", f"reason {row}"), place(row))
    entry = report.left_out["format"]
    assert [example["text"] for example in entry.examples] == [f"reason {row}" for row in range(1, ROW_EXAMPLES + 1)]
    assert (entry.count, report.as_json()["left_out"]["format"]["rows"]) == (100, {"exp.jsonl": "1-100"})


def test_an_example_says_something_new():
    report = Report()
    for row in (1, 2, 3):
        report.leave_out(RowError("no key", "it has no column 'id'"), place(row))
    report.leave_out(RowError("no key", "it needs a text"), place(4))
    texts = ["it has no column 'id'", "it needs a text"]
    assert [example["text"] for example in report.left_out["no key"].examples] == texts
    merged = Report()
    for _ in range(2):
        merged.merge(report)
    assert [example["text"] for example in merged.left_out["no key"].examples] == texts
    assert merged.left_out["no key"].count == 8


def test_a_command_prints_one_example_of_a_note_and_three_of_what_is_left_out():
    report = filled()
    report.note("duplicate", "as line 2", place(10))
    lines = report.summary()
    assert [line for line in lines if line.startswith("    ")] == [
        *(f"    exp.jsonl, line {row}: reason {row}" for row in (7, 1, 2)),
        "    b.csv, row 2 (id 'x'): no path",
        "    exp.jsonl, line 9: as line 1",
    ]
    assert "note: 2 x duplicate (exp.jsonl 9-10)" in lines
    assert report.summary(quiet=True, left_out="refused") == [
        "refused: 5 x think (exp.jsonl 1-3, 7; b.csv 1)",
        "refused: 1 x media (b.csv 2)",
    ]


def test_rows_that_may_not_be_left_out_are_named_together():
    report = Report(strict=True, refused=ReportEntry())
    report.refuse()
    report.leave_out(RowError("think", "reason 7"), place(7))
    report.but(strict=False).leave_out(RowError("think", "tolerated"), place(8))
    with pytest.raises(KDError, match=r"^exp.jsonl, line 7 cannot be used: reason 7; mend the row, or have"):
        report.refuse()
    for row in (1, 2, 3):
        report.but(strict=True).leave_out(RowError("format", f"reason {row}"), place(row))
    with pytest.raises(KDError, match=r"reason 7 \(4 rows cannot: exp.jsonl 1-3, 7\); mend them, or have such"):
        report.refuse()
    for row in range(11, 106):
        report.leave_out(RowError("format", "no"), place(row))
    with pytest.raises(KDError, match=r"\(at least 100 rows cannot: exp.jsonl 1-3, 7, 11-106\)"):
        report.leave_out(RowError("format", "no"), place(106))


def test_a_report_comes_back_from_its_json():
    page = json.loads(json.dumps(filled().as_json()))
    assert page["left_out"]["think"]["rows"] == {"exp.jsonl": "1-3, 7", "b.csv": "1"}
    assert "strict" not in page
    again = Report.from_json(page)
    assert again.as_json() == page
    assert again.lines() == filled().lines()


def test_reports_are_added_up():
    report, other = filled(), filled()
    other.read["c.jsonl"] = 1
    report.merge(other)
    assert report.read == {"exp.jsonl": 18, "b.csv": 4, "c.jsonl": 1}
    assert (report.left_out["think"].count, report.notes["duplicate"].count) == (10, 2)
    assert len(report.left_out["think"].examples) == ROW_EXAMPLES


def test_merging_leaves_the_other_report_alone():
    other, report = filled(), Report()
    report.merge(other)
    report.leave_out(RowError("media", "again"), place(3, "b.csv"))
    assert other.as_json() == filled().as_json()


def test_a_strict_report_stops_at_the_first_row():
    with pytest.raises(KDError, match=r"^exp\.jsonl, line 5 \(id 'q'\) cannot be used: it has no end; mend the row"):
        Report(strict=True).leave_out(RowError("think", "it has no end"), place(5, key="q"))


def test_the_report_as_text():
    assert filled().lines() == [
        "read 9 rows of exp.jsonl",
        "read 2 rows of b.csv",
        "made mix: rows 1,200, share 0.25, by (a: 3)",
        "left out: 5 x think",
        *(f"    exp.jsonl, line {row}: reason {row}" for row in (7, 1, 2, 3)),
        "    b.csv, row 1: other",
        "left out: 1 x media",
        "    b.csv, row 2 (id 'x'): no path",
        "note: 1 x duplicate",
        "    exp.jsonl, line 9: as line 1",
    ]


def test_a_report_is_written_whole(tmp_path: Path):
    file = tmp_path / "out" / "report.json"
    filled().write(file)
    assert json.loads(file.read_text(encoding="utf-8")) == filled().as_json()
    assert [path.name for path in file.parent.iterdir()] == ["report.json"]


def test_long_reasons_are_cut():
    assert shorten("x" * SHOWN_CHARACTERS) == "x" * SHOWN_CHARACTERS
    assert shorten("x" * 1000) == "x" * SHOWN_CHARACTERS + " ..."


def test_the_rows_are_told_whatever_their_files_are_called():
    report = Report()
    for source in ("/a/long/way" * 20, *"abc"):
        for row in (2, 4):
            report.note("kind", "text", Place(source, row))
    assert report.notes["kind"].places == f"{'/a/long/way' * 20} 2, 4; a 2, 4; b 2, 4; ..."
