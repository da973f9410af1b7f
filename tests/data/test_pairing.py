"""Pairs of rows with and without the experience."""

import json
from pathlib import Path

import pytest

from swift_kd_plugin.data.pairing import pair_files, pair_rows, read_jsonl
from swift_kd_plugin.errors import KDError


def turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def exp(key: str | int = "a", response: str | None = "4", **columns) -> dict:
    messages = [turn("system", "X is 4"), turn("user", "what is X?")]
    return {"id": key, "messages": messages + ([turn("assistant", response)] if response else []), **columns}


def noexp(key: str | int = "a", response: str | None = None, **columns) -> dict:
    messages = [turn("user", "X?")]
    return {"id": key, "messages": messages + ([turn("assistant", response)] if response else []), **columns}


def test_student_view_gets_the_experienced_response_and_the_teacher_view_none():
    assert pair_rows([exp()], [noexp(topic="letters")]) == [
        {
            "id": "a",
            "topic": "letters",
            "messages": [turn("user", "X?"), turn("assistant", "4")],
            "teacher_messages": [turn("system", "X is 4"), turn("user", "what is X?")],
        }
    ]


def test_rows_are_joined_by_id_in_the_order_without_the_experience():
    rows = pair_rows([exp(1, "one"), exp(2, "two")], [noexp(2), noexp(1)])
    assert [(row["id"], row["messages"][-1]["content"]) for row in rows] == [(2, "two"), (1, "one")]


def test_another_column_can_join():
    assert len(pair_rows([exp(uid="q")], [noexp("b", uid="q")], on="uid")) == 1


@pytest.mark.parametrize("row", ["exp", "noexp"])
def test_gold_replaces_the_experienced_response(row: str):
    gold = {"gold": "5"}
    (merged,) = pair_rows([exp(**gold if row == "exp" else {})], [noexp(**gold if row == "noexp" else {})])
    assert merged["messages"][-1] == turn("assistant", "5")
    assert "gold" not in merged


def test_answer_given_without_the_experience_is_left_out():
    (merged,) = pair_rows([exp()], [noexp(response="no idea")])
    assert [message["content"] for message in merged["messages"]] == ["X?", "4"]


def test_what_only_the_experienced_row_has_becomes_the_teachers():
    own = {"tools": [{"name": "add"}], "images": ["a.png"], "chat_template_kwargs": {"enable_thinking": True}}
    (merged,) = pair_rows([exp(**own)], [noexp()])
    assert {f"teacher_{column}": value for column, value in own.items()}.items() <= merged.items()
    assert not own.keys() & merged.keys()


def test_what_only_the_bare_row_has_is_taken_from_the_teacher():
    own = {"tools": "[]", "images": ["a.png"], "chat_template_kwargs": {"enable_thinking": True}}
    (merged,) = pair_rows([exp()], [noexp(**own)])
    assert own.items() <= merged.items()
    assert (merged["teacher_tools"], merged["teacher_images"], merged["teacher_chat_template_kwargs"]) == ([], [], {})


def test_columns_that_both_rows_share_give_the_teacher_none():
    (merged,) = pair_rows([exp(tools=["t"], images=None)], [noexp(tools=["t"], images=[])])
    assert not [column for column in merged if column.startswith("teacher_") and column != "teacher_messages"]


def test_history_and_extra_message_fields_survive():
    history = [turn("user", "hello"), {**turn("assistant", "hi"), "loss": False}]
    with_history = {"id": "a", "messages": [*history, *exp()["messages"][1:]]}
    (merged,) = pair_rows([with_history], [noexp()])
    assert merged["teacher_messages"][:2] == history


def test_inputs_are_not_changed():
    with_it, without = [exp()], [noexp(gold="5")]
    before = json.dumps([with_it, without])
    pair_rows(with_it, without)[0]["messages"][0]["content"] = "changed"
    assert json.dumps([with_it, without]) == before


@pytest.mark.parametrize(
    ("exp_rows", "noexp_rows", "message"),
    [
        ([], [noexp()], "E: there are no rows"),
        ([exp()], [{"messages": []}], "N, line 1 needs a text or a whole number in its column 'id', not None"),
        ([exp(["a"])], [noexp()], "E, line 1 needs a text or a whole number"),
        ([exp("a"), exp("b"), exp("a")], [noexp()], "E, line 3 has the id 'a' of line 1"),
        ([exp("a")], [noexp("a"), noexp("b")], r"N: 1 of 2 rows have no id in E: 'b' \(line 2\)\."),
        ([exp(i) for i in range(5)], [noexp(4)], r"E: 4 of 5 rows have no id in N: 0 \(line 1\), .*, \.\.\.\."),
        ([exp(1)], [noexp("1")], r"E: 1 of 1 rows have no id in N: 1 \(line 1\)"),
        ([exp(response=None)], [noexp()], "E, line 1 has neither a final assistant turn nor a column 'gold'"),
        ([exp()], [noexp(gold=5)], "N, line 1 needs a text in its column 'gold'"),
        ([exp()], [{"id": "a"}], "N, line 1 needs a column 'messages'"),
        ([exp()], [{"id": "a", "messages": [{"role": "user"}]}], "N, line 1 needs a column 'messages'"),
        ([exp()], [{"id": "a", "messages": [turn("system", "s")]}], "N, line 1 asks nothing"),
        ([exp()], [{"id": "a", "messages": []}], "N, line 1 asks nothing"),
        ([exp(videos=["a.mp4"])], [noexp()], "E, line 1 and N, line 1 differ in 'videos', which both"),
    ],
)
def test_mistakes_name_file_and_line(exp_rows: list, noexp_rows: list, message: str):
    with pytest.raises(KDError, match=message):
        pair_rows(exp_rows, noexp_rows, exp_name="E", noexp_name="N")


def test_files(tmp_path: Path):
    with_it, without = tmp_path / "exp.jsonl", tmp_path / "noexp.jsonl"
    with_it.write_text(json.dumps(exp(response="五")) + "\n", encoding="utf-8")
    without.write_text(json.dumps(noexp()) + "\n", encoding="utf-8")
    assert pair_files(with_it, without)[0]["messages"][-1]["content"] == "五"


@pytest.mark.parametrize(
    ("line", "message"), [("{", "is not valid JSON"), ("", "is not valid JSON"), ("[]", "is not a JSON object")]
)
def test_bad_line_is_named(tmp_path: Path, line: str, message: str):
    path = tmp_path / "exp.jsonl"
    path.write_text(json.dumps(exp()) + "\n" + line + "\n", encoding="utf-8")
    with pytest.raises(KDError, match=rf"exp\.jsonl, line 2 {message}"):
        pair_files(path, path)


def test_unicode_line_separators_inside_a_text_end_no_line(tmp_path: Path):
    path = tmp_path / "exp.jsonl"
    path.write_text(json.dumps(exp(response="a\u2028b\x85c"), ensure_ascii=False) + "\n", encoding="utf-8")
    assert read_jsonl(path) == [exp(response="a\u2028b\x85c")]


def test_file_in_another_encoding_is_named(tmp_path: Path):
    path = tmp_path / "exp.jsonl"
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(KDError, match=r"exp\.jsonl is not UTF-8"):
        read_jsonl(path)


def test_missing_file_is_named(tmp_path: Path):
    with pytest.raises(KDError, match=r"absent\.jsonl cannot be read: No such file or directory"):
        pair_files(tmp_path / "absent.jsonl", tmp_path / "absent.jsonl")
