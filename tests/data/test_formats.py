"""Rows in every form become the one row type, the turns being those that ms-swift's own preprocessors make."""

import copy
import json
import re

import pytest

from swift_kd_plugin.data.asked_columns import Asked
from swift_kd_plugin.data.column_names import why_misspelt
from swift_kd_plugin.data.formats import check_format, to_row
from swift_kd_plugin.data.rows import Place, RowError
from swift_kd_plugin.data.validate import check_row
from swift_kd_plugin.errors import KDError

PLACE = Place("exp.jsonl", 5)
OWN = {"kd_source": "exp.jsonl", "kd_row": 5}


def turn(role: str, content, **keys) -> dict:
    return {"role": role, "content": content, **keys}


def user(content) -> dict:
    return turn("user", content)


def bot(content, **keys) -> dict:
    return turn("assistant", content, **keys)


QA = [user("q"), bot("a")]
CALL = {"name": "add", "arguments": {"a": 1}}
TEXT = json.dumps(CALL)
OPENAI_CALLS = [
    {"id": "1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}},
    {"id": "2", "type": "function", "function": {"name": "say", "arguments": '{"b": "x"}'}},
]
IMAGE = {"type": "image_url", "image_url": {"url": "a.png"}}
PAIRS = [{"human": "h", "gpt": "b"}, {"user": "q", "assistant": "a"}]

# Row as given, turns as expected. ms-swift makes the same turns of each.
AS_MS_SWIFT = {
    "messages": ({"messages": QA}, QA),
    "conversation": ({"conversation": QA}, QA),
    "conversations from value": (
        {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]},
        QA,
    ),
    "bot": ({"conversations": [{"from": "user", "value": "q"}, {"from": "bot", "value": "a"}]}, QA),
    "pairs": ({"conversations": PAIRS}, [user("h"), bot("b"), *QA]),
    "pairs with system": ({"conversation": PAIRS[:1], "system": "s"}, [turn("system", "s"), user("h"), bot("b")]),
    "JSON text": ({"messages": json.dumps(QA)}, QA),
    "Python text": ({"messages": str(QA)}, QA),
    "system": ({"messages": QA, "system": "s"}, [turn("system", "s"), *QA]),
    "system_prompt": ({"messages": QA, "system_prompt": ""}, [turn("system", ""), *QA]),
    "system in both": ({"messages": [turn("system", "s"), *QA], "system": "s"}, [turn("system", "s"), *QA]),
    "keys of turns": (
        {"messages": [user("q"), bot("a", loss=True, loss_scale=0.5, name="n", weight=1)]},
        [user("q"), bot("a", loss=True, loss_scale=0.5)],
    ),
    "tools": (
        {
            "conversations": [
                {"from": "human", "value": "q"},
                {"from": "function_call", "value": json.dumps(CALL)},
                {"from": "observation", "value": "4"},
                {"from": "gpt", "value": "a"},
            ]
        },
        [user("q"), turn("tool_call", json.dumps(CALL)), turn("tool_response", "4"), bot("a")],
    ),
    "tool with name": (
        {"messages": [user("q"), turn("tool_call", json.dumps(CALL)), turn("tool", "4", name="add", id=3), bot("a")]},
        [user("q"), turn("tool_call", json.dumps(CALL)), turn("tool", "4", name="add"), bot("a")],
    ),
    "OpenAI calls": (
        {
            "messages": [
                user("q"),
                {"role": "assistant", "content": None, "tool_calls": OPENAI_CALLS, "loss": False},
                {"role": "tool", "content": "second", "tool_call_id": "2"},
                {"role": "tool", "content": "first", "tool_call_id": "1"},
                bot("a"),
            ]
        },
        [
            user("q"),
            turn("tool_call", CALL, loss=False),
            turn("tool_call", {"name": "say", "arguments": {"b": "x"}}, loss=False),
            turn("tool", "first"),
            turn("tool", "second"),
            bot("a"),
        ],
    ),
    "OpenAI calls beside a content": (
        {"messages": [user("q"), bot("wait", tool_calls=OPENAI_CALLS[:1]), turn("tool", "4"), bot("a")]},
        [user("q"), bot("wait"), turn("tool_call", CALL), turn("tool", "4"), bot("a")],
    ),
    "parts with media": (
        {"messages": [user([{"type": "text", "text": "see "}, IMAGE]), bot("a")]},
        [user([{"type": "text", "text": "see "}, IMAGE]), bot("a")],
    ),
    "alpaca": ({"instruction": "do", "input": "x", "output": "a"}, [user("do\nx"), bot("a")]),
    "alpaca without input": ({"instruction": "do", "input": "", "output": "a"}, [user("do"), bot("a")]),
    "alpaca, input alone": ({"instruction": "", "input": "x", "output": "a"}, [user("x"), bot("a")]),
    "alpaca, null": ({"instruction": "do", "input": None, "output": "a"}, [user("do"), bot("a")]),
    "alpaca with history": (
        {"instruction": "q", "input": "", "output": "a", "history": [["h", "b"]], "system": "s"},
        [turn("system", "s"), user("h"), bot("b"), *QA],
    ),
    "alpaca with text": ({"instruction": "q", "input": "", "output": "a", "text": "### q: a"}, QA),
    "query, response": ({"query": "q", "response": "a"}, QA),
    "prompt, completion": ({"prompt": "q", "completion": "a"}, QA),
    "question, answer": ({"question": "q", "answer": "a"}, QA),
    "problem, solution": ({"problem": "q", "solution": "a"}, QA),
    "instruction, output": ({"instruction": "q", "output": "a"}, QA),
    "upper case": ({"Question": "q", "Answer": "a"}, QA),
    "proper names first": ({"query": "q", "prompt": "p", "response": "a", "solution": "b"}, QA),
    "no response": ({"query": "q"}, [user("q")]),
    "null response": ({"query": "q", "response": None}, [user("q")]),
    "several responses": ({"query": "q", "answers": ["a", "b"]}, QA),
    "history": ({"query": "q", "response": "a", "history": [["h", "b"]]}, [user("h"), bot("b"), *QA]),
    "history text": ({"query": "q", "response": "a", "history": "[['h', 'b']]"}, [user("h"), bot("b"), *QA]),
    "response and system": ({"prompt": "q", "output": "a", "system_prompt": "s"}, [turn("system", "s"), *QA]),
}
# These ms-swift does not understand, or writes down as it should not.
BEYOND_MS_SWIFT = {
    "arguments as args": (
        {
            "messages": [
                user("q"),
                bot(None, tool_calls=[{"name": "add", "args": {"a": 1}}]),
                turn("tool", "4"),
                bot("a"),
            ]
        },
        [user("q"), turn("tool_call", CALL), turn("tool", "4"), bot("a")],
    ),
    "parameters beside the function": (
        {"messages": [user("q"), bot(None, tool_calls=[{"function": {"name": "f"}, "parameters": ""}])]},
        [user("q"), turn("tool_call", {"name": "f", "arguments": {}})],
    ),
    "keys of pairs": (
        {"conversations": [{"human": "h", "gpt": "b", "weight": 0}, {"user": "q", "assistant": "a", "thinking": "hm"}]},
        [user("h"), bot("b", loss=False), user("q"), bot("<think>\nhm\n</think>\n\na")],
    ),
    "pairs without the last answer": (
        {"conversations": [*PAIRS, {"user": "r"}]},
        [user("h"), bot("b"), *QA, user("r")],
    ),
    "other speakers": (
        {"messages": [turn("developer", "s"), turn("Human", "q"), turn("model", "a")]},
        [turn("system", "s"), *QA],
    ),
    "JSON turns": ({"messages": [json.dumps(message) for message in QA]}, QA),
    "parts of text": (
        {
            "messages": [
                turn("system", [{"type": "text", "text": "s"}]),
                user([{"type": "text", "text": "q"}]),
                bot("a"),
            ]
        },
        [turn("system", "s"), *QA],
    ),
    "parts of a tool": (
        {"messages": [*QA, turn("tool", [{"type": "text", "text": "4"}]), bot("a")]},
        [*QA, turn("tool", "4"), bot("a")],
    ),
    "result of a tool": ({"messages": [*QA, turn("tool", {"sum": 4})]}, [*QA, turn("tool", {"sum": 4})]),
    "old function call": (
        {"messages": [user("q"), {"role": "assistant", "function_call": CALL}, turn("function", "4", name="add")]},
        [user("q"), turn("tool_call", CALL), turn("tool_response", "4", name="add")],
    ),
    "calls in their tags": (
        {
            "messages": [
                user("q"),
                turn("tool_call", f"<tool_call>\n{TEXT}\n</tool_call>\n<tool_call>{TEXT}</tool_call>"),
            ]
        },
        [user("q"), turn("tool_call", TEXT), turn("tool_call", TEXT)],
    ),
    "TRL": ({"prompt": QA[:1], "completion": QA[1:]}, QA),
    "turns and text": ({"prompt": QA[:1], "completion": "a"}, QA),
    "turns alone": ({"prompt": QA[:1]}, QA[:1]),
    "reasoning": (
        {"messages": [user("q"), bot("a", reasoning_content="hm")]},
        [user("q"), bot("<think>\nhm\n</think>\n\na")],
    ),
    "reasoning by its other name": (
        {"messages": [user("q"), bot("a", reasoning="hm", reasoning_content="")]},
        [user("q"), bot("<think>\nhm\n</think>\n\na")],
    ),
    "reasoning twice": (
        {"messages": [user("q"), bot("<think>hm</think>a", reasoning_content="hm\n")]},
        [user("q"), bot("<think>hm</think>a")],
    ),
    "reasoning before a call": (
        {"messages": [user("q"), bot(None, reasoning_content="hm", tool_calls=OPENAI_CALLS[:1])]},
        [user("q"), bot("<think>\nhm\n</think>\n\n"), turn("tool_call", CALL)],
    ),
    "equal synonyms": ({"prompt": "q", "question": "q", "answer": "a"}, QA),
}
EVERY_FORM = AS_MS_SWIFT | BEYOND_MS_SWIFT


@pytest.mark.parametrize("name", EVERY_FORM)
def test_forms(name: str):
    raw, expected = EVERY_FORM[name]
    before = copy.deepcopy(raw)
    row = to_row(raw, PLACE)
    assert row["messages"] == expected
    assert raw == before
    check_row(row)


@pytest.fixture(scope="module")
def ms_swift(tmp_path_factory):
    """What ms-swift makes of one row, before a template and inside it."""
    cache = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MODELSCOPE_CACHE", str(cache / "modelscope"))
        patch.setenv("HF_DATASETS_CACHE", str(cache / "hf"))
        from datasets import Dataset
        from swift.dataset import AutoPreprocessor

        def preprocess(raw: dict) -> dict:
            dataset = Dataset.from_list([copy.deepcopy(raw)], on_mixed_types="use_json")
            return AutoPreprocessor()(dataset, load_from_cache_file=False, strict=True, enable_auto_mapping=True)[0]

        yield preprocess


@pytest.mark.parametrize("name", AS_MS_SWIFT)
def test_turns_are_those_of_ms_swift(name: str, ms_swift):
    raw, expected = AS_MS_SWIFT[name]
    assert ms_swift(raw)["messages"] == expected


def test_ms_swift_writes_parts_of_text_as_the_text(ms_swift):
    from swift.template.template_inputs import StdTemplateInputs

    raw = {"messages": [user([{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]), bot("a")]}
    assert StdTemplateInputs.from_dict(ms_swift(raw)).messages == to_row(raw, PLACE)["messages"]


def test_boxes_are_those_of_ms_swift(ms_swift):
    raw = {"messages": QA, "objects": {"bbox": [[9, 8, 1, 2], [1, 2]], "ref": ["dog"]}}
    assert ms_swift(raw)["objects"] == to_row(raw, PLACE)["objects"]


def test_teacher_prompt_replaces_the_last_user_turn():
    messages = [turn("system", "s"), user("h"), bot("b"), *QA]
    assert to_row({"messages": messages, "teacher_prompt": "book"}, PLACE)["teacher_messages"] == [
        *messages[:3],
        user("book"),
    ]
    assert to_row({"query": "q", "teacher_prompt": "book"}, PLACE)["teacher_messages"] == [user("book")]


def test_the_place_is_kept():
    place = Place("b.csv", 7, "x")
    assert Place.of(to_row({"query": "q"}, place)) == place


def test_a_row_of_this_package_keeps_its_own_place():
    raw = {"messages": QA, "kd_source": "a.jsonl", "kd_row": 2, "kd_id": "k", "columns": '{"id": "k"}', "new": 1}
    row = to_row(raw, PLACE)
    assert Place.of(row) == Place("a.jsonl", 2, "k")
    assert row["columns"] == {"id": "k", "new": 1}


def test_half_a_place_is_none():
    assert to_row({"messages": QA, "kd_source": "a.jsonl"}, PLACE) == {"messages": QA, **OWN}


def test_columns_are_renamed():
    row = to_row({"Ask": "q", "gold": "a", "text": "t"}, PLACE, {"ask": "query", "gold": "response", "none": "x"})
    assert row == {"messages": QA, "columns": {"text": "t"}, **OWN}


def test_a_form_can_be_named():
    raw = {"messages": QA, "prompt": "p", "completion": "c"}
    assert to_row(raw, PLACE, format="response")["messages"] == [user("p"), bot("c")]
    assert to_row(raw, PLACE, format="messages")["messages"] == QA
    with pytest.raises(RowError, match="and needs those of the format alpaca"):
        to_row(raw, PLACE, format="alpaca")
    with pytest.raises(KDError, match="there is no format 'x' of rows; use auto, messages, alpaca, response"):
        check_format("x")


BAD = [
    ({}, "format", "it has the columns none, and needs messages, or a prompt with or without a response"),
    ({"topic": 1, "tag": 2}, "format", "it has the columns 'topic', 'tag', and needs messages, or a prompt"),
    ({chr(97 + i): 1 for i in range(12)}, "format", "'g', 'h', ..., and needs"),
    ({"messages": None}, "format", "it has the columns none"),
    ({"messages": 3}, "format", "its column 'messages' is a number, not a list of turns"),
    ({"messages": {"role": "user"}}, "format", "its column 'messages' is an object, not a list of turns"),
    ({"conversations": []}, "messages", "its column 'conversations' is empty"),
    ({"messages": "hello"}, "unreadable", "its column 'messages' is not JSON (Expecting value, column 1)"),
    ({"messages": "[" * 300 + "]" * 300}, "unreadable", "its column 'messages' is nested deeper than 100 levels"),
    ({"messages": "()" * 99}, "unreadable", "its column 'messages' is not JSON"),
    ({"messages": "3"}, "format", "its column 'messages' is a number, not a list of turns"),
    ({"messages": [user("q"), 3]}, "format", "turn 2 is a number, not an object with a role and a content"),
    ({"messages": [{"text": "q"}]}, "format", "turn 1 has neither a role nor a content; its keys are ['text']"),
    ({"messages": [{"content": "q"}]}, "messages", "turn 1 has no role"),
    ({"messages": [turn("narrator", "q")]}, "messages", "turn 1 has the unknown role 'narrator'"),
    ({"messages": [turn(["user"], "q")]}, "messages", "turn 1 has the unknown role ['user']"),
    ({"messages": [user(5)]}, "format", "turn 1 (user) has a number as its content, not text"),
    ({"messages": [user("q"), bot({"a": 1})]}, "format", "turn 2 (assistant) has an object as its content, not text"),
    ({"messages": [bot("a", loss="no")]}, "format", "turn 1 (assistant) has the loss 'no', which is no number"),
    ({"messages": [user([{"type": "text"}])]}, "format", "part 1 of turn 1 (user) has no text"),
    ({"messages": [user(["q"])]}, "format", "part 1 of turn 1 (user) has no type, not text or one of image, image_url"),
    ({"messages": [user([{"type": "tool_use"}])]}, "format", "part 1 of turn 1 (user) has the type 'tool_use'; give"),
    ({"messages": [user([{"type": "image", "image": 3}])]}, "media", "part 1 of turn 1 (user) has neither a path"),
    ({"messages": [user([{"type": "image", "image": {}}])]}, "media", "has neither a path nor a URL as its image"),
    (
        {"messages": [bot(None, tool_calls=3)]},
        "format",
        "turn 1 (assistant) has a number as its tool_calls, not a list",
    ),
    ({"messages": [bot(None, tool_calls=[{"id": 1}])]}, "format", "turn 1 (assistant) has a tool call without a name"),
    (
        {"messages": [bot(None, tool_calls=[{"name": "add", "input": {"a": 1}}])]},
        "format",
        "turn 1 (assistant) has a tool call with the key 'input' and no arguments; if it holds them, call it so",
    ),
    (
        {"messages": [bot(None, tool_calls=OPENAI_CALLS[:1], function_call={"name": "say", "arguments": "{}"})]},
        "format",
        "turn 1 (assistant) has tool_calls and a function_call, which differ; keep one of them",
    ),
    ({"mesages": [user("q")]}, "format", "its column 'mesages' is not known (did you mean 'messages'?); rename it"),
    ({"chosen": [user("q"), bot("a")]}, "format", "its column 'chosen' holds a conversation; say `gold: chosen` in a"),
    ({"messages": [bot(None, tool_calls="[")]}, "unreadable", "tool_calls of turn 1 (assistant) is not JSON"),
    ({"messages": [bot("a", reasoning=3)]}, "think", "turn 1 (assistant) has a number as its reasoning, not text"),
    ({"messages": [bot(None, reasoning_content="r")]}, "empty", "turn 1 (assistant) has reasoning_content and no"),
    ({"messages": [bot("<think>x</think>", reasoning="r")]}, "think", "has another reasoning than the think block"),
    ({"messages": [bot([IMAGE], reasoning="r")]}, "think", "has reasoning beside a content of parts"),
    ({"messages": QA, "conversations": PAIRS, "teacher_messages": 1}, "format", "'teacher_messages' is a number"),
    ({"conversation": QA, "conversations": PAIRS}, "format", "its columns 'conversation' and 'conversations' differ"),
    (
        {"prompt": "q", "question": "r"},
        "format",
        "its columns 'prompt' and 'question' differ and each could be its query",
    ),
    (
        {"query": "q", "answer": "4", "solution": "2+2"},
        "format",
        "'answer' and 'solution' differ and each could be its",
    ),
    ({"query": "q", "answer": 4}, "format", "its column 'answer' is a number, not text"),
    ({"query": [], "answers": "a"}, "messages", "its column 'query' is empty"),
    ({"query": "q", "answers": [None]}, "format", "its column 'answers' is null, not text"),
    ({"query": {"a": 1}}, "format", "its column 'query' is an object, not text"),
    ({"instruction": 1, "input": "x"}, "format", "its column 'instruction' is a number, not text"),
    ({"query": "q", "history": "h"}, "unreadable", "its column 'history' is not JSON"),
    ({"query": "q", "history": {"h": "b"}}, "format", "its column 'history' is an object, not a list of pairs"),
    ({"query": "q", "history": [["h"]]}, "format", "round 1 of its column 'history' is ['h'], not a pair of texts"),
    ({"query": "q", "history": [["h", 3]]}, "format", "its column 'history' is a number, not text"),
    (
        {"messages": [turn("system", "a"), *QA], "system": "b"},
        "messages",
        "its system turn and its column 'system' differ",
    ),
    ({"messages": QA, "system": 3}, "format", "its column 'system' is a number, not text"),
    ({"messages": QA, "tools": 3}, "format", "tool 1 of tools is a number, not an object"),
    ({"messages": QA, "images": [3]}, "media", "image 1 of images has the form 3; give a path or a URL"),
    ({"messages": QA, "images": [{"bytes": "iVBO"}]}, "media", "image 1 of images has text as its bytes; give a path"),
    ({"messages": QA, "image": "a", "images": "b"}, "format", "'images' and another that means images differ; keep"),
    ({"messages": QA, "videos": [["a", "b"]]}, "media", "item 1 of videos has no path"),
    ({"messages": QA, "objects": {"ref": ["a"]}}, "media", "objects has no list bbox of boxes, each of 2 or 4 numbers"),
    ({"messages": QA, "objects": {"bbox": [[1, 2, 3]]}}, "media", "objects has no list bbox of boxes"),
    ({"messages": QA, "objects": [1]}, "media", "its column 'objects' is a list, not an object"),
    ({"messages": QA, "chat_template_kwargs": "x"}, "unreadable", "its column 'chat_template_kwargs' is not JSON"),
    ({"messages": QA, "teacher_chat_template_kwargs": [1]}, "format", "is a list, not an object"),
    ({"messages": QA, "teacher_thought": 3}, "format", "its column 'teacher_thought' is a number, not text"),
    ({"messages": QA, "think_loss": "much"}, "format", "its column 'think_loss' is 'much', not a number"),
    ({"messages": QA, "think_loss": True}, "format", "its column 'think_loss' is True, not a number"),
    ({"messages": QA, "teacher_messages": [turn("x", "q")]}, "messages", "turn 1 of teacher_messages has the unknown"),
    (
        {"messages": QA, "teacher_messages": QA[:1], "teacher_prompt": "p"},
        "format",
        "both teacher_messages and teacher_p",
    ),
    ({"messages": [bot("a")], "teacher_prompt": "p"}, "messages", "it has a teacher_prompt and no user turn"),
    ({"messages": QA, "teacher_prompt": 3}, "format", "turn 1 (user) has a number as its content"),
]


@pytest.mark.parametrize(("raw", "kind", "reason"), BAD, ids=[reason for _, _, reason in BAD])
def test_rows_that_are_not_understood(raw: dict, kind: str, reason: str):
    with pytest.raises(RowError) as error:
        to_row(raw, PLACE)
    assert error.value.kind == kind
    assert reason in str(error.value)
    assert not str(error.value).endswith(".")
    assert "\n" not in str(error.value)


def test_two_columns_of_one_new_name():
    with pytest.raises(RowError, match="two of its columns would be 'response' after renaming, and they differ"):
        to_row({"query": "q", "gold": "a", "response": "b"}, PLACE, {"gold": "response"})


MISSPELT = {
    "teacher_messages": (
        "teacher_mesages",
        "teacher_message",
        "Teacher-Messages",
        "teacherMessages",
        "techer_messages",
    ),
    "teacher_tools": ("teacher_tool",),
    "teacher_thought": ("teacher_thoughts",),
    "messages": ("mesages", "messgaes", "Mesages"),
    "response": ("reponse", "responce", "respones", " response"),
    "think_loss": ("thinkloss", "think_los", "think loss"),
    "chat_template_kwargs": ("chat_template_kwarg",),
    "system": ("sytem",),
}
OWN_NAMES = (
    *(
        "id",
        "source",
        "metadata",
        "context",
        "contest",
        "responses",
        "prompts",
        "message",
        "object",
        "tool",
        "prompt_en",
    ),
    *("response_1", "subquestion", "subject", "teacher_name", "teacher_model", "teacher_response", "teacher_tokens"),
    *(
        "teacher_logprobs",
        "answer_type",
        "answer_en",
        "competition",
        "construction",
        "output_tokens",
        "inputs",
        "chosen",
    ),
)


@pytest.mark.parametrize(("known", "names"), MISSPELT.items())
def test_a_misspelt_column_is_refused_and_the_known_one_named(known, names):
    for name in names:
        with pytest.raises(RowError, match=f"is not known .did you mean '{known}'.*rename it"):
            to_row({"messages": QA, name: "x"}, PLACE)


@pytest.mark.parametrize(
    "name", ["teacher_system", "teacher_query", "teacher_history", "teacher_videos", "teacher_msgs"]
)
def test_what_the_teacher_cannot_have_by_itself_is_refused(name):
    with pytest.raises(RowError, match="what only the teacher sees stands in teacher_messages"):
        to_row({"messages": QA, name: "x"}, PLACE)


@pytest.mark.parametrize(
    ("name", "known"),
    [
        ("awnser", "answer"),
        ("rseponse", "response"),
        ("teacher_thinking", "teacher_thought"),
        ("teacher_reasoning", "teacher_thought"),
        ("teacher_function", "teacher_functions"),
    ],
)
def test_a_moved_letter_and_other_names_of_the_teachers_thought(name, known):
    with pytest.raises(RowError, match=f"did you mean '{known}'"):
        to_row({"messages": QA, name: "x"}, PLACE)
    asked = Asked(beside=(name,))
    assert to_row({"messages": QA, name: "x"}, PLACE, asked=asked)["columns"] == {name: "x"}


def test_columns_of_other_names_are_kept():
    others = dict.fromkeys(OWN_NAMES, "x")
    assert to_row({"messages": QA, **others}, PLACE)["columns"] == others
    assert [name for name in OWN_NAMES if why_misspelt(name)] == []
    assert "columns" not in to_row({"messages": QA, "teacher_mesages": None}, PLACE)
    assert to_row({"query": "q", "reponse": "a"}, PLACE, {"reponse": "response"})["messages"] == QA


@pytest.mark.parametrize(
    ("raw", "columns"),
    [
        ({"query": "q", "output": "o", "answer": "a"}, "'answer' and 'output'"),
        ({"prompt": "p", "completion": "c", "text": "t"}, "'text' and 'completion'"),
        ({"prompt": "p", "question": "q", "response": "r"}, "'prompt' and 'question'"),
        ({"instruction": "i", "output": "o", "response": "r"}, "'output' and 'response'"),
        ({"instruction": "i", "input": "x", "output": "o", "query": "q"}, "'instruction' and 'query'"),
    ],
)
def test_two_columns_for_one_thing_are_refused(raw, columns):
    with pytest.raises(RowError, match=f"its columns {columns} differ and each could be its"):
        to_row(raw, PLACE)


@pytest.mark.parametrize("response", ["a", " a\n", "<think>\nhm\n</think>\n\na", "", None, ["b"]])
def test_messages_and_a_response_that_agree_are_used(response):
    assert to_row({"messages": QA, "response": response}, PLACE)["messages"] == QA
    assert to_row({"messages": QA[:1], "response": "b"}, PLACE)["messages"] == QA[:1]


def test_messages_and_a_response_that_differ_are_refused():
    raw = {"messages": QA, "response": "b"}
    with pytest.raises(
        RowError, match="its column 'response' and the answer at the end of its messages differ; rename"
    ):
        to_row(raw, PLACE)
    for asked in (Asked(gold=("response",)), Asked(keep=("response",))):
        assert to_row(raw, PLACE, asked=asked)["columns"] == {"response": "b"}


def test_a_list_with_one_text_is_the_text():
    assert to_row({"prompt": ["q"], "response": ["a"]}, PLACE)["messages"] == QA
    assert to_row({"prompt": [json.dumps(user("q"))], "response": "a"}, PLACE)["messages"] == QA
    with pytest.raises(RowError, match="its column 'prompt' is a list of 2 texts; give one text, or a list of turns"):
        to_row({"prompt": ["q", "r"], "response": "a"}, PLACE)


@pytest.mark.parametrize(
    ("part", "instead"),
    [
        ({"type": "output_text", "text": "a"}, '{"type": "text", "text": ...}'),
        ({"type": "input_image", "image_url": "a.png"}, '{"type": "image", "image": ...}'),
        ({"type": "tool_use", "name": "f"}, "tool_calls beside the content"),
        ({"type": "tool_result", "content": "2"}, "a turn of the role tool"),
        ({"type": "refusal", "refusal": "no"}, "refusal beside the content"),
    ],
)
def test_a_part_of_another_type_is_told_what_to_be(part, instead):
    with pytest.raises(
        RowError, match=re.escape(f"part 1 of turn 2 (assistant) has the type {part['type']!r}; give it as {instead}")
    ):
        to_row({"messages": [user("q"), bot([part])]}, PLACE)


def test_a_result_under_llamas_role_is_read_and_other_roles_are_told_what_to_be():
    turns = [user("q"), turn("tool_call", {"name": "f", "arguments": {}}), turn("ipython", "2"), bot("a")]
    assert to_row({"messages": turns}, PLACE)["messages"][2] == turn("tool_response", "2")
    with pytest.raises(RowError, match="give it system, user, assistant, tool_call or tool"):
        to_row({"messages": [turn("narrator", "q")]}, PLACE)


@pytest.mark.parametrize("result", ["<tool_response>\n2", " <tool_response>"])
def test_a_result_that_was_cut_off_is_refused(result):
    with pytest.raises(RowError, match="opens <tool_response> and does not close it; take the tag out"):
        to_row({"messages": [user("q"), bot("a"), turn("tool", result)]}, PLACE)
    said = turn("tool", "the tag <tool_response> opens a result")
    assert to_row({"messages": [user("q"), bot("a"), said]}, PLACE)["messages"][2] == said
