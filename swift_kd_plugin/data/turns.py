"""Turns of a conversation in any usual form, as ms-swift's own: a role that it knows, a content, a loss."""

import re
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from swift_kd_plugin.data.channels import has_channels, without_channels
from swift_kd_plugin.data.padding_nulls import has_null
from swift_kd_plugin.data.part_types import MEDIA_PARTS, why_no_part
from swift_kd_plugin.data.rows import Message, RowError
from swift_kd_plugin.data.think_block import CLOSE, OPEN, join_thought
from swift_kd_plugin.data.thought_parts import with_thought_told
from swift_kd_plugin.data.turn_keys import REASONING, SPEAKERS, read_weights, unread_keys, weights_of
from swift_kd_plugin.data.values import kind_of, parse_json, parse_text, shown

TOOL_ROLES = ("tool", "tool_response")
ROLES = frozenset({"system", "user", "assistant", "tool_call", *TOOL_ROLES})
PLAIN_ROLES = ROLES.difference(TOOL_ROLES, ("tool_call",))
ROLE_ALIASES = {
    **{role: role for role in ROLES},
    "developer": "system",
    "human": "user",
    "gpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "ai": "assistant",
    "function_call": "tool_call",
    "function": "tool_response",
    "function_response": "tool_response",
    "observation": "tool_response",
    "observations": "tool_response",
    "ipython": "tool_response",
}
# A turn of ShareGPT's older form has the question and its answer under the names of the speakers.
ASKED = ("user", "human")
ANSWERED = ("assistant", "gpt", "bot")
PAIR = (("user", ASKED), ("assistant", ANSWERED))
# What some tools put around a result that the template puts around it, too.
RESULT_OPEN, RESULT_CLOSE = "<tool_response>", "</tool_response>"
RESULT_TAG = re.compile(f"{RESULT_OPEN}|{RESULT_CLOSE}")
# A call as hermes models write it, which the template makes of a call by itself.
CALL_OPEN = "<tool_call>"
WRITTEN_CALL = re.compile(rf"\s*{CALL_OPEN}(.*?)</tool_call>", re.DOTALL)
# What a call's arguments are called: OpenAI and Hermes; Llama; LangChain. And what else a call has, which is not read.
ARGUMENTS = ("arguments", "parameters", "args")
ARGUMENTS_OF_CALLS = frozenset(ARGUMENTS)
BESIDE_ARGUMENTS = frozenset({"name", "function", "type", "id", "index", "call_id", "strict", "extra_content"})
KEYS_OF_CALLS = BESIDE_ARGUMENTS.union(ARGUMENTS)
KNOWN_ROLES = "give it system, user, assistant, tool_call or tool"
UNREAD, PADDED = "unread", "padded"


def name_turn(number: int, column: str) -> str:
    """What a reason calls a turn, counted from 1."""
    return f"turn {number} of {column}" if column == "teacher_messages" else f"turn {number}"


def to_turns(value: Any, column: str = "messages") -> list[Message]:
    """The turns of a column as ms-swift's `MessagesPreprocessor` makes them.

    Args:
        value: a list of turns, each an object or its JSON text, or the text of such a list.
        column: its name, for reasons.

    Returns:
        Turns of the keys role, content, loss, loss_scale and, on a tool's turn, name. A content is text, a list of
        parts with media among them, or on turns of tools any JSON. A missing content is None, which `check_row`
        refuses. For `take_from_turns` they may also have tools (a system turn's), PADDED and UNREAD, names of other
        keys.

    Raises:
        RowError: what stands there is no list of turns, or a turn has a form that is not known.
    """
    turns = _list_of(value, column)
    if all(_is_plain(turn) for turn in turns):
        return turns
    standard: list[Message] = []
    named = ((name_turn(number, column), turn) for number, turn in enumerate(turns, start=1))
    for name, turn in without_channels(named) if has_channels(turns) else named:
        standard += _standard(turn, name)
    return _expand_tool_calls(standard)


def _list_of(value: Any, column: str) -> list[Any]:
    if isinstance(value, str):
        value = parse_text(value, f"its column {column!r}")
    if not isinstance(value, (list, tuple)):
        raise RowError("format", f"its column {column!r} is {kind_of(value)}, not a list of turns")
    if not value:
        raise RowError("messages", f"its column {column!r} is empty")
    return list(value) if isinstance(value, tuple) else value


def _is_plain(turn: Any) -> bool:
    if type(turn) is not dict or len(turn) != 2:
        return False
    role, content = turn.get("role"), turn.get("content")
    if type(role) is not str or type(content) is not str:
        return False
    return role in PLAIN_ROLES or (role in ROLES and RESULT_OPEN not in content and CALL_OPEN not in content)


def _standard(turn: Any, name: str) -> list[Message]:
    """One turn, which still has its tool_calls and tool_call_id, or the two of a pair."""
    if isinstance(turn, str):
        turn = parse_text(turn, name)
    if not isinstance(turn, dict):
        raise RowError("format", f"{name} is {kind_of(turn)}, not an object with a role and a content")
    turn = {key: item for key, item in turn.items() if item is not None}
    role = turn.get("role", turn.get("from"))
    if role is None and not turn.keys() & {"content", "value"}:
        return _pair(turn, name)
    if not isinstance(role, str) or (known := ROLE_ALIASES.get(role.lower().replace("-", "_"))) is None:
        wrong = "no role" if role is None else f"the unknown role {shown(role)}"
        raise RowError("messages", f"{name} has {wrong}; {KNOWN_ROLES}")
    name = f"{name} ({known})"
    if known == "assistant":
        turn = with_thought_told(turn, name)
    content = _content(turn.get("content", turn.get("value")), known, name)
    standard = {"role": known, "content": content}
    if unread := unread_keys(turn, known, name):
        standard[UNREAD] = unread
    if known == "assistant":
        standard |= _said(content, turn, name)
    if known == "system" and (tools := [turn[key] for key in ("tools", "functions") if turn.get(key)]):
        standard["tools"] = tools
    if known == "tool_call" and has_null(content):
        standard[PADDED] = True
    if known not in TOOL_ROLES:
        standard |= read_weights(turn, known, name)
        return [standard] if known != "tool_call" else [standard | {"content": c} for c in _bare_calls(content)]
    standard |= {key: turn[key] for key in ("name", "tool_call_id") if isinstance(turn.get(key), str)}
    if isinstance(content, str) and content.lstrip().startswith(RESULT_OPEN) and RESULT_CLOSE not in content:
        raise RowError(
            "format", f"{name} opens {RESULT_OPEN} and does not close it; take the tag out, which the template writes"
        )
    return [standard | {"content": content} for content in _unwrapped(content)]


def _said(content: Any, turn: Message, name: str) -> Message:
    """What the assistant says: its content, with the thought in front and its calls beside it."""
    calls = _tool_calls(turn, name)
    if refusal := turn.get("refusal"):
        if content or not isinstance(refusal, str):
            raise RowError("format", f"{name} has a refusal beside its content; keep one of them")
        content = refusal
    if calls and isinstance(content, str):
        content = _without_calls(content, calls, name)
    said = {"content": _with_reasoning(content, turn, bool(calls), name)}
    return said | {"tool_calls": calls} if calls else said


def _bare_calls(content: Any) -> list[Any]:
    """A call without the tags that the template puts around it; several calls in one turn are several."""
    written = WRITTEN_CALL.findall(content) if isinstance(content, str) else []
    return [call.strip() for call in written] if written and not WRITTEN_CALL.sub("", content).strip() else [content]


def _unwrapped(content: Any) -> list[Any]:
    """A tool's result without the tags that the template puts around it; several results in one turn are several."""
    if not isinstance(content, str) or RESULT_OPEN not in content:
        return [content]
    text = content.strip()
    if not (text.startswith(RESULT_OPEN) and text.endswith(RESULT_CLOSE)):
        return [content]
    results = _top_results(text)
    return [content] if results is None else [inner for result in results for inner in _unwrapped(result)]


def _top_results(text: str) -> list[str] | None:
    """What stands between the outermost tags; None if text stands beside them.

    Where the tags do not pair, the first and the last are taken for the outermost ones, and others for text of a tool.
    """
    results, depth, start, end = [], 0, 0, 0
    for tag in RESULT_TAG.finditer(text):
        if tag[0] == RESULT_OPEN:
            if not depth and text[end : tag.start()].strip():
                return None
            start, depth = start if depth else tag.end(), depth + 1
        else:
            depth, end = depth - 1, tag.end()
            if not depth:
                results.append(text[start : tag.start()])
        if depth < 0:
            return None
    results = [text[len(RESULT_OPEN) : -len(RESULT_CLOSE)]] if depth else results
    return [result.removeprefix("\n").removesuffix("\n") for result in results]


def _pair(turn: Message, name: str) -> list[Message]:
    others = {key: value for key, value in turn.items() if key not in SPEAKERS}
    said = [(role, next((key for key in keys if key in turn), None)) for role, keys in PAIR]
    said = [(role, turn[key]) for role, key in said if key is not None]
    turns: list[Message] = []
    for number, (role, content) in enumerate(said, start=1):
        turns += _standard({"role": role, "content": content, **(others if number == len(said) else {})}, name)
    if not turns:
        raise RowError("format", f"{name} has neither a role nor a content; its keys are {shown(list(turn))}")
    return turns


def _content(content: Any, role: str, name: str) -> Any:
    if content is None or isinstance(content, str):
        return content
    if isinstance(content, list) and (role not in (*TOOL_ROLES, "tool_call") or _all_text(content)):
        return _parts(content, name)
    if role in (*TOOL_ROLES, "tool_call"):
        return content
    raise RowError("format", f"{name} has {kind_of(content)} as its content, not text")


def _all_text(content: list[Any]) -> bool:
    return bool(content) and all(isinstance(part, dict) and part.get("type") == "text" for part in content)


def _parts(parts: list[Any], name: str) -> str | list[Message]:
    """A list of parts as it is, or the text of one without media, which is what ms-swift makes of it at the end."""
    for number, part in enumerate(parts, start=1):
        kind = part.get("type") if isinstance(part, dict) else None
        if kind == "text":
            if not isinstance(part.get("text"), str):
                raise RowError("format", f"part {number} of {name} has no text")
        elif kind in MEDIA_PARTS:
            value = part.get(kind)
            value = value.get("url", 0) if isinstance(value, dict) else value
            if value is not None and not isinstance(value, str):
                raise RowError("media", f"part {number} of {name} has neither a path nor a URL as its {kind}")
        else:
            raise RowError("format", f"part {number} of {name} has {why_no_part(kind)}")
    return "".join(part["text"] for part in parts) if all(part["type"] == "text" for part in parts) else parts


def _with_reasoning(content: Any, turn: Message, calls_tools: bool, name: str) -> Any:
    keys = [key for key in REASONING if turn.get(key)]
    if not keys:
        return content
    if other := next((other for other in keys if _bare(turn[other]) != _bare(turn[keys[0]])), None):
        raise RowError("think", f"{name} has {keys[0]} and {other}, which differ; keep one of them")
    return put_thought(content, turn[keys[0]], keys[0], calls_tools, name)


def _bare(thought: Any) -> Any:
    return thought.strip() if isinstance(thought, str) else thought


def put_thought(content: Any, reasoning: Any, key: str, calls_tools: bool, name: str) -> str:
    """A content with the thought of its turn in front; `key` is what holds the thought. Raises RowError."""
    if not isinstance(reasoning, str):
        raise RowError("think", f"{name} has {kind_of(reasoning)} as its {key}, not text")
    if isinstance(content, list):
        raise RowError("think", f"{name} has {key} beside a content of parts")
    if not content and not calls_tools:
        raise RowError("empty", f"{name} has {key} and no content")
    content, thought = content or "", _bare_thought(reasoning, key, name)
    if content.lstrip().startswith(OPEN):
        if content.lstrip()[len(OPEN) :].partition(CLOSE)[0].strip() != thought.strip():
            raise RowError("think", f"{name} has another {key} than the think block in its content; keep one")
        return content
    return join_thought(thought if thought.strip() else "", content.lstrip("\n"))


def _bare_thought(text: str, key: str, name: str) -> str:
    """A thought without the tags and line breaks around it, which a template writes by itself."""
    bare = text.strip()
    if bare.startswith(OPEN) or bare.endswith(CLOSE):
        text = bare.removeprefix(OPEN).removesuffix(CLOSE)
    if OPEN in text or CLOSE in text:
        raise RowError("think", f"{name} has think tags within its {key}, which is put between such tags; remove them")
    return text.strip("\n")


def _tool_calls(turn: Message, name: str) -> list[Message]:
    calls, legacy = turn.get("tool_calls"), turn.get("function_call")
    if calls and legacy:
        both = [_tool_calls({key: turn[key]}, name) for key in ("tool_calls", "function_call")]
        if list(map(_call, both[0])) != list(map(_call, both[1])):
            raise RowError("format", f"{name} has tool_calls and a function_call, which differ; keep one of them")
    calls = calls or ([legacy] if legacy else [])
    if isinstance(calls, str):
        calls = parse_json(calls, f"tool_calls of {name}") or []
    calls = [calls] if isinstance(calls, dict) else calls
    if not isinstance(calls, list):
        raise RowError("format", f"{name} has {kind_of(calls)} as its tool_calls, not a list")
    calls = [parse_json(call, f"a tool call of {name}") if isinstance(call, str) else call for call in calls]
    for call in calls:
        function = call.get("function", call) if isinstance(call, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise RowError("format", f"{name} has a tool call without a name: {shown(call)}")
        if not ARGUMENTS_OF_CALLS & {*function, *call} and (unknown := _unknown_in(call)):
            raise RowError(
                "format",
                f"{name} has a tool call with the key {unknown[0]!r} and no arguments; if it holds them, call it so",
            )
    return calls


def _unknown_in(call: Message) -> list[str]:
    """Keys of a call that say something and are not read."""
    function = call.get("function", call)
    return [key for side in (call, function) for key in side if key not in KEYS_OF_CALLS and side[key]]


def _without_calls(content: str, calls: list[Message], name: str) -> str:
    """What is said beside calls, without their text where it stands there, too."""
    thought, close, said = content.rpartition(CLOSE)
    written = WRITTEN_CALL.findall(said)
    if not written:
        return content
    try:
        same = [_call(parse_json(text.strip())) for text in written] == [_call(call) for call in calls]
    except (RowError, TypeError, KeyError, AttributeError):  # not the JSON of calls
        same = False
    if not same:
        raise RowError("format", f"{name} has other calls in its content than in tool_calls; keep one of them")
    return thought + close + WRITTEN_CALL.sub("", said)


def _expand_tool_calls(turns: list[Message]) -> list[Message]:
    """Turns with OpenAI's tool_calls as turns of their own, and the results in the order of the calls."""
    turns, expanded = list(turns), []
    for index, turn in enumerate(turns):
        calls, unread = turn.pop("tool_calls", None), turn.pop(UNREAD, None)
        if calls:
            unread = [*(unread or ()), *(f"tool_calls.{key}" for call in calls for key in _unknown_in(call))]
            end = index + 1
            while end < len(turns) and turns[end]["role"] in TOOL_ROLES:
                end += 1
            turns[index + 1 : end] = _in_order_of(calls, turns[index + 1 : end])
        turn.pop("tool_call_id", None)
        if not calls or turn["content"]:
            expanded.append(turn)
        loss = weights_of(turn)
        expanded += [{"role": "tool_call", "content": _call(call), **loss, **_padded(call)} for call in calls or ()]
        if unread:
            expanded[-1][UNREAD] = unread
    return expanded


def _in_order_of(calls: Sequence[Message], results: list[Message]) -> list[Message]:
    order = {call["id"]: index for index, call in enumerate(calls) if isinstance(call.get("id"), str)}
    names = {result.get("tool_call_id") for result in results}
    if len(order) == len(calls) == len(results) and names == set(order):
        return sorted(results, key=lambda result: order[result["tool_call_id"]])
    return results


def _call(call: Message) -> Message:
    function = call.get("function", call)
    arguments = next((side[key] for side in (function, call) for key in ARGUMENTS if side.get(key) is not None), None)
    if isinstance(arguments, str) and arguments.strip():
        with suppress(RowError):  # what is not JSON stays text
            arguments = parse_json(arguments)
    return {"name": function["name"], "arguments": {} if _is_blank(arguments) else arguments}


def _is_blank(value: Any) -> bool:
    return value is None or (isinstance(value, str) and not value.strip())


def _padded(call: Message) -> Message:
    """Whether nulls stand in arguments that are no text, in which every null is meant."""
    return {PADDED: True} if has_null(call) else {}


def take_from_turns(turns: list[Message]) -> tuple[list[Any], list[str], list[Message]]:
    """What `to_turns` has left in turns beside their own keys, taken out of them.

    Returns:
        Tools, names of unread keys, and the calls in which nulls stand.
    """
    tools, unread, padded = [], [], []
    for turn in turns:
        if len(turn) > 2:
            padded += [turn] if turn.pop(PADDED, False) else []
            tools += turn.pop("tools", ())
            unread += turn.pop(UNREAD, ())
    return tools, unread, padded
