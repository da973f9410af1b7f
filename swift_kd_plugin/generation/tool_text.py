"""Tools, calls and the thoughts before them as the model's own chat template writes them.

ms-swift's hermes text, which Qwen's models have, begins with two newlines where there is no system prompt, puts a call
right behind what is said before it, and takes the thoughts away that led to the calls of the present round. What else
it writes otherwise than the model's own template is said once.
"""

from copy import copy, deepcopy
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from types import SimpleNamespace
from typing import Any

from swift.agent_template.hermes import HermesAgentTemplate
from swift.template import Template
from swift.utils import get_logger, is_master

from swift_kd_plugin.data.think_block import CLOSE, join_thought
from swift_kd_plugin.data.turns import RESULT_CLOSE, RESULT_OPEN

logger = get_logger()

TOOL = {
    "type": "function",
    "function": {
        "name": "add",
        "description": "adds",
        "parameters": {"type": "object", "properties": {"x": {"type": "integer"}}},
    },
}
CALL = {"name": "add", "arguments": {"x": 1}}
SAID, THOUGHT, RESULT = "One moment.", "I have to add.", "It makes 2."
ASKED = [{"role": "user", "content": "1?"}]
WRITTEN_RESULT = f"{RESULT_OPEN}\n{RESULT}\n{RESULT_CLOSE}"
SHOWN = 40


@dataclass(frozen=True)
class ToolText:
    """How a model writes tools in hermes form.

    Args:
        before_tools: what stands in front of their head where there is no system prompt.
        before_call: what stands between an answer and its call.
        keeps_thoughts: whether the thought before a call stays until the next question.
        asks_by_result: whether a user turn that is a result between its tags is such a question.
    """

    before_tools: str = "\n\n"
    before_call: str = ""
    keeps_thoughts: bool = False
    asks_by_result: bool = False


STOCK = ToolText()
QWEN2_5 = ToolText(before_call="\n")
QWEN3 = ToolText(before_tools="", before_call="\n", keeps_thoughts=True)
# Of models whose tokenizer has no chat template that knows tools, by ms-swift's type of template.
BY_TYPE = {"qwen3": QWEN3, "qwen3_thinking": QWEN3, "qwen3_nothinking": QWEN3, "qwen2_5": QWEN2_5, "qwen": QWEN2_5}


class OwnToolText(HermesAgentTemplate):
    """Hermes with the white space of a model's own template."""

    def __init__(self, text: ToolText):
        self.text = text

    def _format_tools(self, tools: list, system: str | None = None, user_message: dict | None = None) -> str:
        written = super()._format_tools(tools, system, user_message)
        return written if system is not None else self.text.before_tools + written.removeprefix("\n\n")

    def _add_tool_call_prefix(self, tool_content: str, pre_message: dict | None = None) -> str:
        said = pre_message.get("content") if pre_message and pre_message["role"] == "assistant" else None
        if isinstance(said, str) and self.template_meta.is_thinking:
            said = said.rpartition(CLOSE)[2].lstrip("\n")
        return (self.text.before_call if said and isinstance(said, str) else "") + tool_content


def write_tools_as_the_model(template: Template) -> None:
    """Gives a template of ms-swift, in place, the tool text of the model that its tokenizer belongs to."""
    text = read_tool_text(template)
    if template._agent_template == "hermes":
        template._agent_template_cache = {"hermes": OwnToolText(text)}
    if text.keeps_thoughts and not template.template_meta.history_thinking_prefix:
        template._remove_history_thinking = partial(_remove_thoughts_of_earlier_rounds, template, text)


def read_tool_text(template: Template) -> ToolText:
    """As the model's own chat template writes it; as models of the type do, where it has none that knows tools."""
    known = BY_TYPE.get(template.template_meta.template_type, STOCK)
    asked = own_text(template, ASKED)
    if asked is None or TOOL["function"]["description"] not in asked:
        return known
    thinks = _called(join_thought(THOUGHT, ""))
    keeps = THOUGHT in (own_text(template, thinks) or "")
    by_user = [*thinks[:-1], {"role": "user", "content": WRITTEN_RESULT}]
    asks = keeps and THOUGHT not in (own_text(template, by_user) or "")
    known = replace(known, keeps_thoughts=keeps, asks_by_result=asks)
    head, is_hermes, _ = asked.partition("# Tools")
    call = (own_text(template, _called(SAID)) or "").partition(SAID)[2]
    if not is_hermes or "<tool_call>" not in call:
        return known
    has_system = not head.rstrip("\n").endswith("system")
    return replace(
        known,
        before_tools=STOCK.before_tools if has_system else head[len(head.rstrip("\n")) + 1 :],
        before_call=call.partition("<tool_call>")[0],
    )


@lru_cache(maxsize=8)
def say_other_tool_text(template: Template) -> None:
    """Warns, once for each template, if it writes prompts with tools otherwise than the model's own chat template."""
    asked = own_text(template, ASKED)
    if asked is None or TOOL["function"]["description"] not in asked or not is_master():
        return
    for turns in (_called(SAID), _called("")):
        own = (own_text(template, turns) or "").rpartition(RESULT)[0]
        ours = _ours(template, turns).rpartition(RESULT)[0]
        if own and own != ours:
            start = next((at for at, pair in enumerate(zip(own, ours, strict=False)) if len(set(pair)) > 1), 0)
            logger.warning_once(
                f"Rows with tools: --template {template.template_meta.template_type} of ms-swift writes "
                f"{ours[start : start + SHOWN]!r} where the model's own chat template writes "
                f"{own[start : start + SHOWN]!r}; a model that is served with its own template gets other prompts."
            )
            return


def _ours(template: Template, turns: list[dict]) -> str:
    probe = copy(template)
    probe.max_length, probe.sequence_parallel_size = None, 1
    probe.padding_free = probe.use_megatron = False
    probe.set_mode("transformers")
    return template.tokenizer.decode(probe.encode({"messages": deepcopy(turns), "tools": [TOOL]})["input_ids"])


def own_text(template: Template, turns: list[dict]) -> str | None:
    """A prompt with TOOL as the tokenizer's own chat template writes it; None if it has none that takes it."""
    try:
        return template.tokenizer.apply_chat_template(
            deepcopy(turns), tools=[TOOL], tokenize=False, add_generation_prompt=True
        )
    except Exception:  # of any kind: the template is the model's own code
        return None


def _called(said: str) -> list[dict]:
    """A question, and a call with its result, in OpenAI's form."""
    call = {"type": "function", "function": CALL}
    return [
        *ASKED,
        {"role": "assistant", "content": said, "tool_calls": [call]},
        {"role": "tool", "content": RESULT},
    ]


def _remove_thoughts_of_earlier_rounds(template: Template, text: ToolText, inputs: Any) -> None:
    """ms-swift's removal, for which a tool's result is a question; the model's own counts the user's alone."""
    turns = inputs.messages
    asked = (at for at, turn in enumerate(turns) if turn["role"] == "user" and (text.asks_by_result or _asks(turn)))
    earlier = turns[: max(asked, default=-1) + 1]
    type(template)._remove_history_thinking(template, SimpleNamespace(messages=earlier))


def _asks(turn: dict) -> bool:
    """Whether a user turn is more than a tool's result, as rows have it to which a template was applied before."""
    said = turn["content"]
    return not (isinstance(said, str) and said.startswith(RESULT_OPEN) and said.endswith(RESULT_CLOSE))
