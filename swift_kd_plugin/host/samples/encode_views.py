"""Both views of every sample as token ids: each in its own chat template settings, around the same response tokens."""

from typing import Any

from swift.rlhf_trainers.gkd_helpers import build_teacher_requests

from swift_kd_plugin.data.media_errors import say_why
from swift_kd_plugin.errors import KDError
from swift_kd_plugin.generation.tool_text import say_other_tool_text
from swift_kd_plugin.host.samples.message_weights import encode_weighted, has_weights, refuse_weights_of_jinja
from swift_kd_plugin.host.samples.sample import KDSample
from swift_kd_plugin.host.samples.think_tokens import (
    Encoded,
    block_weight,
    check_template,
    complete_scales,
    sampled_turns,
    train_block,
    written_turns,
)


class EncodingError(KDError):
    """A sample that the template cannot encode.

    Args:
        what: the sentence without what to do.
    """

    def __init__(self, sample: KDSample, error: Exception):
        self.what = f"{sample.name} cannot be encoded: {say_why(error, vars(sample))}"
        super().__init__(f"{self.what}; mend the row.")


def encode_views(samples: list[KDSample], template) -> tuple[list[Encoded], list[Encoded] | None]:
    """Encodes the samples of a micro-batch, to be collated by `template.data_collator`.

    Args:
        samples: with responses of the dataset, or with `response_token_ids` that were sampled.
        template: ms-swift's, in training mode.

    Returns:
        The student's views, and the teacher's; the latter are None if no sample has one of its own. In a mixed batch a
        sample without one has the student's.

    Raises:
        KDError: a sample has no response, or sampled ones in several turns beside a teacher's view of its own, or a
            think block that cannot be told from its answer although it has a weight or another one for the teacher.
    """
    view_flags = [sample.build_teacher_view() for sample in samples]
    student = [_encode(sample, sample.to_template_dict(), template) for sample in samples]
    complete_scales(student)
    if not any(view_flags):
        return student, None
    teacher = [
        _encode_for_teacher(sample, template) if has_view else _copy(view)
        for sample, view, has_view in zip(samples, student, view_flags, strict=True)
    ]
    complete_scales(teacher)
    return student, teacher


def teacher_requests(samples: list[KDSample], template) -> list:
    """Requests to a teacher's server, which score the samples in the teacher's view."""
    requests = build_teacher_requests(samples, template)
    for sample, request in zip(samples, requests, strict=True):
        for name, value in sample.teachers_own().items():
            if name != "images":  # stock has put them there, in the form of a request
                setattr(request, name, value)
    return requests


def _copy(view: Encoded) -> Encoded:
    """With lists of its own: under context parallelism ms-swift's collator pads them in place."""
    return {key: list(value) if isinstance(value, list) else value for key, value in view.items()}


def _encode_for_teacher(sample: KDSample, template) -> Encoded:
    turns = sample.turns_of_ids
    if sample.teacher_view is not None and len(turns) > 1:
        raise KDError(
            f"{sample.name} has {len(turns)} sampled turns, and teacher_messages give the teacher another history "
            "around the last one only; use a single-turn rollout, or leave teacher_messages out."
        )
    return _encode(sample, sample.to_teacher_template_dict(), template, sample.teacher_thought)


def _encode(sample: KDSample, row: dict[str, Any], template, thought: str | None = None) -> Encoded:
    """Encodes one view; `thought` is what the response's think block holds in it in place of its own."""
    row.pop("response_token_ids", None)
    turns = sampled_turns if sample.response_token_ids else written_turns
    if row.get("tools"):
        say_other_tool_text(template)
    weighted = has_weights(row["messages"])
    if weighted:
        refuse_weights_of_jinja(sample, template)

    def encode(trained: str) -> Encoded:
        messages = turns(sample, row["messages"], template, thought, trained)
        made = {**row, "messages": messages}
        try:
            encoded = encode_weighted(made, template) if weighted else template.encode(made, return_length=True)
        except Exception as error:  # of any kind, as each template and each reader of media has its own
            raise EncodingError(sample, error) from error
        encoded.pop("_extra_kwargs", None)
        return encoded

    weight = block_weight(sample)
    if weight < 1 or thought is not None:
        check_template(sample, template)
    if weight == 1:
        return encode("all")
    view = encode("answer")
    if weight > 0:
        train_block(view, encode("block"), weight)
    return view
