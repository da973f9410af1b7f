"""Checks of rows: what a chat template cannot write down, or would write down as something else."""

import pytest

from swift_kd_plugin.data.asked_columns import Asked
from swift_kd_plugin.data.row_report import Report
from swift_kd_plugin.data.row_store import read_dataset, write_rows
from swift_kd_plugin.data.rows import Place, RowError
from swift_kd_plugin.data.sources import check_rows
from swift_kd_plugin.data.validate import check_row

CALL = {"name": "add", "arguments": {"a": 1}}
IMAGE = {"type": "image", "image": "a.png"}
SLOT = {"type": "image"}
PATH = {"bytes": None, "path": "a.png"}


def turn(role: str, content) -> dict:
    return {"role": role, "content": content}


def user(content) -> dict:
    return turn("user", content)


def bot(content) -> dict:
    return turn("assistant", content)


def row(*messages: dict, **columns) -> dict:
    return {"messages": list(messages), "kd_source": "exp.jsonl", "kd_row": 1, **columns}


def answer(content: str) -> dict:
    return row(user("q"), bot(content))


QA = (user("q"), bot("a"))
VIEW = [turn("system", "book"), user("q")]
GOOD = {
    "question": row(user("q")),
    "answer": row(*QA),
    "system": row(turn("system", "s"), *QA),
    "empty system": row(turn("system", ""), *QA),
    "history": row(*QA, *QA),
    "empty answer in the history": row(user("q"), bot(""), *QA),
    "two answers in a row": row(*QA, bot("b")),
    "tool": row(user("q"), turn("tool_call", CALL), turn("tool", 4), turn("tool_response", "5"), bot("a")),
    "tool call in text": row(user("q"), bot("x"), turn("tool_call", '{"name": "f", "parameters": "{}"}')),
    "result last": row(user("q"), turn("tool_call", CALL), turn("tool", "4")),
    "thought": answer("<think>\nhm\n</think>\n\na"),
    "empty thought": answer("<think>\n\n</think>\n\na"),
    "no answer after a thought of the history": row(user("q"), bot("<think>hm</think>"), *QA),
    "no answer between the thought and a call": row(user("q"), bot("<think>hm</think>"), turn("tool_call", CALL)),
    "tag in the text": answer("the tag <think> opens a block"),
    "tag after the thought": answer("<think>hm</think>the tag <think> opens a block"),
    "thought over two turns": row(user("q"), bot("<think>h"), bot("m</think>a")),
    "tags of the user": row(user("</think>"), bot("a")),
    "parts": row(user([{"type": "text", "text": "q"}, IMAGE]), bot("a")),
    "media alone": row(user([IMAGE])),
    "picture without words": row(user(""), bot("a"), images=[PATH]),
    "slots": row(user([SLOT, SLOT]), bot("a"), images=[PATH, PATH]),
    "tags": row(user("<image> <image>"), bot("a"), images=[PATH, PATH]),
    "fewer tags": row(user("<image>"), bot("a"), images=[PATH, PATH]),
    "tag without media": row(user("what is <image> in HTML?"), bot("a")),
    "bytes": row(*QA, images=[{"bytes": b"\xff", "path": None}]),
    "sounds": row(user("<audio><video>"), audios=["a.wav"], videos=["a.mp4"]),
    "view": row(*QA, teacher_messages=VIEW),
    "view of a call": row(user("q"), turn("tool_call", CALL), teacher_messages=VIEW),
    "view with tool": row(*QA, teacher_messages=[user("q"), turn("tool_call", CALL), turn("tool", "4")]),
    "view without pictures": row(user("q"), images=[PATH], teacher_messages=VIEW, teacher_images=[]),
    "view with pictures": row(*QA, teacher_messages=[user("<image>")], teacher_images=[PATH]),
    "empty settings": row(*QA, teacher_tools=[], teacher_chat_template_kwargs={"response_prefix": None}),
    "weight": row(*QA, think_loss=0.5),
    "no weight": row(*QA, think_loss=0, teacher_thought="hm"),
    "whole weight": row(*QA, think_loss=1),
    "other text": row(user("é\U0001f600\0"), bot("a\u2028"), columns={"ключ": ["值"]}),
}


@pytest.mark.parametrize("name", GOOD)
def test_good_rows_pass(name: str):
    check_row(GOOD[name])


def deep(levels: int) -> list:
    value: list = []
    for _ in range(levels):
        value = [value]
    return value


BAD = [
    (row(), "messages", "its messages are empty"),
    (row(turn("system", "s")), "messages", "it asks nothing: it has only a system turn"),
    (row(turn("narrator", "s")), "messages", "turn 1 has the unknown role 'narrator'"),
    (row(bot("a")), "messages", "turn 1 (assistant) comes before any user turn"),
    (row(turn("system", "s"), bot("a")), "messages", "turn 2 (assistant) comes before any user turn"),
    (row(turn("tool", "4"), bot("a")), "messages", "turn 1 (tool) comes before any user turn"),
    (row(*QA, turn("system", "s")), "messages", "turn 3 is a system turn, which only the first may be"),
    (row(turn("system", "s"), turn("system", "s")), "messages", "turn 2 is a system turn, which only the first may be"),
    (
        row(*QA, user("q"), user("r")),
        "messages",
        "turn 4 is a second user turn in a row, which ms-swift would glue to the first; join them into one",
    ),
    (row(user("q"), turn("tool", "4")), "messages", "turn 2 (tool) follows a user turn, and no tool was called"),
    (row(user("q"), turn("tool_response", "4")), "messages", "turn 2 (tool_response) follows a user turn, and no tool"),
    (
        row(user("q"), turn("tool_call", CALL), turn("tool", "4"), user("r")),
        "messages",
        "turn 4 (user) follows the turn of a tool, which the assistant has to answer first",
    ),
    (row(user("")), "empty", "turn 1 (user) is empty"),
    (row(user(" \n"), bot("a")), "empty", "turn 1 (user) is empty"),
    (answer(""), "empty", "its response, turn 2, is empty"),
    (answer("\n"), "empty", "its response, turn 2, is empty"),
    (answer("<think>\n\n</think>\n\n"), "empty", "its response, turn 2, is empty"),
    (answer("<think></think>"), "empty", "its response, turn 2, is empty"),
    (answer("<think>hm</think>"), "empty", "its response, turn 2, is a thought without an answer"),
    (answer("<think>\nhm\n</think>\n\n"), "empty", "its response, turn 2, is a thought without an answer"),
    (row(user("q"), bot("<think>h"), bot("m</think> \n")), "empty", "its response, turn 3, is a thought without"),
    (row(user(None)), "empty", "turn 1 (user) has no content"),
    (row(user("q"), bot(None), user("r")), "empty", "turn 2 (assistant) has no content"),
    (row(turn("system", None), *QA), "empty", "turn 1 (system) has no content"),
    (row(*QA, turn("tool", None)), "empty", "turn 3 (tool) has no content"),
    (row(user(5)), "format", "turn 1 (user) has a number as its content, not text"),
    (row(turn("system", [IMAGE]), *QA), "media", "turn 1 (system) has media, which only a user turn may have"),
    (
        row(user("q"), turn("tool_call", CALL), {**turn("tool_call", CALL), "loss": False}),
        "format",
        "turn 3 (tool_call) has another weight than the call before it, with which it is one turn",
    ),
    (row(user("q"), turn("tool_call", "x")), "messages", "the tool call of turn 2 (tool_call) is not JSON"),
    (row(user("q"), turn("tool_call", [CALL])), "messages", "turn 2 (tool_call) is not an object with a name and"),
    (row(user("q"), turn("tool_call", {"name": "add"})), "messages", "turn 2 (tool_call) has no arguments"),
    (
        row(user("q"), turn("tool_call", CALL | {"arguments": "null"})),
        "messages",
        "turn 2 (tool_call) has no arguments",
    ),
    (row(user("q"), turn("tool_call", CALL | {"arguments": "a"})), "messages", "of turn 2 (tool_call) is not JSON"),
    (answer("<think>hm"), "think", "turn 2 (assistant) opens <think> and does not close it"),
    (answer("hm</think>a"), "think", "closes a think block that it does not open; put <think> in front"),
    (answer("\n<think>hm</think>a"), "think", "has white space in front of <think>, which hides the block; remove it"),
    (answer("So: <think>hm</think>a"), "think", "has a think block that does not stand at its start"),
    (answer("<think>a</think><think>b</think>c"), "think", "has more than one think block, or one inside another"),
    (answer("<think>a<think>b</think>c"), "think", "has more than one think block, or one inside another"),
    (row(user("q"), bot("<think>"), user("r"), bot("a")), "think", "turn 2 (assistant) opens <think> and does not"),
    (row(*QA, user("q"), bot("<think>"), bot("a")), "think", "turn 4 (assistant) opens <think> and does not close it"),
    (
        row(user("q"), bot([{"type": "text", "text": "<think>"}, IMAGE])),
        "think",
        "has think tags in a content of parts",
    ),
    (row(*QA, images=[{"bytes": None, "path": None}]), "media", "image 1 of images has neither path nor bytes"),
    (row(*QA, teacher_images=[PATH, {"bytes": b"", "path": ""}]), "media", "image 2 of teacher_images has neither"),
    (row(user("<image><image>"), images=[PATH]), "media", "messages have 2 image tags and 1 images"),
    (row(user([SLOT])), "media", "messages have 1 image tags and 0 images"),
    (row(user([IMAGE]), images=[PATH]), "media", "messages hold images in their parts beside the column 'images'"),
    (row(user("<video><video>"), videos=["a.mp4"]), "media", "messages have 2 video tags and 1 videos"),
    (row(user("<image>"), images=[PATH], teacher_images=[]), "media", "the teacher's messages have 1 image tags and 0"),
    (
        row(user("q"), images=[PATH], teacher_messages=[user("<image><image>")]),
        "media",
        "the teacher's messages have 2 image tags and 1 images",
    ),
    (
        row(user("<image><image>"), images=[PATH, PATH], teacher_images=[PATH]),
        "media",
        "the teacher's messages have 2 image tags and 1 images",
    ),
    (row(*QA, teacher_messages=[]), "messages", "its teacher_messages are empty"),
    (
        row(*QA, teacher_messages=list(QA)),
        "messages",
        "its teacher_messages end with the role 'assistant'; they have to",
    ),
    (row(*QA, teacher_messages=VIEW[:1]), "messages", "its teacher_messages end with the role 'system'"),
    (row(*QA, teacher_messages=[user("")]), "empty", "turn 1 of teacher_messages (user) is empty"),
    (row(*QA, teacher_messages=[bot("a")]), "messages", "turn 1 of teacher_messages (assistant) comes before any user"),
    (row(*QA, teacher_chat_template_kwargs={"response_prefix": ""}), "format", "set response_prefix, but what stands"),
    (row(*QA, teacher_thought="a</think>b"), "think", "its teacher_thought has think tags, between which it is put"),
    (
        row(*QA, think_loss=0.5, teacher_thought="hm"),
        "think",
        "it has think_loss 0.5 beside teacher_thought, with which the two views have different think blocks that "
        "cannot be compared; give 0 or leave think_loss out",
    ),
    (row(*QA, think_loss=1.5), "format", "its think_loss is 1.5, not a number from 0 to 1"),
    (row(*QA, think_loss=-1), "format", "its think_loss is -1, not a number from 0 to 1"),
    (row(*QA, think_loss=float("nan")), "format", "its think_loss is nan, not a number from 0 to 1"),
    (row(*QA, think_loss=True), "format", "its think_loss is True, not a number from 0 to 1"),
    (answer("a\ud800"), "unreadable", r"it holds \ud800, half of a character's surrogate pair"),
    (row(*QA, tools=[{"\udfff": 1}]), "unreadable", r"it holds \udfff, half of"),
    (row(*QA, columns={"a": ["\ud800"]}), "unreadable", r"it holds \ud800, half of"),
    (row(*QA, images=[{"bytes": None, "path": "\ud800"}]), "unreadable", r"it holds \ud800, half of"),
    (row(*QA, kd_id="\ud800"), "unreadable", r"it holds \ud800, half of"),
    (row(*QA, columns={"a": deep(150)}), "unreadable", "it is nested deeper than 100 levels"),
    (row(*QA, tools=[{1: 2}]), "format", "it holds an object with the key 1, which is not text"),
    (row(*QA, tools=[{"a": b"\xff"}]), "format", "it holds bytes, which JSON does not have"),
]


@pytest.mark.parametrize(("bad", "kind", "reason"), BAD, ids=[reason for _, _, reason in BAD])
def test_bad_rows_are_refused(bad: dict, kind: str, reason: str):
    with pytest.raises(RowError) as error:
        check_row(bad)
    assert error.value.kind == kind
    assert reason in str(error.value)
    assert not str(error.value).endswith(".")


@pytest.mark.parametrize("number", [float("inf"), float("-inf"), float("nan")])
def test_a_number_that_json_does_not_have_is_refused(number):
    """JSON's 1e999 is one to Python, and so is a missing float of a Parquet file."""
    call = turn("tool_call", {"name": "add", "arguments": {"a": [number]}})
    with pytest.raises(RowError, match=f"it holds {number}, which JSON does not have"):
        check_row(row(user("q"), call, turn("tool", "4"), bot("a")))


@pytest.mark.parametrize("number", [2**64, -(2**63) - 1, 10**30])
def test_whole_numbers_that_datasets_cannot_read(tmp_path, number):
    reason = "holds a whole number of more than 64 bits; give it as text"
    user, kept = {"role": "user", "content": "q"}, Asked(keep=("gold",))
    call = {"role": "tool_call", "content": {"name": "f", "arguments": {"n": number}}}
    tool = {"name": "f", "parameters": {"properties": {"n": {"maximum": number}}}}
    for row in (
        {"messages": [user, call]},
        {"query": "q", "tools": [tool]},
        {"query": "q", "chat_template_kwargs": {"n": [number]}},
        {"query": "q", "gold": number},
        {"query": "q", "gold": {"n": [number]}},
    ):
        report = Report()
        assert not list(check_rows([(Place("x.jsonl", 3), row)], report, asked=kept))
        (example,) = report.left_out["format"].examples
        assert example["place"] == "x.jsonl, line 3"
        assert example["text"] == f"{'its column ' + repr('gold') if 'gold' in row else 'it'} {reason}"
    (row,) = check_rows([(Place("x.jsonl", 3), {"query": "q", "gold": number})], Report(strict=True))
    assert row["columns"] == {"gold": number}
    for fitting in (2**64 - 1, -(2**63)):
        (row,) = check_rows([(Place("x.jsonl", 3), {"query": "q", "gold": fitting})], Report(), asked=kept)
        write_rows(tmp_path / f"{fitting}.arrow", [row], ["gold"])
        assert read_dataset(tmp_path / f"{fitting}.arrow")[0]["gold"] == fitting
