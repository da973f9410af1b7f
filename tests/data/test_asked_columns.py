"""A column that is asked for by its name is a column of the row, whatever its row would be read as without that."""

import json
import re
from pathlib import Path
from types import SimpleNamespace

import pytest

from swift_kd_plugin.data.build import Builder
from swift_kd_plugin.data.data_yaml import read_data_yaml
from swift_kd_plugin.data.row_report import Report
from swift_kd_plugin.data.row_store import to_rows
from swift_kd_plugin.data.rows import RowError
from swift_kd_plugin.data.trained_turns import check_answered
from swift_kd_plugin.errors import KDError
from swift_kd_plugin.generation.model_setup import open_rows
from swift_kd_plugin.generation.quotas import Quotas
from swift_kd_plugin.generation.run_generate import check_columns, check_modes
from swift_kd_plugin.generation.verifiers import Gold
from tests.json_lines import write_json_lines

ASKED = {"role": "user", "content": "q"}


def build(folder: Path, keys: dict, *rows: dict) -> tuple[list[dict], Report]:
    write_json_lines(folder / "r.jsonl", rows)
    write_json_lines(folder / "n.jsonl", [{"id": 1, "question": "q"}])
    (folder / "data.yaml").write_text(json.dumps({"it": {"bad_rows": "error", **keys}}))
    dataset, report = Builder(folder / "store").dataset(read_data_yaml(folder / "data.yaml")["it"])
    return list(to_rows(dataset)), report


ROWS = {"type": "rows", "source": "r.jsonl"}
HINTS = {"type": "exp_noexp", "source": "r.jsonl", "experience": "hint"}
GOLD = [
    (ROWS | {"columns": {"frage": "query"}, "gold": "answer"}, {"frage": "q", "answer": "a"}),
    (ROWS | {"columns": {"antwort": "response"}, "gold": "antwort"}, {"query": "q", "antwort": "a"}),
    (ROWS | {"gold": "answer"}, {"query": "q", "answer": "a"}),
    (ROWS | {"gold": "Answer"}, {"query": "q", "Answer": "a"}),
    (ROWS | {"gold": "answer"}, {"query": "q", "solution": "s", "answer": "a"}),
    (ROWS | {"gold": "solution"}, {"query": "q", "solution": "a", "answer": "s"}),
    (ROWS | {"gold": "answer"}, {"query": "q", "response": "s", "answer": "a"}),
    (ROWS | {"gold": "response"}, {"query": "q", "response": "a", "answer": "s"}),
    (ROWS | {"gold": "output"}, {"instruction": "q", "input": "", "output": "a"}),
    (ROWS | {"gold": "answer"}, {"messages": [ASKED], "answer": "a"}),
    (HINTS | {"response": "gold", "gold": "answer"}, {"question": "q", "hint": "h", "answer": "a"}),
    (
        {"type": "exp_noexp", "exp": "r.jsonl", "noexp": "n.jsonl", "response": "gold", "gold": "answer"},
        {"id": 1, "question": "q", "system": "hint", "solution": "s", "answer": "a"},
    ),
    (ROWS | {"keep": ["answer"]}, {"query": "q", "answer": "a"}),
    ({"type": "mix", "sources": {"r.jsonl": 1}, "keep": ["answer"]}, {"query": "q", "answer": "a"}),
]


@pytest.mark.parametrize(("keys", "row"), GOLD)
def test_the_named_column_is_the_response(tmp_path, keys, row):
    (made,), _ = build(tmp_path, keys, row)
    assert made["messages"] == [ASKED, {"role": "assistant", "content": "a"}]
    if "keep" in keys:
        assert made["answer"] == "a"


def test_a_named_thought_or_experience_is_no_turn(tmp_path):
    row = {"question": "q", "solution": "two and three", "answer": "a"}
    (made,), _ = build(tmp_path, ROWS | {"thought": "solution"}, row)
    assert made["messages"][-1]["content"] == "<think>\ntwo and three\n</think>\n\na"
    hints = {"type": "exp_noexp", "source": "r.jsonl"}
    for name in ("solution", "input", "system_prompt"):
        row = {"question": "q", name: "two and three", "answer": "a"}
        (made,), _ = build(tmp_path, hints | {"experience": name}, row)
        assert made["messages"] == [ASKED, {"role": "assistant", "content": "a"}]
        assert made["teacher_messages"] == [{"role": "system", "content": "two and three"}, ASKED]
    (made,), _ = build(tmp_path, hints | {"experience": "input"}, {"instruction": "q", "input": "two", "output": "a"})
    assert made["messages"] == [ASKED, {"role": "assistant", "content": "a"}]


def test_a_named_column_that_no_row_has_is_said(tmp_path):
    with pytest.raises(KDError, match=r"its column 'answr' is not there, or null \(did you mean 'answer'\?\)"):
        build(tmp_path, ROWS | {"gold": "answr"}, {"query": "q", "answer": "a"})


@pytest.mark.parametrize(("row", "response"), [({"question": "q", "answer": "5"}, "5"), (GOLD[4][1], "s")])
def test_a_gold_answer_of_the_command_is_a_column_whatever_it_is_called(tmp_path, row, response):
    write_json_lines(tmp_path / "r.jsonl", [row])
    options = {"dataset": [str(tmp_path / "r.jsonl")], "kd_datasets": None, "strict": True, "limit": None}
    dataset, _, _ = open_rows(SimpleNamespace(gold="answer", **options), None)
    check_columns(dataset, "answer", Quotas())
    (made,) = to_rows(dataset)
    assert Gold("answer").of(made) == row["answer"]
    assert Gold().of(made) == response
    plain = SimpleNamespace(gold=None, **options)
    if "solution" not in row:
        assert "columns" not in next(to_rows(open_rows(plain, None)[0]))


BOT, SYSTEM = {"role": "assistant", "content": "a"}, {"role": "system", "content": "s"}
CHOSEN = ROWS | {"gold": "chosen"}
PAIR = [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]


@pytest.mark.parametrize("written", [list, json.dumps, str])
@pytest.mark.parametrize("chosen", [[ASKED, BOT], [BOT], PAIR, [ASKED, {**BOT, "weight": None}]])
@pytest.mark.parametrize("row", [{"prompt": "q"}, {"messages": [SYSTEM, ASKED]}, {"messages": [ASKED, {**BOT}]}, {}])
def test_a_conversation_of_preferences_is_read(tmp_path, written, chosen, row):
    if row == {} and len(chosen) == 1:
        return
    made, _ = build(tmp_path, CHOSEN, row | {"chosen": written(chosen), "rejected": written([ASKED, ASKED])})
    turns = [turn for turn in made[0]["messages"] if turn["role"] != "system"]
    assert turns == [ASKED, BOT]
    assert Gold("chosen").of(made[0]) == "a"


def test_a_thought_in_a_conversation_stays():
    answer = {"role": "assistant", "content": "a", "reasoning_content": "hm"}
    assert Gold("chosen").response_of({"columns": {"chosen": [ASKED, answer]}}) == "<think>\nhm\n</think>\n\na"


@pytest.mark.parametrize(
    ("chosen", "reason"),
    [
        ([{**ASKED, "content": "p"}, BOT], "the conversation in its column 'chosen' has another prompt than"),
        ([SYSTEM, ASKED, BOT], "the conversation in its column 'chosen' has another prompt than"),
        ([ASKED], "the conversation in its column 'chosen' does not end with an answer"),
        ([ASKED, {**BOT, "content": ""}], "the answer in its column 'chosen' is empty"),
        (True, "its column 'chosen' is true or false, not a text or a conversation"),
        (None, "its column 'chosen' is not there, or null"),
        ([1], "its column 'chosen' is a list, not a text or a conversation"),
        ({"a": 1}, "its column 'chosen' is an object, not a text or a conversation"),
        ("", "its column 'chosen' has no text"),
    ],
)
def test_what_is_no_gold_answer_says_why(tmp_path, chosen, reason):
    with pytest.raises(KDError, match=re.escape(reason)):
        build(tmp_path, CHOSEN, {"prompt": "q", "chosen": chosen})


@pytest.mark.parametrize("number", [3, 0, -2.5])
def test_a_number_is_an_answer_as_text_for_training_and_for_evaluation(tmp_path, number):
    (made,), _ = build(tmp_path, CHOSEN, {"prompt": "q", "chosen": number})
    assert made["messages"][-1]["content"] == str(number) == Gold("chosen").of({"columns": {"chosen": number}})


def test_what_no_row_has_is_refused_by_generate_before_a_model_is_loaded(tmp_path):
    write_json_lines(tmp_path / "r.jsonl", [{"query": "q", "answer": "a", "task": "say", "gold": 3}])
    options = {"dataset": [str(tmp_path / "r.jsonl")], "kd_datasets": None, "strict": True, "limit": None}
    dataset, _, _ = open_rows(SimpleNamespace(gold=None, **options), None)
    for gold, quota, said in (
        (
            "golt",
            [],
            r"--gold golt: no row has such a column \(did you mean 'gold'\?\); they have the columns gold, task",
        ),
        (None, ["thinkng=5"], "--quota thinkng: no row has such a column"),
        (None, ["tsk=5"], r"--quota tsk: no row has such a column \(did you mean 'task'\?\)"),
        (
            None,
            ["task:sai=5"],
            r"--quota task:sai: no row has this value in its column 'task' \(did you mean 'say'\?\)",
        ),
    ):
        with pytest.raises(KDError, match=said):
            check_columns(dataset, gold, Quotas.parse(quota))
    check_columns(dataset, "gold", Quotas.parse(["5", "thinking=5", "task=5", "task:say=1"]))
    with pytest.raises(KDError, match="--quota thinking=N: no row is asked in this mode with --thinking off"):
        check_modes("off", Quotas.parse(["thinking=5"]))
    check_modes("both", Quotas.parse(["thinking=5", "non_thinking=5"]))


@pytest.mark.parametrize(
    ("chosen", "reason"),
    [
        (" \n", "is empty"),
        ("<think>\n\n</think>\n\n", "is empty"),
        ("<think>\nhm\n</think>\n\n", "is a thought without an answer"),
        ([ASKED, {**BOT, "content": "<think>hm</think>"}], "is a thought without an answer"),
        ("<think>hm", "opens <think> and does not close it"),
    ],
)
def test_a_gold_answer_that_was_cut_off_is_refused(tmp_path, chosen, reason):
    with pytest.raises(KDError, match=f"the answer in its column 'chosen' {reason}"):
        build(tmp_path, CHOSEN, {"prompt": "q", "chosen": chosen})


@pytest.mark.parametrize(
    "text", ['[{"role": "admin", "name": "x"}]', '{"role": "user"}', "[1]", '{"content": 3}', "[role"]
)
def test_json_that_is_no_conversation_is_a_text(tmp_path, text):
    assert build(tmp_path, CHOSEN, {"prompt": "q", "chosen": text})[0][0]["messages"][-1]["content"] == text


@pytest.mark.parametrize("chosen", ["a", [ASKED, BOT], json.dumps([ASKED, BOT])])
def test_a_row_without_a_response_is_told_where_one_stands(chosen):
    with pytest.raises(RowError, match="`gold: chosen`"):
        check_answered({"messages": [ASKED], "columns": {"chosen": chosen}}, "last_round")


COLUMNS = ["reasoning_content", "reasoning", "thinking", "thought", "cot", "think", "Reasoning"]


@pytest.mark.parametrize("name", COLUMNS)
def test_a_column_of_thoughts_that_is_not_asked_for_is_noted(tmp_path, name):
    row = {"question": "q", "answer": "a", name: "hm"}
    kind = f"the column {name!r}, which is not read"
    made, report = build(tmp_path, ROWS, row)
    assert report.notes[kind].count == len(made) == 1
    assert f"`thought: {name}`" in report.notes[kind].examples[0]["text"]
    for keys in ({"thought": name}, {"keep": [name]}):
        assert not build(tmp_path, ROWS | keys, row)[1].notes
    for other in ({"answer": "<think>\nhm\n</think>\n\na"}, {name: ""}, {name: 3}, {"answer": None}):
        assert not build(tmp_path, ROWS, row | other)[1].notes


def test_a_weight_of_a_row_is_noted(tmp_path):
    rows = [{"question": "q", "answer": "a", "weight": weight} for weight in (0, 0.5, 1, True, False, "heavy")]
    report = build(tmp_path, ROWS, *rows)[1]
    assert {kind: entry.count for kind, entry in report.notes.items()} == {"the column 'weight', which is not read": 4}


@pytest.mark.parametrize(
    ("keys", "notes"),
    [
        (
            {"keep": ["glod"]},
            {"a column to keep that no row has": "keep: glod (did you mean 'gold'?); nothing is kept"},
        ),
        (
            {"keep": ["Gold"]},
            {"a column to keep that no row has": "keep: Gold (did you mean 'gold'?); nothing is kept"},
        ),
        ({"keep": ["gold", "answer", "query", "messages"]}, {}),
        (
            {"columns": {"frage": "query", "Task": "topic"}},
            {"a column to rename that no row has": "columns: {frage: query}; nothing is renamed"},
        ),
    ],
)
@pytest.mark.parametrize("kind", ["rows", "thinking_mix"])
def test_columns_that_no_row_has_are_said(tmp_path, keys, notes, kind):
    if kind != "rows" and "columns" in keys:
        return
    rows = [{"query": "q", "answer": "a"}, {"query": "r", "answer": "a", "gold": "a", "task": "t"}]
    mode = {} if kind == "rows" else {"mode": "non_thinking"}
    _, report = build(tmp_path, {"type": kind, "source": "r.jsonl", **mode, **keys}, *rows)
    said = {name: entry.examples[0] for name, entry in report.notes.items()}
    assert {name: example["text"] for name, example in said.items()} == notes
    assert {example["place"] for example in said.values()} <= {"r.jsonl, line 2"}
