"""What a row has beside its turns, in every way to give it."""

import json
from datetime import date
from decimal import Decimal

import pytest

from swift_kd_plugin.data.formats import to_row
from swift_kd_plugin.data.rows import Place
from swift_kd_plugin.data.validate import check_row

QA = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]


def user(content: str) -> dict:
    return {"role": "user", "content": content}


FIELDS = [
    ({"tools": [{"name": "add"}]}, {"tools": [{"name": "add"}]}),
    ({"tools": json.dumps([{"name": "add"}, ""])}, {"tools": [{"name": "add"}]}),
    *(({"tools": nothing}, {}) for nothing in ("", " \n", "{}", "[]", "null", {}, [None], [{}])),
    *(({"teacher_tools": nothing}, {"teacher_tools": []}) for nothing in ("", " ", "{}", "[]", "null", {}, [None])),
    ({"functions": [{"name": "add"}]}, {"tools": [{"name": "add"}]}),
    ({"functions": '[{"name": "add"}]'}, {"tools": [{"name": "add"}]}),
    ({"functions": "def add(): pass"}, {"columns": {"functions": "def add(): pass"}}),
    ({"functions": ["add"]}, {"columns": {"functions": ["add"]}}),
    ({"functions": []}, {"columns": {"functions": []}}),
    (
        {"functions": [{"name": "add"}], "tools": [{"name": "say"}]},
        {"tools": [{"name": "say"}], "columns": {"functions": [{"name": "add"}]}},
    ),
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
