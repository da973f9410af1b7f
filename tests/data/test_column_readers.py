"""What a row has beside its turns, in every way to give it."""

import json
import re
from datetime import date
from decimal import Decimal

import pytest

from swift_kd_plugin.data.formats import to_row
from swift_kd_plugin.data.row_report import Report
from swift_kd_plugin.data.rows import Place, RowError
from swift_kd_plugin.data.sources import check_rows
from swift_kd_plugin.data.validate import check_row

QA = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]


def user(content: str) -> dict:
    return {"role": "user", "content": content}


FUNCTION = {"type": "function", "function": {"name": "add"}}
WRITTEN = json.dumps(FUNCTION)
FIELDS = [
    ({"tools": [{"name": "add"}]}, {"tools": [{"name": "add"}]}),
    ({"tools": json.dumps([{"name": "add"}, ""])}, {"tools": [{"name": "add"}]}),
    *(({"tools": nothing}, {}) for nothing in ("", " \n", "{}", "[]", "null", {}, [None], [{}])),
    *(({"teacher_tools": nothing}, {"teacher_tools": []}) for nothing in (" ", "{}", "[]", "null", {}, [None])),
    ({"functions": [{"name": "add"}]}, {"tools": [{"name": "add"}]}),
    ({"functions": '[{"name": "add"}]'}, {"tools": [{"name": "add"}]}),
    ({"functions": "def add(): pass"}, {"columns": {"functions": "def add(): pass"}}),
    ({"functions": [1.5, 2]}, {"columns": {"functions": [1.5, 2]}}),
    ({"functions": ["adds two numbers", "says so"]}, {"columns": {"functions": ["adds two numbers", "says so"]}}),
    ({"functions": [{"line": 3}]}, {"columns": {"functions": [{"line": 3}]}}),
    *(({"functions": nothing}, {}) for nothing in ("", " ", "[]", [], {}, [None])),
    *(({"functions": FUNCTION, "tools": nothing}, {"tools": [FUNCTION]}) for nothing in ("", [], "{}", None)),
    *(({"functions": given}, {"tools": [FUNCTION]}) for given in ([FUNCTION], FUNCTION, WRITTEN, [WRITTEN])),
    ({"tools": [FUNCTION], "functions": [{"name": "add"}]}, {"tools": [FUNCTION]}),
    ({"tools": [], "teacher_functions": [FUNCTION]}, {"teacher_tools": [FUNCTION]}),
    ({"teacher_functions": []}, {"teacher_tools": []}),
    ({"tools": {"name": "add"}}, {"tools": [{"name": "add"}]}),
    ({"tools": ['{"name": "add"}']}, {"tools": [{"name": "add"}]}),
    ({"tools": []}, {}),
    ({"image": "a.png"}, {"images": [{"bytes": None, "path": "a.png"}]}),
    ({"images": ["a", "b"]}, {"images": [{"bytes": None, "path": "a"}, {"bytes": None, "path": "b"}]}),
    ({"images": '["a"]'}, {"images": [{"bytes": None, "path": "a"}]}),
    ({"image": {"bytes": b"\x00"}}, {"images": [{"bytes": b"\x00", "path": None}]}),
    ({"images": [{"path": "a"}], "image": "a"}, {"images": [{"bytes": None, "path": "a"}]}),
    ({"images": "", "videos": []}, {}),
    ({"video": "a.mp4"}, {"videos": ["a.mp4"]}),
    ({"audios": ["a.wav", {"path": "b.wav"}]}, {"audios": ["a.wav", "b.wav"]}),
    (
        {"objects": {"bbox": [[9, 8, 1, 2], [1, 2]], "ref": ["dog"], "more": 1}},
        {"objects": {"ref": ["dog"], "bbox": [[1, 2, 9, 8], [1, 2]]}},
    ),
    ({"objects": {}, "chat_template_kwargs": "null"}, {}),
    ({"chat_template_kwargs": '{"enable_thinking": true}'}, {"chat_template_kwargs": {"enable_thinking": True}}),
    ({"chat_template_kwargs": {}}, {}),
    ({"teacher_messages": [{"from": "human", "value": "book"}]}, {"teacher_messages": [user("book")]}),
    ({"teacher_tools": "[]", "teacher_images": []}, {"teacher_tools": [], "teacher_images": []}),
    ({"teacher_chat_template_kwargs": {}}, {"teacher_chat_template_kwargs": {}}),
    ({"teacher_images": "a"}, {"teacher_images": [{"bytes": None, "path": "a"}]}),
    ({"teacher_thought": "hm", "think_loss": "0"}, {"teacher_thought": "hm", "think_loss": 0.0}),
    ({"think_loss": 0}, {"think_loss": 0.0}),
    ({"teacher_prompt": "book: q"}, {"teacher_messages": [user("book: q")]}),
    ({"teacher_prompt": ""}, {}),
    ({"id": 3, "topic": ["t", {"a": None}]}, {"columns": {"id": 3, "topic": ["t", {"a": None}]}}),
    ({"day": date(2024, 1, 2), "cost": Decimal("1.5")}, {"columns": {"day": "2024-01-02", "cost": "1.5"}}),
    ({"blob": b"\x00", "part": [b"\x00"], "nan": float("nan")}, {"columns": {"part": [None]}}),
    ({"blob": b"\x00"}, {}),
    ({"text": "t", "solution": "s"}, {"columns": {"text": "t", "solution": "s"}}),
    ({"columns": ["a"]}, {"columns": {"columns": ["a"]}}),
]


@pytest.mark.parametrize(("columns", "expected"), FIELDS, ids=[str(list(given)) for given, _ in FIELDS])
def test_what_stands_beside_the_turns(columns: dict, expected: dict):
    row = to_row({"messages": QA, **columns}, Place("exp.jsonl", 5))
    assert row == {"messages": QA, **expected, "kd_source": "exp.jsonl", "kd_row": 5}
    check_row(row)


NO_TOOL = [
    (["add"], "tool 1 of {} is the text 'add', not an object with a name"),
    ('[{"name": "add"', "tool 1 of {} is the text"),
    ([{"name": "add"}, {"description": "says"}], "tool 2 of {} has no name; its keys are ['description']"),
    ([{"type": "function"}], "tool 1 of {} has no name; its keys are ['type']"),
    ([{"type": "function", "function": {}}], "tool 1 of {} has no name; the keys of its function are []"),
    ([{"function": "f"}], "tool 1 of {} has text as its function, not an object with a name"),
    ([{"name": ""}], "tool 1 of {} has no name"),
    ([{"name": 3}], "tool 1 of {} has no name"),
    ([{"type": "function", "function": {"name": " "}}], "tool 1 of {} has no name"),
]


@pytest.mark.parametrize("column", ["tools", "functions", "teacher_functions", "system"])
@pytest.mark.parametrize(("tools", "reason"), NO_TOOL)
def test_what_no_model_could_call_is_refused_under_every_name(column, tools, reason):
    row, where = {"messages": QA, column: tools}, column
    if column == "system":
        turn = {"role": "system", "content": "s", "functions": tools}
        row, where = {"messages": [turn, *QA]}, "the system turn of messages"
    with pytest.raises(RowError, match=re.escape(reason.format(where))):
        to_row(row, Place("x.jsonl", 1))


def test_a_tool_of_a_provider_is_named_by_its_type():
    with pytest.raises(RowError, match="tool 1 of tools has the type 'code_interpreter' and no name"):
        to_row({"messages": QA, "tools": [{"type": "code_interpreter"}]}, Place("x.jsonl", 1))
    assert noted({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}) == {
        "a tool of another type than function"
    }


def test_two_columns_of_tools_that_differ_are_refused():
    for one, other in (("tools", "functions"), ("teacher_tools", "teacher_functions")):
        with pytest.raises(RowError, match=f"its column '{other}' and another that means {one} differ"):
            to_row({"messages": QA, one: [FUNCTION], other: [{"name": "say"}]}, Place("x.jsonl", 1))


def noted(columns: dict) -> set[str]:
    report = Report(strict=True)
    assert len(list(check_rows([(Place("x.jsonl", 1), {"messages": QA, **columns})], report))) == 1
    return set(report.notes)


DESCRIBED = {"name": "add", "description": "adds"}


@pytest.mark.parametrize(
    ("columns", "notes"),
    [
        *(({"functions": other}, {"the column 'functions', which holds no tools"}) for other in (3, "sine", [1], 0.5)),
        *(
            ({name: value}, {f"the column {name!r}, which looks like tools"})
            for name in ("function", "function_list", "available_tools")
            for value in ([DESCRIBED], DESCRIBED, json.dumps([DESCRIBED]), [{"function": DESCRIBED}])
        ),
        ({"api": [{"name": "add", "parameters": {}}]}, {"the column 'api', which looks like tools"}),
        ({"tool_calls": [{"name": "add", "arguments": {}}], "people": [DESCRIBED], "topics": ["a"]}, set()),
        ({"functions": [FUNCTION], "tools": ""}, set()),
    ],
)
def test_a_column_that_may_hold_tools_and_is_not_read_is_noted(columns, notes):
    assert noted(columns) == notes
