"""Tools, calls and thoughts in a prompt are written as the model's own chat template writes them."""

from copy import deepcopy

import pytest

from swift_kd_plugin.data.formats import to_row
from swift_kd_plugin.data.rows import Place
from tests.tiny_models import make_dense

# The rules of Qwen3's and Qwen2.5's templates, which differ in what is named below.
HEAD = (
    "# Tools\n\nYou may call one or more functions to assist with the user query.\n\nYou are provided with function "
    "signatures within <tools></tools> XML tags:\n<tools>"
)
TAIL = (
    "\n</tools>\n\nFor each function call, return a json object with function name and arguments within "
    '<tool_call></tool_call> XML tags:\n<tool_call>\n{"name": <function-name>, "arguments": <args-json-object>}\n'
    "</tool_call>"
)
CALLS = (
    "{%- for call in m.tool_calls or [] %}{{- '\n' if c or not loop.first }}{{- '<tool_call>\n' }}"
    "{{- {'name': call.function.name, 'arguments': call.function.arguments} | tojson }}{{- '\n</tool_call>' }}"
    "{%- endfor %}"
)
RESULT = (
    "{{- '<|im_start|>user' if messages[loop.index0 - 1].role != 'tool' }}"
    "{{- '\n<tool_response>\n' + c + '\n</tool_response>' }}"
    "{{- '<|im_end|>\n' if loop.last or messages[loop.index0 + 1].role != 'tool' }}"
)
SYSTEM = (
    "{%- set first = messages[0].content if messages[0].role == 'system' else DEFAULT %}"
    "{%- if tools %}{{- '<|im_start|>system\n' + (first + '\n\n' if first is string else '') + HEAD }}"
    "{%- for tool in tools %}{{- '\n' }}{{- tool | tojson }}{%- endfor %}{{- TAIL + '<|im_end|>\n' }}"
    "{%- elif first is string %}{{- '<|im_start|>system\n' + first + '<|im_end|>\n' }}{%- endif %}"
)
UNLESS_RESULT = " and not (m.content.startswith('<tool_response>') and m.content.endswith('</tool_response>'))"
TURNS = (
    "{%- set ns = namespace(last=0) %}{%- for m in messages %}{%- if m.role == 'user'" + UNLESS_RESULT + " %}"
    "{%- set ns.last = loop.index0 %}{%- endif %}{%- endfor %}"
    "{%- for m in messages %}{%- set c = m.content %}{%- if m.role == 'assistant' %}THOUGHTS"
    "{{- '<|im_start|>assistant\n' + block + c }}"
    + CALLS
    + "{{- '<|im_end|>\n' }}{%- elif m.role == 'tool' %}"
    + RESULT
) + (
    "{%- elif m.role == 'user' %}{{- '<|im_start|>user\n' + c + '<|im_end|>\n' }}{%- endif %}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"
)
QWEN3_THOUGHTS = (
    "{%- set thought = '' %}{%- set block = '' %}{%- if '</think>' in c %}"
    "{%- set thought = c.split('</think>')[0].split('<think>')[-1].strip('\n') %}"
    "{%- set c = c.split('</think>')[-1].lstrip('\n') %}{%- endif %}"
    "{%- if loop.index0 > ns.last and (loop.last or thought) %}"
    "{%- set block = '<think>\n' + thought + '\n</think>\n\n' %}{%- endif %}"
)
QWEN2_5_SYSTEM = "You are Qwen, created by Alibaba Cloud. You are a helpful assistant."
CONSTANTS = f"{{%- set HEAD = {HEAD!r} %}}{{%- set TAIL = {TAIL!r} %}}"
TEMPLATES = {
    "qwen3": CONSTANTS + "{%- set DEFAULT = none %}" + SYSTEM + TURNS.replace("THOUGHTS", QWEN3_THOUGHTS),
    "qwen2_5": CONSTANTS
    + f"{{%- set DEFAULT = {QWEN2_5_SYSTEM!r} %}}"
    + SYSTEM
    + TURNS.replace("THOUGHTS", "{%- set block = '' %}"),
}
TEMPLATES["qwen3_nothinking"] = TEMPLATES["qwen2_5"].replace(f"{QWEN2_5_SYSTEM!r}", "none")

TOOL = {"type": "function", "function": {"name": "add", "description": "adds ü", "parameters": {"type": "object"}}}
CALL = {"type": "function", "function": {"name": "add", "arguments": {"x": "ü"}}}
RULES, QUESTION, RESULT_TURN = (
    {"role": "system", "content": "Be kind."},
    {"role": "user", "content": "a"},
    {"role": "tool"},
)
RESULT_TURN["content"] = "2"
# As rows have it whose template was applied to each turn.
WRITTEN_CALL = '<tool_call>\n{"name": "add", "arguments": {"x": 1}}\n</tool_call>'
WRITTEN_RESULT = {"role": "user", "content": "<tool_response>\n2\n</tool_response>"}
BARE_RESULT = {"role": "user", "content": "<tool_response>2</tool_response>"}


def says(content: str, calls: int = 0) -> dict:
    return {"role": "assistant", "content": content} | ({"tool_calls": [CALL] * calls} if calls else {})


THINKS = "<think>\nhm\n</think>\n\n"
ROWS = {
    "no tools": ([QUESTION, says("B")], None),
    "rounds": ([RULES, QUESTION, says(THINKS + "B"), QUESTION, says(THINKS + "D")], None),
    "tools": ([QUESTION, says("B")], [TOOL]),
    "tools and rules": ([RULES, QUESTION, says("B")], [TOOL, TOOL]),
    "call": ([QUESTION, says("", 1), RESULT_TURN, says("B")], [TOOL]),
    "said before": ([RULES, QUESTION, says("Wait.", 1), RESULT_TURN, says("B")], [TOOL]),
    "calls": ([QUESTION, says("Wait.", 2), RESULT_TURN, RESULT_TURN, says("B")], [TOOL]),
    "thoughts": ([QUESTION, says(THINKS, 1), RESULT_TURN, says(THINKS + "Wait.", 1), RESULT_TURN, says("B")], [TOOL]),
    "old thoughts": ([QUESTION, says(THINKS, 1), RESULT_TURN, says("B"), QUESTION, says("D")], [TOOL]),
    "result of the user": ([QUESTION, says(THINKS + WRITTEN_CALL), WRITTEN_RESULT, says("B")], None),
    "results of the user": (
        [QUESTION, says(THINKS, 1), BARE_RESULT, says(THINKS + WRITTEN_CALL), WRITTEN_RESULT, says(THINKS + "B")],
        [TOOL],
    ),
    "old result of the user": (
        [QUESTION, says(THINKS + WRITTEN_CALL), WRITTEN_RESULT, says("B"), QUESTION, says("D")],
        [TOOL],
    ),
    "a call is the response": ([RULES, QUESTION, says("Wait.", 1)], [TOOL]),
}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return make_dense(tmp_path_factory.mktemp("tools") / "model")


@pytest.fixture(params=[(kind, own) for kind in TEMPLATES for own in (True, False)], ids=str)
def template(request, model):
    """In training mode; the tokenizer has the model's own chat template, or one that knows no tools."""
    from swift_kd_plugin.host.samples.preview import load_training_template

    kind, own = request.param
    made = load_training_template(str(model), kind, "qwen3", "last_round", None)
    if own:
        made.processor.chat_template = TEMPLATES[kind]
    from swift_kd_plugin.generation.tool_text import write_tools_as_the_model

    write_tools_as_the_model(made)
    return made


def own(template, turns, tools, **settings) -> str:
    chat_template = TEMPLATES[template.template_meta.template_type]
    settings = {"tools": tools, "chat_template": chat_template, "tokenize": False, **settings}
    return template.tokenizer.apply_chat_template(deepcopy(turns), **settings)


@pytest.mark.parametrize("row", ROWS)
def test_rows_of_both_views_are_the_models_own(template, row):
    from swift_kd_plugin.host.samples.encode_views import encode_views
    from swift_kd_plugin.host.samples.sample import KDSample

    turns, tools = ROWS[row]
    made = to_row({"messages": deepcopy(turns), "tools": tools}, Place("x.jsonl", 1))
    answered = made["messages"][-1]["role"] == "assistant"
    views = {"teacher_messages": made["messages"][:-1], "teacher_tools": tools or []} if answered else {}
    students, teachers = encode_views([KDSample.from_row({**made, **views})], template)
    for view in (*students, *(teachers or ())):
        assert template.tokenizer.decode(view["input_ids"]) == own(template, turns, tools)


@pytest.mark.parametrize("row", ROWS)
def test_prompts_are_the_models_own(template, row):
    from swift_kd_plugin.generation.codec import Codec
    from swift_kd_plugin.generation.engines import Prompt

    turns, tools = ROWS[row]
    made = to_row({"messages": deepcopy(turns[:-1]), "tools": tools}, Place("x.jsonl", 1))
    settings = {"enable_thinking": True} if template.template_meta.is_thinking else None
    prompt = Prompt(made["messages"], tools=made.get("tools"), chat_template_kwargs=settings)
    ids = Codec(template, "transformers", 4096).encode(prompt)["input_ids"]
    assert template.tokenizer.decode(ids) == own(template, turns[:-1], tools, add_generation_prompt=True)


def test_a_result_of_the_user_is_a_question_where_the_models_own_template_takes_it_for_one(model):
    from swift_kd_plugin.generation.codec import load_template
    from swift_kd_plugin.generation.tool_text import read_tool_text

    template = load_template(str(model), "qwen3", "qwen3")
    for own_template, asks in ((TEMPLATES["qwen3"], False), (TEMPLATES["qwen3"].replace(UNLESS_RESULT, ""), True)):
        template.processor.chat_template = own_template
        text = read_tool_text(template)
        assert (text.keeps_thoughts, text.asks_by_result) == (True, asks)


def test_another_text_is_said_once(model, monkeypatch):
    from swift_kd_plugin.generation import tool_text
    from swift_kd_plugin.generation.codec import load_template

    said = []
    monkeypatch.setattr(tool_text.logger, "warning_once", said.append)
    template = load_template(str(model), "qwen3", "qwen3")
    tool_text.say_other_tool_text(template)
    template.processor.chat_template = TEMPLATES["qwen3"]
    fits, differs = load_template(str(model), "qwen3", "qwen3"), load_template(str(model), "llama3_2", "qwen3")
    for made in (fits, differs, differs):
        made.processor.chat_template = TEMPLATES["qwen3"]
        tool_text.say_other_tool_text(made)
    assert len(said) == 1
    assert "Rows with tools: --template llama3_2 of ms-swift writes 'begin_of_text|>" in said[0]
    assert "where the model's own chat template writes 'im_start|>system" in said[0]
