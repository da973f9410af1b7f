"""Both views of every sample as token ids: each in its own chat template settings, around the same response tokens."""

from typing import Any

from swift.rlhf_trainers.gkd_helpers import build_teacher_requests
from swift.rlhf_trainers.utils import get_response_prefix_ids, replace_assistant_response_with_ids

from swift_kd_plugin.errors import KDError
from swift_kd_plugin.host.sample import KDSample

Encoded = dict[str, Any]


def encode_views(samples: list[KDSample], template) -> tuple[list[Encoded], list[Encoded] | None]:
    """Encodes the samples of a micro-batch, to be collated by `template.data_collator`.

    Args:
        samples: with responses of the dataset, or with `response_token_ids` that were sampled.
        template: ms-swift's, in training mode.

    Returns:
        The student's views, and the teacher's; the latter are None if no sample has one of its own. In a mixed batch a
        sample without one has the student's.

    Raises:
        KDError: a sample has no response, or sampled ones in several turns beside a teacher's view of its own.
    """
    own = [sample.build_teacher_view() for sample in samples]
    student = [_encode(sample, sample.to_template_dict(), template) for sample in samples]
    if not any(own):
        return student, None
    teacher = [
        _encode_for_teacher(sample, template) if has_view else dict(view)
        for sample, view, has_view in zip(samples, student, own, strict=True)
    ]
    return student, teacher


def teacher_requests(samples: list[KDSample], template) -> list:
    """Requests to a teacher's server, which score the samples in the teacher's view."""
    requests = build_teacher_requests(samples, template)
    for sample, request in zip(samples, requests, strict=True):
        if sample.teacher_tools is not None:
            request.tools = sample.teacher_tools
        if sample.teacher_chat_template_kwargs is not None:
            request.chat_template_kwargs = sample.teacher_chat_template_kwargs
    return requests


def _encode_for_teacher(sample: KDSample, template) -> Encoded:
    ids = sample.response_token_ids
    if sample.teacher_view is not None and ids and not isinstance(ids[0], int) and len(ids) > 1:
        raise KDError(
            f"{sample.name} has {len(ids)} sampled turns, and teacher_messages give the teacher another history around "
            "the last one only; use a single-turn rollout, or leave teacher_messages out."
        )
    return _encode(sample, sample.to_teacher_template_dict(), template)


def _encode(sample: KDSample, row: dict[str, Any], template) -> Encoded:
    if sample.response_token_ids:
        row.pop("response_token_ids", None)
        row["messages"] = replace_assistant_response_with_ids(
            [dict(message) for message in row["messages"]],
            sample.response_token_ids,
            sample.response_loss_mask or None,
            _context_of_response(sample, template),
        )
    encoded = template.encode(row, return_length=True)
    encoded.pop("_extra_kwargs", None)
    return encoded


def _context_of_response(sample: KDSample, template) -> list[int] | None:
    """The ids between the assistant's header and the sampled ids, in both views the student's.

    They are what the response was sampled behind, such as the empty think block of a mode without thinking, and are not
    trained. A teacher's own mode has no say in them: its block would stand beside the one that the response brings
    along, or the end of a think block would be missing.
    """
    kwargs = sample.extra.get("chat_template_kwargs") or {}
    return get_response_prefix_ids(template, chat_template_kwargs=kwargs)
