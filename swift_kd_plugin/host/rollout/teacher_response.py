"""A response that the teacher writes: asked for in the teacher's view, and made the one that both views share."""

import copy

from swift.rlhf_trainers.utils import get_response_prefix_ids

from swift_kd_plugin.data.columns import TEACHER_COLUMNS
from swift_kd_plugin.data.think_block import CLOSE, OPEN
from swift_kd_plugin.data.turn_keys import new_weights
from swift_kd_plugin.host.samples.sample import KDSample
from swift_kd_plugin.host.samples.think_tokens import count_newlines

KWARGS = "chat_template_kwargs"


def ask_teacher(sample: KDSample) -> KDSample:
    """A sample without a response whose only view is what the teacher sees of `sample`."""
    teacher_sample = copy.copy(sample)
    teacher_sample.messages = sample.teacher_prompt_messages()
    teacher_sample.extra = dict(sample.extra)
    teacher_sample.response_token_ids, teacher_sample.response_loss_mask = [], []
    teacher_sample.teacher_view = teacher_sample.teacher_prompt = None
    for name in TEACHER_COLUMNS:
        setattr(teacher_sample, name, None)
    for name, value in sample.teachers_own().items():
        if hasattr(teacher_sample, name):
            setattr(teacher_sample, name, value)
        else:
            teacher_sample.extra[name] = value
    return teacher_sample


def take_teacher_response(sample: KDSample, answer: KDSample, template) -> KDSample:
    """A copy of `sample` whose response is what the teacher wrote.

    Where the modes of the two views differ, a thought goes to the teacher's view alone (as the column
    `teacher_thought`), and the empty think block of a teacher that does not think goes in front of the answer. A
    thought that met the length limit before an answer began leaves nothing to learn: the sample has no loss then.
    """
    (ids,) = answer.turns_of_ids
    student = _prefix(sample, template)
    teacher = _prefix(answer, template)
    decode = template.tokenizer.decode
    thought, mask = None, [1] * len(ids)
    if CLOSE in decode(student) and CLOSE not in decode(teacher):
        thought, count = _split_thought(teacher, ids, template.tokenizer)
        ids, mask = ids[count:], mask[count:]
    elif CLOSE in decode(teacher) and CLOSE not in decode(student):
        before = teacher[len(student) :] if teacher[: len(student)] == student else teacher
        ids, mask = [*before, *ids], [0] * len(before) + mask
    content = answer.messages[-1]["content"] if thought is None else decode(ids, skip_special_tokens=True)
    taken = copy.copy(sample)
    weights = new_weights(sample.response_turns)
    taken.messages = [*sample.prompt_turns, {"role": "assistant", "content": content, **weights}]
    taken.finish_reason, taken.add_eos = answer.finish_reason, False
    taken.response_token_ids, taken.response_loss_mask = [list(ids)], [mask]
    taken.teacher_thought = sample.teacher_thought if thought is None else thought
    taken.left_out = not ids
    return taken


def _prefix(sample: KDSample, template) -> list[int]:
    """What the template puts between prompt and response: an empty think block, the start of one, or nothing."""
    return get_response_prefix_ids(template, chat_template_kwargs=sample.extra.get(KWARGS) or {}) or []


def _split_thought(prefix: list[int], ids: list[int], tokenizer) -> tuple[str | None, int]:
    """A thinking teacher's thought, and how many of the sampled ids it takes; None and 0 where there is none."""
    end = tokenizer.convert_tokens_to_ids(CLOSE)
    if end not in ids:
        opened = OPEN in tokenizer.decode([*prefix, *ids])
        return ("", len(ids)) if opened else (None, 0)
    count = ids.index(end)
    thought = tokenizer.decode([*prefix, *ids[:count]]).partition(OPEN)[2]
    return thought.strip("\n"), count + 1 + count_newlines(ids[count + 1 :], tokenizer)
