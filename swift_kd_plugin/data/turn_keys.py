"""What the keys of a turn mean beside its role and content; who writes each stands in the table.

A key with a value that is in no set here is not read: its row is used, and the report counts it by name.
"""

from functools import cache
from math import isfinite
from typing import Any

from swift_kd_plugin.data.near_names import one_slip, plain_name
from swift_kd_plugin.data.rows import Message, RowError
from swift_kd_plugin.data.values import shown

# The thought of an assistant turn: Qwen, DeepSeek and vLLM; OpenRouter; gpt-oss and Ollama; others.
REASONING = ("reasoning_content", "reasoning", "thinking", "thought", "thoughts", "reasoning_text")
# What may hold one, in a form that is not known here.
LIKE_REASONING = frozenset(
    {
        *("cot", "chain_of_thought", "think", "rationale", "reasoning_trace", "reasoning_details", "thinking_blocks"),
        *("scratchpad", "analysis", "reasoning_steps"),
    }
)
# Whether the turn is trained, or how much: OpenAI and Mistral; axolotl; slime; others. 0 is off, 1 is on.
TRAINED = (
    *("weight", "loss_weight", "train", "training", "trainable", "do_train", "is_trainable", "need_loss"),
    *("loss_mask", "step_loss_mask"),
)
MASKED = ("masked",)  # torchtune, where true is off
TURNED_OFF = "its answer is turned off (weight 0, loss false, loss_scale 0, masked true or another key of its turn)"
WEIGHTS = frozenset({"loss", "loss_scale", *TRAINED, *MASKED})
SPEAKERS = frozenset({"user", "human", "assistant", "gpt", "bot"})
BY_ROLE = {
    "system": frozenset({"tools", "functions"}),
    "assistant": frozenset({*REASONING, "tool_calls", "function_call", "refusal", *WEIGHTS}),
    "tool_call": WEIGHTS,
    "tool": frozenset({"tool_call_id"}),
    "tool_response": frozenset({"tool_call_id"}),
}
# What would change the training and is not known here.
REFUSED = {
    "mask": "says not whether 1 is trained; call it weight (1 is trained) or masked (true is not)",
    "train_detail": "trains parts of a turn, which is not supported; give the turn a weight",
    "training_detail": "trains parts of a turn, which is not supported; give the turn a weight",
    **dict.fromkeys(
        ("image", "images", "video", "videos", "audio", "audios"),
        "is a medium; give it as a part of the turn's content, or in a column of the row",
    ),
}
# Of no meaning for the training: names and ids, times, where a turn comes from, what was measured of it.
MEANINGLESS = frozenset(
    {
        *("role", "from", "content", "value", "name", "id", "uuid", "message_id", "turn_id", "parent_id", "index"),
        *("tool_call_id", "call_id", "conversation_id", "turn", "turn_identifier", "turn_index", "position", "rank"),
        *("timestamp", "time", "date", "created", "created_at", "create_time", "updated_at", "update_time"),
        *("source", "model", "model_name", "provider", "author", "user_id", "speaker", "status", "type", "object"),
        *("usage", "token_count", "num_tokens", "length", "cost", "score", "rating", "quality", "finish_reason"),
        *("stop_reason", "logprobs", "language", "lang", "country", "state", "header", "hashed_ip", "toxic"),
        *("redacted", "annotations", "metadata", "meta", "markdown", "emojis", "cache_control", "prefix", "partial"),
    }
)
READ = {role: MEANINGLESS | keys for role, keys in BY_ROLE.items()}


def read_weights(turn: Message, role: str, name: str) -> Message:
    """`loss` and `loss_scale` of a turn of the assistant, whatever its keys are called. Raises RowError."""
    if WEIGHTS.isdisjoint(turn) or role not in ("assistant", "tool_call"):
        return {}
    keys = turn.keys() & WEIGHTS
    given = {key: _weight(turn[key], key, name) for key in sorted(keys)}
    scale = given.pop("loss_scale", None)
    meant = {key: float(not weight) if key in MASKED else weight for key, weight in given.items()}
    if "loss" in meant and meant["loss"] not in (0, 1):
        raise RowError("format", f"{name} has the loss {shown(turn['loss'])}, not true or false; call it loss_scale")
    factors = {weight for weight in meant.values() if weight not in (0, 1)} | ({scale} if scale is not None else set())
    if len({bool(weight) for weight in meant.values()}) > 1 or len(factors) > 1:
        raise RowError("format", f"{name} has {' and '.join(given)}, which say different things; keep one of them")
    weights: Message = {"loss": all(meant.values())} if meant else {}
    return weights | ({"loss_scale": factors.pop()} if factors else {})


def weights_of(turn: Message) -> Message:
    """The keys of a turn that say what it counts."""
    return {key: turn[key] for key in ("loss", "loss_scale") if key in turn}


def new_weights(response: list[Message]) -> Message:
    """What a response counts that is written in the place of this one, whose being off says nothing of another."""
    scale = response[0].get("loss_scale") if response else None
    return {"loss_scale": scale} if scale and not is_off(response[0]) else {}


def is_off(turn: Message) -> bool:
    """Whether nothing of a turn is trained under any strategy."""
    return turn.get("loss") is False or turn.get("loss_scale") == 0


def _weight(value: Any, key: str, name: str) -> float:
    if not isinstance(value, (bool, int, float)) or not isfinite(value) or value < 0:
        raise RowError("format", f"{name} has the {key} {shown(value)}, which is no number of at least 0")
    return value


def unread_keys(turn: Message, role: str, name: str) -> list[str]:
    """Keys of a turn that say something and are not read. Raises RowError for one that is refused."""
    known = READ.get(role, MEANINGLESS)
    if known.issuperset(turn):
        return []
    unread = []
    for key, value in turn.items():
        if key in known or _says_nothing(key, value):
            continue
        if key in REFUSED:
            raise RowError("format", f"{name} has the key {key!r}, which {REFUSED[key]}")
        if near := _nearest_key(key, role):
            raise RowError(
                "format", f"{name} has the key {key!r}, which is not known (did you mean {near!r}?); rename it"
            )
        unread.append(key)
    return unread


def what_is_lost_with(key: str) -> str:
    """What the report says of a key that is not read."""
    if key.lower() in LIKE_REASONING:
        return f"if it is the thought of the answer, give its text as {REASONING[0]}; the row is used without it"
    return "the row is used without it"


@cache
def _nearest_key(key: str, role: str) -> str | None:
    """The key with a meaning that is meant, where a letter is wrong, too much or missing, or two are exchanged."""
    plain = plain_name(key)
    known = sorted(BY_ROLE.get(role, ()))
    return plain if plain in known else next((name for name in known if one_slip(plain, name)), None)


def _says_nothing(key: str, value: Any) -> bool:
    """No value; and a weight that leaves a turn out that is never trained."""
    if key in MASKED:
        return value is not False
    return value is None or value in ("", [], {}) or (value in (0, False) if key in WEIGHTS else False)
