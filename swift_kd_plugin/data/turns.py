"""Turns of a conversation in any usual form, as ms-swift's own: a role that it knows, a content, a loss."""

from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from swift_kd_plugin.data.rows import Message, RowError
from swift_kd_plugin.data.think_block import CLOSE, OPEN
from swift_kd_plugin.data.turn_keys import REASONING, SPEAKERS, read_weights, unread_keys
from swift_kd_plugin.data.values import kind_of, parse_json, parse_text, shown

TOOL_ROLES = ("tool", "tool_response")
ROLES = frozenset({"system", "user", "assistant", "tool_call", *TOOL_ROLES})
PLAIN_ROLES = ROLES.difference(TOOL_ROLES)
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
}
# A turn of ShareGPT's older form has the question and its answer under the names of the speakers.
ASKED = ("user", "human")
ANSWERED = ("assistant", "gpt", "bot")
# What some tools put around a result that the template puts around it, too.
RESULT_OPEN, RESULT_CLOSE = "<tool_response>", "</tool_response>"
UNREAD = "unread"
MEDIA_PARTS = ("image", "image_url", "video", "video_url", "audio", "audio_url")


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
        refuses. For `take_from_turns` they may also have tools (a system turn's) and UNREAD, names of other keys.

    Raises:
        RowError: what stands there is no list of turns, or a turn has a form that is not known.
    """
    turns = _list_of(value, column)
    if all(_is_plain(turn) for turn in turns):
        return turns
    standard: list[Message] = []
    for number, turn in enumerate(turns, start=1):
        standard += _standard(turn, name_turn(number, column))
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
    return role in PLAIN_ROLES or (role in TOOL_ROLES and RESULT_OPEN not in content)


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
        raise RowError("messages", f"{name} has {'no role' if role is None else f'the unknown role {shown(role)}'}")
    name = f"{name} ({known})"
    standard = {"role": known, "content": _content(turn.get("content", turn.get("value")), known, name)}
    if unread := unread_keys(turn, known, name):
        standard[UNREAD] = unread
    if known == "assistant":
        standard |= _said(standard["content"], turn, name)
    if known == "system" and (tools := turn.get("tools") or turn.get("functions")):
        standard["tools"] = tools
    if known not in TOOL_ROLES:
        return [standard | read_weights(turn, known, name)]
    standard |= {key: turn[key] for key in ("name", "tool_call_id") if isinstance(turn.get(key), str)}
    return [standard | {"content": content} for content in _unwrapped(standard["content"])]


def _said(content: Any, turn: Message, name: str) -> Message:
    """What the assistant says: its content, with the thought in front and its calls beside it."""
    calls = _tool_calls(turn, name)
    if refusal := turn.get("refusal"):
        if content or not isinstance(refusal, str):
            raise RowError("format", f"{name} has a refusal beside its content; keep one of them")
        content = refusal
    said = {"content": _with_reasoning(content, turn, bool(calls), name)}
    return said | {"tool_calls": calls} if calls else said


def _unwrapped(content: Any) -> list[Any]:
    """A tool's result without the tags that the template puts around it; several results in one turn are several."""
    if not isinstance(content, str) or RESULT_OPEN not in content:
        return [content]
    text = content.strip()
    if not (text.startswith(RESULT_OPEN) and text.endswith(RESULT_CLOSE)):
        return [content]
    results = [part.partition(RESULT_CLOSE) for part in text.split(RESULT_OPEN)[1:]]
    if not all(end and not rest.strip() for _, end, rest in results):
        return [content]  # tags within a result
    return [result.removeprefix("\n").removesuffix("\n") for result, _, _ in results]


def _pair(turn: Message, name: str) -> list[Message]:
    turns = []
    for role, keys in (("user", ASKED), ("assistant", ANSWERED)):
        key = next((key for key in keys if key in turn), None)
        if key is not None:
            turns.append({"role": role, "content": _content(turn[key], role, f"{name} ({role})")})
    unread = [key for key in unread_keys(turn, "", name) if key not in SPEAKERS]
    if turns and unread:
        turns[-1][UNREAD] = unread
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
            form = f"the type {shown(kind)}" if isinstance(kind, str) else "no type"
            raise RowError("format", f"part {number} of {name} has {form}, not text or one of {', '.join(MEDIA_PARTS)}")
    return "".join(part["text"] for part in parts) if all(part["type"] == "text" for part in parts) else parts


def _with_reasoning(content: Any, turn: Message, calls_tools: bool, name: str) -> Any:
    keys = [key for key in REASONING if turn.get(key)]
    if not keys:
        return content
    if other := next((other for other in keys if turn[other] != turn[keys[0]]), None):
        raise RowError("think", f"{name} has {keys[0]} and {other}, which differ; keep one of them")
    return put_thought(content, turn[keys[0]], keys[0], calls_tools, name)


def put_thought(content: Any, reasoning: Any, key: str, calls_tools: bool, name: str) -> str:
    """A content with the thought of its turn in front; `key` is what holds the thought. Raises RowError."""
    if not isinstance(reasoning, str):
        raise RowError("think", f"{name} has {kind_of(reasoning)} as its {key}, not text")
    if isinstance(content, list):
        raise RowError("think", f"{name} has {key} beside a content of parts")
    if not content and not calls_tools:
        raise RowError("empty", f"{name} has {key} and no content")
    content = content or ""
    if content.startswith(OPEN):
        if content[len(OPEN) :].partition(CLOSE)[0].strip() != reasoning.strip():
            raise RowError("think", f"{name} has another {key} than the think block in its content")
        return content
    return f"{OPEN}\n{reasoning}\n{CLOSE}\n\n{content}"


def _tool_calls(turn: Message, name: str) -> list[Message]:
    calls = turn.get("tool_calls") or [call for call in [turn.get("function_call")] if call]
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
    return calls


def _expand_tool_calls(turns: list[Message]) -> list[Message]:
    """Turns with OpenAI's tool_calls as turns of their own, and the results in the order of the calls."""
    turns, expanded = list(turns), []
    for index, turn in enumerate(turns):
        calls, unread = turn.pop("tool_calls", None), turn.pop(UNREAD, None)
        if calls:
            end = index + 1
            while end < len(turns) and turns[end]["role"] in TOOL_ROLES:
                end += 1
            turns[index + 1 : end] = _in_order_of(calls, turns[index + 1 : end])
        turn.pop("tool_call_id", None)
        if not calls or turn["content"]:
            expanded.append(turn)
        loss = {key: turn[key] for key in ("loss", "loss_scale") if key in turn}
        expanded += [{"role": "tool_call", "content": _call(call), **loss} for call in calls or ()]
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
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        with suppress(RowError):  # what is not JSON stays text
            arguments = parse_json(arguments)
    return {"name": function["name"], "arguments": {} if arguments is None else arguments}


def take_from_turns(turns: list[Message]) -> tuple[Any, list[str]]:
    """What `to_turns` has left in turns beside their own keys, taken out of them: tools, and names of unread keys."""
    tools, unread = None, []
    for turn in turns:
        if len(turn) > 2:
            tools = turn.pop("tools", None) or tools
            unread += turn.pop(UNREAD, ())
    return tools, unread
