"""What a teacher says about response tokens: one row per token, sample after sample, wherever the token lies.

n tokens, H hidden size, K entries of a top-k teacher, v this rank's columns of the vocabulary.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar, Self

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from swift_kd_plugin.losses.lm_head import LMHead
from swift_kd_plugin.losses.request import Teacher, TopK
from swift_kd_plugin.losses.shards import VocabShard, all_gather
from swift_kd_plugin.losses.topk import teacher_topk

HALF = 2  # bytes of bf16
TOPK_ENTRY = 4 + 8  # fp32 log-probability and int64 id


@dataclass(frozen=True)
class TokenRows:
    """Rows about n response tokens.

    Args:
        rows: [n, ...] each.
        token_ids: the tokens that the rows predict [n].
    """

    by_columns: ClassVar[bool] = False
    """Each rank of a tensor-parallel group has its own columns; otherwise the rows are the same on all."""

    rows: tuple[Tensor, ...]
    token_ids: Tensor

    def __len__(self) -> int:
        return len(self.token_ids)

    def map(self, change: Callable[[Tensor], Tensor]) -> Self:
        """The same with `change` applied to rows and token ids."""
        return replace(self, rows=tuple(map(change, self.rows)), token_ids=change(self.token_ids))

    def exchange(self, numbers: Tensor, wanted: Tensor, group: ProcessGroup | None) -> Self:
        """Hands rows from the ranks that made them to the ranks whose tokens they speak of.

        Args:
            numbers: which response token of the micro-batch, counted in sample order, each row here belongs to [n].
            wanted: the numbers of the tokens that this rank needs, in its own order.
            group: context-parallel group, over whose ranks the numbers are spread, or None.
        """
        everyone = gather_uneven(numbers, group)
        place = torch.empty_like(everyone)
        place[everyone] = torch.arange(len(everyone), device=everyone.device)
        return self.map(lambda rows: gather_uneven(rows, group)[place[wanted]])

    def put_away(self) -> Self:
        """The same without what can be made again."""
        return self

    def made_ready(self) -> Self:
        """What was put away, with all that the losses take."""
        return self

    def store(self, group: ProcessGroup | None, pinned: bool) -> "StoredOutputs":
        """Keeps this rank's block of the rows.

        Args:
            group: tensor-parallel group or None.
            pinned: in page-locked CPU memory instead of on the device.
        """
        outputs, total = self.put_away(), len(self)
        if self.by_columns:
            group = None
        if group is not None:
            size = -(-total // torch.distributed.get_world_size(group))
            start = size * torch.distributed.get_rank(group)
            outputs = outputs.map(lambda rows: _padded(rows[start : start + size], size).clone())
        stored = StoredOutputs(outputs, total, group)
        return stored.pinned() if pinned else stored


@dataclass(frozen=True)
class FeatureRows(TokenRows):
    """What comes out of an inner layer, rows ([n, H],); the token ids are the numbers of the response tokens."""


@dataclass(frozen=True)
class TeacherOutputs(TokenRows, ABC):
    """A teacher's rows for n response tokens, in one of the forms below."""

    name: ClassVar[str]
    title: ClassVar[str]
    """As the log says it."""
    needs_lm_head: ClassVar[bool] = False
    """The loss takes the teacher's output layer, which must be on the device then."""
    metric_names: ClassVar[tuple[str, ...]] = ()
    """What the losses measure of this form alone."""

    @property
    def columns(self) -> int | None:
        """This rank's columns of the teacher's logits; None where there are none."""
        return self.as_teacher().shape[1]

    @abstractmethod
    def as_teacher(self) -> Teacher:
        """In the form that the losses take."""

    def best_ids(self, rows: Tensor, k: int, shard: VocabShard) -> Tensor:
        """The teacher's most probable global ids of some rows, [len(rows), k] or as many as there are."""
        return teacher_topk(self.as_teacher()[rows], k, shard)[1]

    @staticmethod
    @abstractmethod
    def bytes_per_token(hidden: int, vocabulary: int, topk: int) -> int:
        """What one token takes over all ranks, for a teacher of these sizes in bf16."""


@dataclass(frozen=True)
class HiddenOutputs(TeacherOutputs):
    """What goes into the output layer, rows ([n, H],), and its weights ([v, H],): the model's own tensor, no copy.

    Args:
        remake: makes the weights, where the model keeps them in another form; stored outputs hold none then.
    """

    name = "hidden"
    title = "hidden states"
    needs_lm_head = True
    weights: tuple[Tensor, ...] = ()
    remake: Callable[[], Tensor] | None = None

    def put_away(self) -> Self:
        return self if self.remake is None else replace(self, weights=())

    def made_ready(self) -> Self:
        return self if self.remake is None else replace(self, weights=(self.remake(),))

    def as_teacher(self) -> LMHead:
        return LMHead(self.rows, self.weights)

    @staticmethod
    def bytes_per_token(hidden: int, vocabulary: int, topk: int) -> int:
        return hidden * HALF


@dataclass(frozen=True)
class LogitsOutputs(TeacherOutputs):
    """This rank's columns of the logits, rows ([n, v],)."""

    name = "logits"
    title = "logits"
    by_columns = True

    def as_teacher(self) -> Tensor:
        return self.rows[0]

    @staticmethod
    def bytes_per_token(hidden: int, vocabulary: int, topk: int) -> int:
        return vocabulary * HALF


@dataclass(frozen=True)
class TopKOutputs(TeacherOutputs):
    """The K most probable tokens: log-probabilities, taken at `temperature`, and global ids, rows [n, K] each; of a
    local teacher also their shift to temperature 1 [n] (see `TopK`)."""

    name = "topk"
    title = "most probable tokens"
    metric_names = ("teacher_tail_mass", "student_tail_mass")
    temperature: float = 1.0

    @property
    def columns(self) -> None:
        return None

    def as_teacher(self) -> TopK:
        log_probs, ids, *shift = self.rows
        return TopK(log_probs, ids, self.temperature, *shift)

    def best_ids(self, rows: Tensor, k: int, shard: VocabShard) -> Tensor:
        return self.rows[1][rows]

    @staticmethod
    def bytes_per_token(hidden: int, vocabulary: int, topk: int) -> int:
        return topk * TOPK_ENTRY


@dataclass(frozen=True)
class StoredOutputs:
    """Outputs put away until their micro-batch is trained on.

    Rows that are the same on all ranks of a tensor-parallel group are kept in one block by each rank: the payload is
    divided by the group's size for one all-gather per micro-batch, of the same size as one of the two that every layer
    makes under sequence parallelism.
    """

    outputs: TokenRows
    total: int
    group: ProcessGroup | None

    @property
    def bytes(self) -> int:
        """What this rank keeps."""
        return sum(rows.numel() * rows.element_size() for rows in self.outputs.rows)

    def pinned(self) -> Self:
        """The same in page-locked CPU memory."""
        return replace(self, outputs=self.outputs.map(_pin))

    def load(self, device: torch.device | str) -> TokenRows:
        """All rows, on `device`."""
        here = self.outputs.made_ready().map(lambda rows: rows.to(device, non_blocking=True))
        if self.group is None:
            return here
        return here.map(lambda rows: all_gather(rows, self.group).flatten(0, 1)[: self.total])


def gather_uneven(rows: Tensor, group: ProcessGroup | None) -> Tensor:
    """Joins the ranks' rows, of which each may have another number: [n, ...] -> [sum of n, ...], in rank order.

    One gather of the numbers and one of the rows, padded to the longest. Teachers are not differentiated.
    """
    if group is None:
        return rows
    counts = all_gather(torch.tensor(len(rows), device=rows.device), group).tolist()
    everyone = all_gather(_padded(rows, max(counts)), group)
    return torch.cat([part[:count] for part, count in zip(everyone, counts, strict=True)])


def _padded(rows: Tensor, size: int) -> Tensor:
    return torch.cat([rows, rows.new_zeros(size - len(rows), *rows.shape[1:])]) if len(rows) < size else rows


def _pin(rows: Tensor) -> Tensor:
    pinned = torch.empty(rows.shape, dtype=rows.dtype, device="cpu", pin_memory=torch.cuda.is_available())
    return pinned.copy_(rows)
