"""Nulls that only fill keys of other rows leave tools and calls; those that may be meant stay and are named."""

import copy
import json

import pytest
from datasets import Dataset

from swift_kd_plugin.data.formats import to_row
from swift_kd_plugin.data.row_report import Report
from swift_kd_plugin.data.rows import Place
from swift_kd_plugin.data.sources import check_rows, read_rows

ASKED = {"role": "user", "content": "q"}


def tool(name: str, properties: dict, **more) -> dict:
    parameters = {"type": "object", "properties": properties, **more}
    return {"type": "function", "function": {"name": name, "description": "d", "parameters": parameters}}


def calls(*given: tuple) -> list[dict]:
    made = [{"type": "function", "function": {"name": name, "arguments": arguments}} for name, arguments in given]
    return [ASKED, {"role": "assistant", "content": "", "tool_calls": made}]


TOOLS = [tool("add", {"x": {"type": "number"}}), tool("say", {"y": {"type": "string"}}, required=["y"])]


def read(raw: dict) -> tuple[dict, list[str]]:
    report, given = Report(strict=True), copy.deepcopy(raw)
    (row,) = check_rows([(Place("x.jsonl", 1), raw)], report)
    assert raw == given
    return row, [example["text"] for entry in report.notes.values() for example in entry.examples]


def test_what_from_list_and_to_json_fill_in_is_out_again(tmp_path):
    row = {"messages": calls(("add", {"x": 1.0}), ("say", {"y": "b"})), "tools": TOOLS}
    Dataset.from_list([row]).to_json(tmp_path / "padded.jsonl")
    assert '"y":null' in (tmp_path / "padded.jsonl").read_text()
    report = Report(strict=True)
    (made,) = read_rows(tmp_path / "padded.jsonl", report)
    plain = to_row(copy.deepcopy(row), Place("x.jsonl", 1))
    assert (made["tools"], made["messages"]) == (plain["tools"], plain["messages"])
    assert not report.notes


NULLABLE = {"anyOf": [{"type": "integer"}, {"type": "null"}]}


@pytest.mark.parametrize(
    ("given", "kept", "path"),
    [
        ({"x": {"type": "number", "enum": None, "items": None}}, {"x": {"type": "number"}}, None),
        ({"default": None, "x": {}}, {"x": {}}, None),
        ({"x": {**NULLABLE, "default": None}}, {"x": {**NULLABLE, "default": None}}, None),
        (
            {"x": {"type": ["string", "null"], "default": None}},
            {"x": {"type": ["string", "null"], "default": None}},
            None,
        ),
        ({"x": {"type": "string", "enum": ["a", None]}}, {"x": {"type": "string", "enum": ["a", None]}}, None),
        ({"x": {"type": "integer", "default": None}}, {"x": {"type": "integer", "default": None}}, "x.default"),
        ({"x": {"properties": {"z": None}, "items": {"not": None}}}, {"x": {"properties": {}, "items": {}}}, None),
    ],
)
@pytest.mark.parametrize("column", ["tools", "functions", "teacher_tools"])
def test_nulls_of_schemas(given, kept, path, column):
    answer = {"role": "assistant", "content": "a"}
    row, notes = read({"messages": [ASKED, answer], "teacher_messages": [ASKED], column: [tool("add", given)]})
    assert row["teacher_tools" if column == "teacher_tools" else "tools"] == [tool("add", kept)]
    assert len(notes) == (path is not None)
    assert path is None or f"tools.1.function.parameters.properties.{path}" in notes[0]


@pytest.mark.parametrize(
    ("tools", "arguments", "kept", "path"),
    [
        (TOOLS, {"x": 1, "y": None}, {"x": 1}, None),
        (TOOLS, {"x": None}, {"x": None}, "add.x"),
        ([tool("add", {"x": NULLABLE}, required=["x"])], {"x": None, "y": None}, {"x": None}, None),
        ([tool("add", {"x": {}}, additionalProperties=True)], {"x": 1, "y": None}, {"x": 1, "y": None}, "add.y"),
        (None, {"x": 1, "y": None}, {"x": 1, "y": None}, "add.y"),
        ([tool("add", {"x": {"properties": {"a": {}}}})], {"x": {"a": 1, "b": None}}, {"x": {"a": 1}}, None),
    ],
)
def test_nulls_of_arguments(tools, arguments, kept, path):
    row, notes = read({"messages": calls(("add", arguments)), "tools": tools})
    assert row["messages"][-1] == {"role": "tool_call", "content": {"name": "add", "arguments": kept}}
    turns = [ASKED, {"role": "tool_call", "content": {"name": "add", "arguments": arguments}}]
    assert read({"messages": turns, "tools": tools}) == (row, notes)
    assert notes == ([] if path is None else [f"{path}; if it is padding of a file that datasets wrote, take it out"])


def test_nulls_in_the_text_of_arguments_are_meant():
    row, notes = read({"messages": calls(("add", json.dumps({"x": 1, "y": None}))), "tools": TOOLS})
    assert row["messages"][-1]["content"]["arguments"] == {"x": 1, "y": None}
    assert not notes
