"""What a turn says beside its role and content, under every name that other tools give it."""

import json
from pathlib import Path

import pytest

from swift_kd_plugin.data.asked_columns import Asked
from swift_kd_plugin.data.build import Builder
from swift_kd_plugin.data.data_yaml import read_data_yaml
from swift_kd_plugin.data.formats import to_row
from swift_kd_plugin.data.row_report import Report
from swift_kd_plugin.data.row_store import to_rows
from swift_kd_plugin.data.rows import Place, RowError
from swift_kd_plugin.data.sources import check_rows
from swift_kd_plugin.data.turn_keys import REASONING
from swift_kd_plugin.errors import KDError
from tests.json_lines import write_json_lines

ASKED = {"role": "user", "content": "q"}
TOOL = {"type": "function", "function": {"name": "add", "parameters": {}}}
CALL = {"name": "add", "arguments": {"x": 1}}
PLACE = Place("x.jsonl", 1)


def answer_with(content="a", **keys) -> dict:
    return to_row({"messages": [ASKED, {"role": "assistant", "content": content, **keys}]}, PLACE)["messages"][1]


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({"weight": 0}, {"loss": False}),
        ({"weight": 1.0}, {"loss": True}),
        ({"weight": 0.5}, {"loss": True, "loss_scale": 0.5}),
        ({"weight": None}, {}),
        ({"train": False}, {"loss": False}),
        ({"trainable": True, "loss": True}, {"loss": True}),
        ({"masked": True}, {"loss": False}),
        ({"masked": False, "weight": 1}, {"loss": True}),
        ({"loss_mask": 0, "loss_scale": 2}, {"loss": False, "loss_scale": 2}),
        ({"loss_weight": 2, "loss_scale": 2}, {"loss": True, "loss_scale": 2}),
        ({"loss_scale": 0.5}, {"loss_scale": 0.5}),
        ({"loss": 1}, {"loss": True}),
    ],
)
def test_weights_under_every_name(keys, expected):
    assert answer_with(**keys) == {"role": "assistant", "content": "a", **expected}


@pytest.mark.parametrize(
    ("keys", "reason"),
    [
        ({"weight": 0, "train": True}, "has train and weight, which say different things; keep one"),
        ({"weight": 0, "loss": True}, "has loss and weight, which say different things"),
        ({"weight": 3, "loss_scale": 2}, "which say different things"),
        ({"weight": -1}, "has the weight -1, which is no number of at least 0"),
        ({"weight": "1"}, "has the weight '1', which is no number"),
        ({"loss_mask": [0, 1]}, "has the loss_mask [0, 1], which is no number"),
        ({"loss": 0.5}, "has the loss 0.5, not true or false; call it loss_scale"),
        ({"mask": 1}, "has the key 'mask', which says not whether 1 is trained; call it weight"),
        ({"train_detail": [{"begin_offset": 0}]}, "has the key 'train_detail', which trains parts of a turn"),
        ({"images": ["a.png"]}, "has the key 'images', which is a medium"),
        ({"thinking": "x", "reasoning": "y"}, "has reasoning and thinking, which differ"),
        ({"thinking": True}, "has true or false as its thinking, not text"),
        ({"refusal": "No."}, "has a refusal beside its content"),
    ],
)
def test_what_cannot_be_meant_is_refused_by_name(keys, reason):
    with pytest.raises(RowError, match=reason.replace("[", r"\[")):
        answer_with(**keys)


@pytest.mark.parametrize("key", REASONING)
def test_a_thought_under_every_name(key):
    assert answer_with(**{key: "hm"})["content"] == "<think>\nhm\n</think>\n\na"
    assert answer_with(**{key: ""})["content"] == "a"


# Thought and answer as they are given, and what Qwen3's chat template writes of them.
WRITTEN = [
    ("abc", "5", "<think>\nabc\n</think>\n\n5"),
    ("\nabc\n", "\n\n5", "<think>\nabc\n</think>\n\n5"),
    ("\n\n a\n\nb \n", "5\n", "<think>\n a\n\nb \n</think>\n\n5\n"),
    (" \n ", "5", "<think>\n\n</think>\n\n5"),
    ("<think>\nabc\n</think>", "5", "<think>\nabc\n</think>\n\n5"),
    ("abc\n</think>\n\n", "5", "<think>\nabc\n</think>\n\n5"),
    ("<think>abc", "5", "<think>\nabc\n</think>\n\n5"),
    ("<think>\n\n</think>", "5", "<think>\n\n</think>\n\n5"),
    ("<think>\nabc\n</think>", "<think>\nabc\n</think>\n\n5", "<think>\nabc\n</think>\n\n5"),
]
TAGS_WITHIN = [
    "a </think> b",
    "a <think> b",
    "<think>a</think> b",
    "<think><think>a</think></think>",
    "<think>a<think>",
]


@pytest.mark.parametrize(("thought", "answer", "written"), WRITTEN)
@pytest.mark.parametrize("way", ["key", "rows", "thinking_mix"])
def test_thought_and_answer_are_written_as_the_model_writes_them(tmp_path, thought, answer, written, way):
    if way == "key":
        assert answer_with(answer, reasoning_content=thought)["content"] == written
    elif way == "rows":
        rows = rows_of(tmp_path, {"type": "rows", **REASONS}, {"query": "2 + 3?", "response": answer, "why": thought})
        assert rows[0]["messages"][-1]["content"] == written
    elif thought.strip() and "abc" in thought:
        keys = {"type": "thinking_mix", "mode": "thinking", **REASONS}
        rows = rows_of(tmp_path, keys, {"query": "2 + 3?", "response": answer, "why": thought})
        assert rows[0]["messages"][-1]["content"] == written


@pytest.mark.parametrize("thought", TAGS_WITHIN)
def test_tags_within_a_thought_are_refused_by_name(tmp_path, thought):
    with pytest.raises(RowError, match=r"turn 2 \(assistant\) has think tags within its reasoning"):
        answer_with(reasoning=thought)
    for keys in ({"type": "rows"}, {"type": "thinking_mix", "mode": "thinking"}):
        with pytest.raises(
            KDError, match=r"r.jsonl, line 1 .*its response has think tags within its thought in the column 'why'"
        ):
            rows_of(tmp_path, {**keys, **REASONS, "bad_rows": "error"}, {**REASONED, "why": thought})


def test_the_same_thought_twice_is_one():
    assert answer_with(reasoning="hm", reasoning_content="hm")["content"] == "<think>\nhm\n</think>\n\na"


def test_a_refusal_is_what_the_assistant_says():
    assert answer_with(None, refusal="No.")["content"] == "No."


@pytest.mark.parametrize("calls", [[CALL], CALL, [TOOL | {"function": CALL}], json.dumps([CALL]), [json.dumps(CALL)]])
def test_calls_in_every_form(calls):
    turn = {"role": "assistant", "content": None, "tool_calls": calls, "weight": 0, "extra": 1}
    row = to_row({"messages": [ASKED, turn, {"role": "tool", "content": "2"}]}, PLACE)
    assert row["messages"][1] == {"role": "tool_call", "content": CALL, "loss": False}
    assert row["unread"] == ["extra"]


@pytest.mark.parametrize("key", ["tools", "functions"])
def test_tools_of_a_system_turn_are_the_rows(key):
    messages = [{"role": "system", "content": "s", key: [TOOL]}, ASKED]
    row = to_row({"messages": messages, "teacher_messages": messages, "tools": [TOOL]}, PLACE)
    assert row["tools"] == row["teacher_tools"] == [TOOL]
    assert row["messages"] == row["teacher_messages"] == [{"role": "system", "content": "s"}, ASKED]
    with pytest.raises(RowError, match="its column 'tools' and the tools of a system turn differ"):
        to_row({"messages": messages, "tools": [{"name": "say"}]}, PLACE)
    with pytest.raises(RowError, match="its column 'tools' and the tools of a system turn differ"):
        to_row({"messages": [{**messages[0], "tools": [TOOL], "functions": [{"name": "say"}]}, ASKED]}, PLACE)


@pytest.mark.parametrize("keys", [{}, {"content": None}])
def test_a_system_turn_may_have_tools_alone(keys):
    turns = [{"role": "system", "tools": [TOOL], **keys}, ASKED]
    row = to_row({"messages": turns, "teacher_messages": turns}, PLACE)
    assert row["messages"] == row["teacher_messages"] == [ASKED]
    assert row["tools"] == row["teacher_tools"] == [TOOL]
    row = to_row({"messages": turns, "system": "s"}, PLACE)
    assert row["messages"] == [{"role": "system", "content": "s"}, ASKED]


@pytest.mark.parametrize(
    ("content", "results"),
    [
        ("<tool_response>\n2\n</tool_response>", ["2"]),
        (" <tool_response>2</tool_response>\n", ["2"]),
        ("<tool_response>\n2\n</tool_response>\n<tool_response>\n\n3\n</tool_response>", ["2", "\n3"]),
        ("see <tool_response>", ["see <tool_response>"]),
        ("<tool_response>\n<tool_response>\n2\n</tool_response>\n</tool_response>", ["2"]),
        ("<tool_response>" * 3 + "2" + "</tool_response> " * 3, ["2"]),
        (
            "<tool_response><tool_response>2</tool_response><tool_response>3</tool_response></tool_response>",
            ["2", "3"],
        ),
        (
            '<tool_response>{"x": "<tool_response>y</tool_response>"}</tool_response><tool_response>3</tool_response>',
            ['{"x": "<tool_response>y</tool_response>"}', "3"],
        ),
        ('<tool_response>\n{"x": "<tool_response>"}\n</tool_response>', ['{"x": "<tool_response>"}']),
        (
            "<tool_response>a</tool_response> b <tool_response>c</tool_response>",
            ["<tool_response>a</tool_response> b <tool_response>c</tool_response>"],
        ),
        (
            "<tool_response>a</tool_response> b </tool_response>",
            ["<tool_response>a</tool_response> b </tool_response>"],
        ),
    ],
)
@pytest.mark.parametrize("role", ["tool", "function", "observation"])
def test_a_result_has_no_tags_of_its_own(content, results, role):
    turns = [ASKED, {"role": "tool_call", "content": CALL}, {"role": role, "content": content}]
    row = to_row({"messages": turns}, PLACE)
    assert [turn["content"] for turn in row["messages"][2:]] == results


WRITTEN_CALL = f"<tool_call>\n{json.dumps(CALL)}\n</tool_call>"


@pytest.mark.parametrize("keys", [{}, {"reasoning_content": "hm"}])
@pytest.mark.parametrize("said", ["", "One moment."])
def test_a_call_that_the_content_has_too_is_one_call(said, keys):
    def made(content: str, calls: list) -> list[dict]:
        turn = {"role": "assistant", "content": content, "tool_calls": calls, **keys}
        return to_row({"messages": [ASKED, turn]}, PLACE)["messages"]

    texts = [{"type": "function", "function": {"name": "add", "arguments": '{"x": 1}'}}]
    for calls in ([CALL], texts):
        assert made(f"{said}\n{WRITTEN_CALL}", calls) == made(said, calls)
        assert made(f"{said}\n{WRITTEN_CALL}\n{WRITTEN_CALL}", calls * 2) == made(said, calls * 2)
    for content in (WRITTEN_CALL.replace("add", "sub"), f"{WRITTEN_CALL} {WRITTEN_CALL}", "<tool_call>add</tool_call>"):
        with pytest.raises(RowError, match="has other calls in its content than in tool_calls"):
            made(content, [CALL])


PUBLIC = [
    {"role": "user", "content": "q", "turn_identifier": 1, "country": "NL", "timestamp": "2024", "weight": 0},
    {"role": "assistant", "content": "a", "audio": None, "function_call": None, "refusal": None, "annotations": []},
]


def test_what_says_nothing_of_the_training_is_no_matter_and_the_rest_is_counted():
    report = Report(strict=True)
    odd = [{**PUBLIC[0], "persona": "teacher"}, {**PUBLIC[1], "vote": 3}, {**ASKED, "weight": 1}]
    raws = [(Place("x.jsonl", number), {"messages": turns}) for number, turns in enumerate((PUBLIC, odd, odd), 1)]
    rows = list(check_rows(raws, report))
    assert [len(row["messages"]) for row in rows] == [2, 3, 3]
    assert all(turn.keys() == {"role", "content"} for row in rows for turn in row["messages"])
    assert {kind: entry.count for kind, entry in report.notes.items()} == {
        f"the key {key!r} of a turn, which is not read": 2 for key in ("persona", "vote", "weight")
    }
    pairs = {"conversations": [{"human": "q", "gpt": "a", "vote": 3}]}
    assert to_row(pairs, PLACE)["unread"] == ["vote"]


@pytest.mark.parametrize(
    ("key", "meant"),
    [("weigth", "weight"), ("los", "loss"), ("reasoning_contents", "reasoning_content"), ("Thinking", "thinking")],
)
def test_a_misspelt_key_is_not_passed_over(key, meant):
    turns = [ASKED, {"role": "assistant", "content": "a", key: 0.5}]
    with pytest.raises(RowError, match=rf"^turn 2 .* the key '{key}', which is not known \(did you mean '{meant}'"):
        to_row({"messages": turns}, PLACE)


def test_a_response_that_is_off_is_counted():
    report = Report(strict=True)
    answers = ({"loss": False}, {"weight": 0}, {"loss_scale": 0}, {"weight": 1}, {})
    raws = [(PLACE, {"messages": [ASKED, {"role": "assistant", "content": "a", **keys}]}) for keys in answers]
    assert len(list(check_rows(raws, report))) == 5
    assert report.notes["response that is not trained"].count == 3
    report = Report(strict=True)
    assert len(list(check_rows(raws, report, asked=Asked(gold=("gold",))))) == 5
    assert not report.notes


REASONS = {"source": "r.jsonl", "thought": "why"}
REASONED = {"id": 1, "question": "2 + 3?", "answer": "5", "gold": "five", "why": "two and three", "hint": "h"}
THOUGHT = "<think>\ntwo and three\n</think>\n\n"
TYPES = {
    "rows": ({"type": "rows", "source": "r.jsonl"}, THOUGHT + "5"),
    "gold": ({"type": "rows", "source": "r.jsonl", "gold": "gold"}, THOUGHT + "five"),
    "pairs": ({"type": "exp_noexp", "exp": "r.jsonl", "noexp": "n.jsonl"}, THOUGHT + "5"),
    "hints": ({"type": "exp_noexp", "source": "r.jsonl", "experience": "hint"}, THOUGHT + "5"),
    "modes": ({"type": "thinking_mix", "source": "r.jsonl", "mode": "thinking"}, THOUGHT + "5"),
    "two": ({"type": "thinking_mix", "thinking": "r.jsonl", "non_thinking": "r.jsonl"}, THOUGHT + "5"),
}


def rows_of(folder: Path, keys: dict, *rows: dict) -> list[dict]:
    write_json_lines(folder / "r.jsonl", rows or [REASONED])
    write_json_lines(folder / "n.jsonl", [{"id": 1, "question": "What?"}])
    (folder / "data.yaml").write_text(json.dumps({"it": keys}))
    return list(to_rows(Builder(folder / "store").dataset(read_data_yaml(folder / "data.yaml")["it"])[0]))


@pytest.mark.parametrize("kind", TYPES)
def test_a_column_holds_the_thoughts(tmp_path, kind):
    keys, expected = TYPES[kind]
    rows = rows_of(tmp_path, {**keys, "thought": "why"})
    assert {row["messages"][-1]["content"] for row in rows} == {expected, *(["5"] if kind == "two" else [])}


def test_a_column_of_thoughts_that_no_row_has_is_said(tmp_path):
    with pytest.raises(KDError, match=r"column 'wy' \(did you mean 'why'\?\), which is to hold"):
        rows_of(tmp_path, {"type": "rows", "source": "r.jsonl", "thought": "wy"})
    for keys, _ in TYPES.values():
        with pytest.raises(KDError, match="no row has text in its column 'wy'"):
            rows_of(tmp_path, {**keys, "thought": "wy"}, {**REASONED, "answer": "<think>\nhm\n</think>\n\n5"}, REASONED)


CALLING = {"role": "tool_call", "content": CALL}


@pytest.mark.parametrize("said", ["", "One moment."])
@pytest.mark.parametrize("keys", [{"type": "rows"}, {"type": "thinking_mix", "mode": "thinking"}])
def test_the_thought_of_a_column_stands_before_a_call(tmp_path, keys, said):
    answer = {"role": "assistant", "content": said, "tool_calls": [CALL, CALL], "weight": 1}
    row = {"messages": [ASKED, answer], "tools": [TOOL], "why": "hm"}
    turn = {"role": "assistant", "content": f"<think>\nhm\n</think>\n\n{said}", "loss": True}
    expected = [ASKED, turn, *[{**CALLING, "loss": True}] * 2]
    assert rows_of(tmp_path, {**keys, **REASONS}, row)[0]["messages"] == expected
    assert to_row({"messages": [ASKED, {**answer, "thought": "hm"}]}, PLACE)["messages"] == expected
    bare = {"messages": [ASKED, CALLING], "tools": [TOOL], "why": "hm"}
    assert rows_of(tmp_path, {**keys, **REASONS}, bare)[0]["messages"] == [
        ASKED,
        {"role": "assistant", "content": "<think>\nhm\n</think>\n\n"},
        CALLING,
    ]


@pytest.mark.parametrize(
    ("columns", "kind", "text"),
    [
        ({"label": False}, "label", "here every answer is trained alike"),
        ({"chosen": "b"}, "chosen", "say `gold: chosen` in a data.yaml to train this one"),
        ({"chosen": [ASKED, {"role": "assistant", "content": "b"}]}, "chosen", "say `gold: chosen`"),
        ({"rejected": "b"}, "rejected", "nothing is trained to be unlikely"),
        ({"reasoning_contents": "hm"}, "reasoning_contents", "say `thought: reasoning_contents` in a data.yaml"),
    ],
)
def test_columns_that_say_which_answers_are_good_are_noted(columns, kind, text):
    report = Report()
    raw = {"messages": [ASKED, {"role": "assistant", "content": "a"}], **columns}
    (_,) = check_rows([(Place("r.jsonl", 1, None), raw)], report)
    (example,) = report.notes[f"the column {kind!r}, which is not read"].examples
    assert text in example["text"]


@pytest.mark.parametrize("columns", [{"label": 3}, {"label": "cat"}, {"chosen": "a"}, {"reason": "hm"}, {"chosen": ""}])
def test_columns_that_say_nothing_of_the_answer_are_not(columns):
    report = Report()
    raw = {"messages": [ASKED, {"role": "assistant", "content": "a"}], **columns}
    (_,) = check_rows([(Place("r.jsonl", 1, None), raw)], report)
    assert not report.notes


def test_keys_that_may_hold_a_thought_are_told_what_to_be_called():
    report = Report()
    answer = {"role": "assistant", "content": "a", "cot": "hm", "reasoning_details": [{"text": "hm"}], "mood": "good"}
    (_,) = check_rows([(Place("r.jsonl", 1, None), {"messages": [ASKED, answer]})], report)
    texts = {kind: entry.examples[0]["text"] for kind, entry in report.notes.items()}
    advice = "if it is the thought of the answer, give its text as reasoning_content; the row is used without it"
    assert texts == {
        "the key 'cot' of a turn, which is not read": advice,
        "the key 'reasoning_details' of a turn, which is not read": advice,
        "the key 'mood' of a turn, which is not read": "the row is used without it",
    }


def of(channel: str, content, **keys) -> dict:
    return {"role": "assistant", "channel": channel, "content": content, **keys}


HM = "<think>\nhm\n</think>\n\n"


@pytest.mark.parametrize(
    ("turns", "written"),
    [
        ([of("analysis", "hm"), of("final", "a")], [HM + "a"]),
        ([of("analysis", [{"type": "text", "text": "hm"}]), of("final", "a", recipient="all")], [HM + "a"]),
        ([of("analysis", "h"), of("analysis", "m"), of("final", "a")], ["<think>\nh\nm\n</think>\n\na"]),
        ([of("analysis", "hm"), of("commentary", "Wait."), of("final", "a")], [HM + "Wait.", "a"]),
        ([of("analysis", "hm"), {"role": "assistant", "content": "a"}], [HM + "a"]),
        ([of("analysis", "hm", weight=0), of("final", "a", weight=0)], [HM + "a"]),
        ([of("analysis", "hm"), of("final", "a", thinking="hm")], [HM + "a"]),
        ([of("analysis", "hm"), of("commentary", "", tool_calls=[CALL])], [HM, CALLING["content"]]),
        ([of("analysis", "hm"), CALLING], [HM, CALLING["content"]]),
        ([of("final", "a")], ["a"]),
    ],
)
def test_what_gpt_oss_says_on_analysis_is_the_thought(turns, written):
    report = Report()
    (made,) = check_rows([(Place("r.jsonl", 1, None), {"messages": [ASKED, *turns]})], report)
    assert [turn["content"] for turn in made["messages"][1:]] == written
    assert set(report.notes) <= {"response that is not trained"}


@pytest.mark.parametrize(
    ("turns", "reason"),
    [
        ([of("analysis", "hm")], "turn 2 is of the channel analysis, and no turn of the assistant follows"),
        ([of("analysis", "hm"), ASKED, of("final", "a")], "turn 2 is of the channel analysis, and no turn of"),
        ([of("analysis", None), of("final", "a")], "turn 2 is of the channel analysis and has no text"),
        ([of("analysis", "hm", weight=0), of("final", "a")], "turn 2 has another weight than turn 3, whose thought"),
        ([of("analysis", "hm"), of("final", "a", thinking="ho")], "which differ"),
        (
            [of("commentary", "{}", recipient="functions.f")],
            "calls 'functions.f' by its recipient; give it as tool_calls",
        ),
    ],
)
def test_channels_that_say_no_answer_are_refused(turns, reason):
    with pytest.raises(RowError, match=reason):
        to_row({"messages": [ASKED, *turns]}, Place("r.jsonl", 1))


def noted(**columns) -> dict[str, str]:
    report = Report()
    raw = {"messages": [ASKED, {"role": "assistant", "content": "a"}], **columns}
    (_,) = check_rows([(PLACE, raw)], report)
    return {kind: entry.examples[0]["text"] for kind, entry in report.notes.items()}


VIEW = [{"role": "system", "content": "book"}, ASKED]


@pytest.mark.parametrize(
    ("name", "value", "advice"),
    [
        *(
            (name, "I add.", f"say `thought: {name}` in a data.yaml")
            for name in (
                "Complex_CoT",
                "deepseek_reasoning",
                "thinking_process",
                "think",
                "reasoning trace",
                "myThoughts",
            )
        ),
        *(
            (name, ["I add.", "I check."], f"give it as one text and say `thought: {name}`")
            for name in ("thinking_trajectories", "reasoning_steps")
        ),
        *((name, VIEW, "stands in teacher_messages") for name in ("messages_teacher", "teach_messages")),
        *((name, json.dumps(VIEW), "stands in teacher_messages") for name in ("expert_messages", "teacher_view")),
        *((name, True, "as enable_thinking in chat_template_kwargs") for name in ("enable_thinking", "teacher_think")),
        *((name, "false", "as enable_thinking in chat_template_kwargs") for name in ("enable_thinking", "thinking")),
        *((name, 0.5, "as a key of the answer's turn") for name in ("sampleWeight", "example_weight", "loss weight")),
    ],
)
def test_columns_whose_names_say_that_they_are_meant_are_noted(name, value, advice):
    (text,) = noted(**{name: value}).values()
    assert advice in text


@pytest.mark.parametrize(
    "columns",
    [
        {"reasoning_effort": "high", "thinking_budget": 512, "reasoning_tokens": 9, "cot_length": "9"},
        {"reasoning_steps": 5, "thinking_steps": "5", "thought_count": 3, "thoughtful": "very"},
        {"is_reasoning": True, "has_thought": "yes", "reasoning_type": "algebra", "think_time": "3 s"},
        {"body_weight": 80, "weight_class": "heavy", "sample_weight": 1},
        {"teacher_name": "Ms. Frizzle", "expert_answer": "a", "teaching": [1], "experts": [{"name": "x"}]},
        {"mode": "thinking", "cottage": "small", "deepthink_id": "x"},
    ],
)
def test_columns_whose_names_are_only_alike_are_not(columns):
    assert not noted(**columns)


def test_a_column_that_says_the_mode_of_a_thinking_mix_is_read(tmp_path):
    write_json_lines(tmp_path / "r.jsonl", [{"query": "q", "response": "a", "enable_thinking": False}])
    page = {"m": {"type": "thinking_mix", "source": "r.jsonl", "mode_column": "enable_thinking"}}
    (tmp_path / "data.yaml").write_text(json.dumps(page))
    _, report = Builder(tmp_path / "store").dataset(read_data_yaml(tmp_path / "data.yaml")["m"])
    assert not report.notes
