"""The think block of a response: what the teacher reads in its place, and what weight its tokens have in the loss.

ms-swift joins consecutive assistant turns to one whose parts keep a `loss` of their own, and puts the template's empty
think block in front of a first part that has none: so a response is given as two turns, its think block and its answer.
Fractional weights are put in after the encoding, as ms-swift drops them where its loss_scale class knows only 0 and 1.
"""

from functools import lru_cache
from typing import Any, Literal

from swift.rlhf_trainers.utils import get_response_prefix_ids, replace_assistant_response_with_ids

from swift_kd_plugin.data.rows import Message, text_of
from swift_kd_plugin.data.think_block import CLOSE, EMPTY, OPEN, join_thought
from swift_kd_plugin.errors import KDError
from swift_kd_plugin.host.samples.response_labels import IGNORED, loss_scale_of, trained_tokens
from swift_kd_plugin.host.samples.sample import KDSample

Encoded = dict[str, Any]
Trained = Literal["all", "answer", "block"]

RESPONSE_ROLES = ("assistant", "tool_call")


def block_weight(sample: KDSample) -> float:
    """Weight of the think block of the sample's present response; 0 where the teacher reads another block."""
    if sample.teacher_thought is not None and not sample.response_token_ids:
        return 0.0
    return 1.0 if sample.think_loss is None else sample.think_loss


def check_template(sample: KDSample, template) -> None:
    """Raises KDError if the template has think blocks that this module does not know, or takes no response in parts."""
    meta = template.template_meta
    if meta.non_thinking_prefix and CLOSE not in meta.non_thinking_prefix:
        reason = f"marks thoughts otherwise than with {OPEN} and {CLOSE}"
    elif not sample.response_token_ids and not _takes_parts(template):
        reason = "cannot take the think block apart from the answer"
    else:
        return
    raise KDError(
        f"{sample.name} has teacher_thought or think_loss, but the template {meta.template_type} "
        f"({template.template_backend}) {reason}; leave these columns out."
    )


def written_turns(
    sample: KDSample, messages: list[Message], template, thought: str | None, trained: Trained
) -> list[Message]:
    """Turns whose response comes from the dataset, with only a part of it trained.

    Args:
        messages: one view's turns with the response.
        thought: what stands in the response's think block in place of its own, or None.
        trained: the whole response (which is then left as it is), its answer, or its think block.
    """
    start = len(messages)
    while start and messages[start - 1]["role"] in RESPONSE_ROLES:
        start -= 1
    if trained == "all" or start == len(messages):
        return messages
    first, rest = messages[start], messages[start:]
    block = ""
    if first["role"] == "assistant":
        block, answer = _split(_text_of(sample, first.get("content") or ""), template)
        rest = [{**first, "content": answer}, *messages[start + 1 :]]
    if not block and not thought and not template.template_meta.non_thinking_prefix:
        return messages
    if thought is not None:
        block = _block_of(thought, template)
    loss_keys = {key: first.get(key) for key in ("loss", "loss_scale")} if trained == "block" else {"loss": False}
    if trained == "block":
        rest = [{**message, "loss": False} for message in rest]
    return [*messages[:start], {"role": "assistant", "content": block, **loss_keys}, *rest]


def sampled_turns(
    sample: KDSample, messages: list[Message], template, thought: str | None, trained: Trained
) -> list[Message]:
    """Turns with the sampled ids as response, behind what they were sampled behind; arguments as in `written_turns`.

    The ids in front of the response, such as the empty think block of a mode without thinking, are not trained. In both
    views they are the student's: a teacher's own mode has no say in them, as its block would stand beside the one that
    the response brings along, or the end of a think block would be missing. Only a thought takes the place of an empty
    block, and only of a closed one: a response that thinks by itself is scored as it is.

    Raises:
        KDError: there are several sampled turns, or the tokenizer has no token that ends the block.
    """
    kwargs = sample.extra.get("chat_template_kwargs") or {}
    prefix = get_response_prefix_ids(template, chat_template_kwargs=kwargs)
    ids, mask = sample.response_token_ids, sample.response_loss_mask or None
    if trained != "all" or thought:
        ids, mask = _only_turn(sample)
        before = template.tokenizer.decode(prefix) if prefix else ""
        count = 0 if trained == "all" else _count_block(sample, ids, before, template)
        if trained == "answer":
            mask = [0] * count + mask[count:]
        elif trained == "block":
            mask = mask[:count] + [0] * (len(ids) - count)
        if thought and _is_bare(ids, before, template):
            ids, mask = _without_prefix(ids, mask, prefix or [])
            behind = before.partition(CLOSE)[2].lstrip("\n") if CLOSE in before else before
            block = _block_of(thought, template)
            prefix = template.tokenizer.encode(block + behind, add_special_tokens=False) if block else prefix
    return replace_assistant_response_with_ids([dict(message) for message in messages], ids, mask, prefix)


def train_block(view: Encoded, block: Encoded, weight: float) -> None:
    """Adds to a view that is trained on the answer, in place, the think block of its twin, times `weight`."""
    scale, of_block = loss_scale_of(view), loss_scale_of(block)
    added = False
    for position, label in enumerate(block["labels"]):
        if label != IGNORED and view["labels"][position] == IGNORED:
            view["labels"][position], scale[position] = label, weight * of_block[position]
            added = True
    if added:
        view["loss_scale"] = scale


def complete_scales(views: list[Encoded]) -> None:
    """Gives every view a loss_scale, in place, if one has it: a micro-batch is collated with all or none."""
    if any(view.get("loss_scale") is not None for view in views):
        for view in views:
            view["loss_scale"] = loss_scale_of(view)


def refuse_stock_loss(samples: list[KDSample], server: bool) -> None:
    """Raises KDError for what ms-swift's own loss would ignore: weights, and thoughts for a teacher behind a server."""
    for sample in samples:
        if 0 < block_weight(sample) < 1:
            raise KDError(
                f"{sample.name} has think_loss {sample.think_loss}, and ms-swift's own loss has no weights; "
                "give 0 or 1, or drop --kd_divergence stock."
            )
        if any(turn.get("loss_scale") not in (None, 0, 1) for turn in sample.messages):
            raise KDError(
                f"{sample.name} has a turn with a loss_scale, and ms-swift's own loss has no weights; give 0 or 1, or "
                "drop --kd_divergence stock."
            )
        if server and sample.teacher_thought is not None:
            raise KDError(
                f"{sample.name} has a teacher_thought, which ms-swift's own loss does not send to a teacher server; "
                "drop --kd_divergence stock."
            )


def _text_of(sample: KDSample, content: Any) -> str:
    if isinstance(content, list) and any(part.get("type") != "text" for part in content):
        raise KDError(
            f"{sample.name} has teacher_thought or think_loss, but a response that is not text alone; its think block "
            "cannot be told; leave these columns out."
        )
    return text_of(content)


def _split(text: str, template) -> tuple[str, str]:
    """A response as its think block, with the newlines after it, and its answer. An unfinished thought is all block.

    Newlines in front of an answer without a block go with the block that the template adds: it ends with newlines, and
    together they are one token.
    """
    _, end, answer = text.partition(CLOSE)
    if not end:
        if text.startswith(OPEN):
            return text, ""
        answer = text
        if not template.template_meta.non_thinking_prefix:
            return "", text
    answer = answer.lstrip("\n")
    return text[: len(text) - len(answer)], answer


def _block_of(thought: str, template) -> str:
    """The think block that holds a thought, '' for an empty one: there the template adds its own, if it has one."""
    thought = thought.strip("\n")
    if not thought.strip():
        return ""
    before, end, after = (template.template_meta.non_thinking_prefix or EMPTY).partition(CLOSE)
    newlines = before.removeprefix(OPEN)
    half = len(newlines) // 2
    return OPEN + newlines[:half] + thought + newlines[half:] + end + after


@lru_cache(maxsize=8)
def _takes_parts(template) -> bool:
    """Whether the template makes the same text of a response in parts as of a whole one, and masks a part of it."""

    def encode(*parts: Message) -> Encoded:
        turns = [{"role": "assistant", **part} for part in parts]
        return template.encode({"messages": [{"role": "user", "content": "1"}, *turns]})

    fewer = False
    for block in ("", join_thought("2", "")):
        whole = encode({"content": block + "3"})
        try:
            parts = encode({"content": block, "loss": False}, {"content": "3"})
        except TypeError:  # its own code takes the content for a text
            return False
        if template.tokenizer.decode(whole["input_ids"]) != template.tokenizer.decode(parts["input_ids"]):
            return False
        fewer = len(trained_tokens(parts["labels"])) < len(trained_tokens(whole["labels"]))
    return fewer


def _only_turn(sample: KDSample) -> tuple[list[int], list[int]]:
    """The sampled ids and their mask."""
    turns, mask = sample.turns_of_ids, sample.response_loss_mask
    if len(turns) > 1:
        raise KDError(
            f"{sample.name} has {len(turns)} sampled turns, and teacher_thought and think_loss are for a response of "
            "one turn; use a single-turn rollout, or leave these columns out."
        )
    (ids,) = turns
    if mask and not isinstance(mask[0], int):
        mask = mask[0]
    return list(ids), list(mask or [1] * len(ids))


def _count_block(sample: KDSample, ids: list[int], before: str, template) -> int:
    """How many of the sampled ids are their think block, with the newlines after it; all of an unfinished thought."""
    tokenizer = template.tokenizer
    if CLOSE in before:
        return 0
    end = tokenizer.convert_tokens_to_ids(CLOSE)
    opened = OPEN in before or OPEN in tokenizer.decode(ids)
    if end is None or end == tokenizer.unk_token_id:
        if opened or CLOSE in tokenizer.decode(ids):
            raise KDError(
                f"{sample.name} has think_loss {sample.think_loss}, but the tokenizer has no token {CLOSE} by which "
                "the think block of a sampled response could be found; leave the column out."
            )
        return 0
    if end not in ids:
        return len(ids) if opened else 0
    count = ids.index(end) + 1
    return count + count_newlines(ids[count:], tokenizer)


def count_newlines(ids: list[int], tokenizer) -> int:
    """How many ids at the start are newlines and nothing else."""
    return next((n for n, token in enumerate(ids) if set(tokenizer.decode([token])) != {"\n"}), len(ids))


def _is_bare(ids: list[int], before: str, template) -> bool:
    """Whether the sampled ids are an answer without a thought of its own."""
    if CLOSE in before:
        return True
    meta = template.template_meta
    thinks = meta.is_thinking or meta.thinking_prefix or meta.non_thinking_prefix
    return not thinks and OPEN not in before and CLOSE not in template.tokenizer.decode(ids)


def _without_prefix(ids: list[int], mask: list[int], prefix: list[int]) -> tuple[list[int], list[int]]:
    """The sampled ids without the student's prefix, where the rollout has put it among them."""
    count = len(prefix)
    if count and ids[:count] == prefix and not any(mask[:count]):
        return ids[count:], mask[count:]
    return ids, mask
