"""Which response every token of a micro-batch belongs to, and what is known of that response."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import torch
from mcore_bridge import split_cp_inputs
from swift.megatron.utils import get_packed_seq_params
from torch import Tensor

from swift_kd_plugin.data.rows import split_response
from swift_kd_plugin.data.think_block import NON_THINKING, THINKING, has_thought, mode_of
from swift_kd_plugin.host.samples.response_labels import IGNORED, loss_scale_of, trained_tokens
from swift_kd_plugin.losses.policies import position_weights

SOURCES = ("dataset", "student", "teacher")
RESPONSE_MODES = (THINKING, NON_THINKING)


@dataclass(frozen=True)
class Responses:
    """The responses of a micro-batch.

    Args:
        index: response of each position [b, s], -1 for padding.
        number: which of the micro-batch's response tokens a position predicts, counted in sample order; -1 for none.
        source: who wrote each response, an index of `SOURCES` [n].
        thinking: whether it thinks, an index of `RESPONSE_MODES` [n].
        ce: whether it has a cross-entropy, bool [n].
        dropped: whether it was left out because its two views differ, bool [n].
        length: its number of tokens, trained on or not [n].
        truncated: whether it was written and met the length limit, bool [n].
        counted: whether it is more than what fills a batch, bool [n].
    """

    index: Tensor
    number: Tensor
    source: Tensor
    thinking: Tensor
    ce: Tensor
    dropped: Tensor
    length: Tensor
    truncated: Tensor
    counted: Tensor

    def to(self, device) -> "Responses":
        return Responses(*(getattr(self, field.name).to(device) for field in fields(self)))

    def on_this_rank(self, args, batch: dict) -> "Responses":
        """The positions that context parallelism leaves on this rank."""
        index, number = cut_for_context_rank(args, batch, torch.stack([self.index, self.number]))
        return replace(self, index=index, number=number)


def number_tokens(labels: Tensor) -> Tensor:
    """Counts a collated micro-batch's response tokens in sample order: [b, s] -> [b, s].

    Position p of the result says which response token is predicted there, the label of p + 1; -1 where none is.
    """
    predicts = torch.roll(labels, -1, dims=-1) != IGNORED
    return torch.where(predicts, predicts.flatten().cumsum(0).view_as(labels) - 1, -1)


def cut_for_context_rank(args, batch: dict, positions: Tensor) -> Tensor:
    """What is left of `positions` [..., b, s] on this context-parallel rank, cut as ms-swift cuts a batch's labels."""
    if args.context_parallel_size == 1:
        return positions
    lengths = None
    if args.padding_free:
        position_ids = batch.get("text_position_ids")
        position_ids = batch["position_ids"] if position_ids is None else position_ids
        lengths = get_packed_seq_params(args, position_ids).cu_seqlens_q
    kwargs = {"cp_partition_mode": "contiguous"} if args.cp_partition_mode == "contiguous" else {}
    return split_cp_inputs(positions, lengths, -1, **kwargs)


def numbers_on_this_rank(args, batch: dict) -> Tensor:
    """`number_tokens` of a collated micro-batch, of the positions that context parallelism leaves on this rank."""
    return cut_for_context_rank(args, batch, number_tokens(batch["labels"]))


def describe_responses(
    samples, encoded: list[dict], labels: Tensor, ce_column: str | None = None, dropped: Sequence = ()
) -> Responses:
    """Reads a collated micro-batch.

    Args:
        samples: its samples, in order.
        encoded: the samples' encodings after collation, each as long as its part of the batch.
        labels: of the batch: [samples, length], or [1, total] where the samples lie in one row.
        ce_column: column that chooses the samples with a cross-entropy, or None for all.
        dropped: indices of the samples that were left out.
    """
    numbers, shape = torch.arange(len(samples)), labels.shape
    if len(samples) > 1 and shape[0] == len(samples):
        index = numbers[:, None].expand(shape)
    else:
        flat = numbers.repeat_interleave(torch.tensor([len(view["labels"]) for view in encoded]))
        index = torch.nn.functional.pad(flat, (0, shape[1] - len(flat)), value=-1)[None]
    return Responses(
        index,
        number_tokens(labels),
        source=torch.tensor([SOURCES.index(sample.written_by) for sample in samples]),
        thinking=torch.tensor([RESPONSE_MODES.index(THINKING if thinks(one) else NON_THINKING) for one in samples]),
        ce=torch.tensor([has_ce(sample, ce_column) for sample in samples]),
        dropped=torch.tensor([number in dropped for number in range(len(samples))]),
        length=torch.tensor(
            [
                len(sample.written_ids) or len(trained_tokens(view["labels"]))
                for sample, view in zip(samples, encoded, strict=True)
            ]
        ),
        truncated=torch.tensor([sample.written_by != "dataset" and sample.is_truncated for sample in samples]),
        counted=torch.tensor([not sample.fills_batch for sample in samples]),
    )


def has_ce(sample, ce_column: str | None) -> bool:
    """Whether a response has a cross-entropy: one of the dataset or the teacher, in the rows that a column chooses."""
    return sample.written_by != "student" and (ce_column is None or bool(sample.extra.get(ce_column)))


def leave_out(samples, views: list[dict]) -> None:
    """Takes the labels of the samples that are left out from their views, in place."""
    for sample, view in zip(samples, views, strict=True):
        if sample.left_out:
            view["labels"] = [IGNORED] * len(view["labels"])


def weigh_positions(encoded: list[dict], final: float) -> None:
    """Multiplies each response's loss_scale, in place, by weights from 1 at its first to `final` at its last token."""
    for view in encoded:
        trained = [position for position, label in enumerate(view["labels"]) if label != IGNORED]
        scale = loss_scale_of(view)
        for position, weight in zip(trained, position_weights(len(trained), final), strict=True):
            scale[position] *= weight
        view["loss_scale"] = scale


def thinks(sample) -> bool:
    """Whether a response was written in thinking mode: as its row says, else if its think block is not empty."""
    if mode := mode_of(sample.extra.get("chat_template_kwargs")):
        return mode == THINKING
    response = split_response(sample.messages)[1]
    content = response[0]["content"] if response else None
    return isinstance(content, str) and has_thought(content)
