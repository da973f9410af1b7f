"""What a teacher says about response tokens: one row per token, sample after sample, wherever the token lies.

n tokens, H hidden size, K entries of a top-k teacher, v this rank's columns of the vocabulary.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from swift_kd_plugin.losses.lm_head import LMHead
from swift_kd_plugin.losses.request import TopK
from swift_kd_plugin.losses.shards import all_gather


@dataclass(frozen=True)
class TeacherOutputs:
    """A teacher's rows for n response tokens.

    Args:
        kind: "hidden", "topk" or "logits".
        rows: for `hidden` what goes into the output layer, ([n, H],); for `topk` log-probabilities and global ids,
            [n, K] each; for `logits` this rank's columns, ([n, v],).
        token_ids: the tokens that the rows predict [n].
        weights: for `hidden` the output layer's, ([v, H],); the model's own tensor, not a copy.
        temperature: of a top-k teacher's log-probabilities.
    """

    kind: str
    rows: tuple[Tensor, ...]
    token_ids: Tensor
    weights: tuple[Tensor, ...] = ()
    temperature: float = 1.0

    def __len__(self) -> int:
        return len(self.token_ids)

    def map(self, change: Callable[[Tensor], Tensor]) -> "TeacherOutputs":
        """The same signal with `change` applied to its rows and token ids."""
        return replace(self, rows=tuple(map(change, self.rows)), token_ids=change(self.token_ids))

    def exchange(self, numbers: Tensor, wanted: Tensor, group: ProcessGroup | None) -> "TeacherOutputs":
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

    def as_teacher(self) -> LMHead | TopK | Tensor:
        """In the form that `objective_loss` takes."""
        if self.kind == "hidden":
            return LMHead(self.rows, self.weights)
        return TopK(*self.rows, self.temperature) if self.kind == "topk" else self.rows[0]


@dataclass(frozen=True)
class StoredOutputs:
    """A signal put away until its micro-batch is trained on.

    The rows of `hidden` and `topk` are the same on all ranks of a tensor-parallel group, so each rank keeps one block
    of them: the payload is divided by the group's size for one all-gather per micro-batch, of the same size as one of
    the two that every layer makes under sequence parallelism. Columns of logits are spread over the ranks as they are.
    """

    signal: TeacherOutputs
    total: int
    group: ProcessGroup | None

    @property
    def bytes(self) -> int:
        """What this rank keeps."""
        return sum(rows.numel() * rows.element_size() for rows in self.signal.rows)

    def load(self, device: torch.device | str) -> TeacherOutputs:
        """All rows, on `device`."""
        here = self.signal.map(lambda rows: rows.to(device, non_blocking=True))
        if self.group is None:
            return here
        return here.map(lambda rows: all_gather(rows, self.group).flatten(0, 1)[: self.total])


def store(signal: TeacherOutputs, group: ProcessGroup | None, pinned: bool) -> StoredOutputs:
    """Keeps this rank's block of the rows.

    Args:
        group: tensor-parallel group or None.
        pinned: in page-locked CPU memory instead of on the device.
    """
    total = len(signal)
    if signal.kind == "logits":
        group = None
    if group is not None:
        size = -(-total // torch.distributed.get_world_size(group))
        start = size * torch.distributed.get_rank(group)
        signal = signal.map(lambda rows: _padded(rows[start : start + size], size).clone())
    if pinned:
        signal = signal.map(_pin)
    return StoredOutputs(signal, total, group)


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
