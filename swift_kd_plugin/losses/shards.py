"""A rank's slice of the vocabulary and the few named collectives that the losses use.

T tokens, C tokens of a chunk, V full vocabulary, v this rank's columns, K top-k entries.
None of these collectives is recorded by autograd: the losses write their gradients themselves, and each rank's
gradient concerns its own columns only, so nothing has to be summed on the way back.
"""

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup

from swift_kd_plugin.losses.lm_head import LMHead


def all_gather(tensor: Tensor, group: ProcessGroup | None) -> Tensor:
    """Stacks the ranks' equally shaped tensors: [...] -> [ranks, ...]; without a group [1, ...]."""
    if group is None:
        return tensor[None]
    size = dist.get_world_size(group)
    gathered = tensor.new_empty(size, *tensor.shape)
    dist.all_gather(list(gathered.unbind(0)), tensor.contiguous(), group=group)
    return gathered


@dataclass(frozen=True)
class VocabShard:
    """This rank's columns [start, stop) of a vocabulary of `vocab` ids that the ranks of `group` share.

    `widths` are the columns of every rank, padding included; `start` and `stop` leave out columns from `vocab` on.
    """

    widths: tuple[int, ...]
    rank: int
    vocab: int
    group: ProcessGroup | None = None

    @property
    def start(self) -> int:
        return min(sum(self.widths[: self.rank]), self.vocab)

    @property
    def stop(self) -> int:
        return min(sum(self.widths[: self.rank + 1]), self.vocab)

    @property
    def width(self) -> int:
        """The number of this rank's columns that are real ids."""
        return self.stop - self.start

    def range_of(self, rank: int) -> tuple[int, int]:
        """The ids that `rank` holds, padding included."""
        return sum(self.widths[:rank]), sum(self.widths[: rank + 1])

    def cut(self, vocab: int) -> "VocabShard":
        """The same layout, of which only ids below `vocab` count."""
        return VocabShard(self.widths, self.rank, min(vocab, self.vocab), self.group)

    def sum(self, partial: Tensor) -> Tensor:
        """Adds the ranks' partial sums. The values that come out are the same on every rank, and so is all that
        is computed from them: the ranks' gradients need no second sum."""
        if self.group is not None:
            dist.all_reduce(partial, group=self.group)
        return partial

    def sum_input_gradient(self, partial: Tensor) -> Tensor:
        """Adds what every rank's columns send back to the inputs of a head. The inputs are the same on all ranks and
        feed the columns of all, so that their gradient is the sum over the ranks; afterwards every rank has the whole
        of it, and whoever made the inputs alike on the way there must not add the ranks' gradients again."""
        return self.sum(partial)

    def gather(self, local: Tensor) -> Tensor:
        """Stacks every rank's per-token scalars: [...] -> [ranks, ...]. They are statistics, not differentiated."""
        return all_gather(local, self.group)


def shards_of(
    student: Tensor | LMHead,
    teacher_width: int | None,
    group: ProcessGroup | None,
    student_vocab: int | None,
    teacher_vocab: int | None,
) -> tuple[VocabShard, VocabShard]:
    """Who holds which columns, agreed on by one exchange of three integers per call.

    Args:
        student: [T, v_student], this rank's columns, there already or to be made by a head.
        teacher_width: v_teacher, or None where the teacher gives top-k entries instead of columns.
        group: tensor-parallel group or None.
        student_vocab, teacher_vocab: global numbers of real ids; None counts all columns.

    Raises:
        ValueError: the ranks hold different numbers of tokens, or a vocabulary is larger than its columns.
    """
    if group is not None and dist.get_world_size(group) == 1:
        group = None
    sizes = torch.tensor([student.shape[0], student.shape[1], teacher_width or 0], device=student.device)
    tokens, student_widths, teacher_widths = all_gather(sizes, group).T.tolist()
    if len(set(tokens)) > 1:
        raise ValueError(
            f"The ranks of the tensor-parallel group hold different numbers of tokens ({tokens}); each rank must pass "
            "the same tokens with its own columns of the vocabulary."
        )
    rank = dist.get_rank(group) if group is not None else 0
    shards = []
    for name, widths, vocab in (("student", student_widths, student_vocab), ("teacher", teacher_widths, teacher_vocab)):
        columns = sum(widths)
        if vocab is not None and vocab > columns and (name == "student" or teacher_width is not None):
            raise ValueError(f"{name}_vocab is {vocab}, but the {name}'s logits have only {columns} columns in all.")
        shards.append(VocabShard(tuple(widths), rank, columns if vocab is None else vocab, group))
    if teacher_width is None:
        return shards[0], VocabShard((), 0, shards[0].vocab if teacher_vocab is None else teacher_vocab)
    return shards[0], shards[1]


def move_columns(chunk: Tensor, source: VocabShard, target: VocabShard) -> Tensor:
    """Hands the teacher's columns to the ranks that hold the same ids of the student: [C, v_teacher] -> [C, width].

    Padded shards of unequal vocabularies start at different ids, so that a column's position says nothing about its
    id. One all-to-all of the few columns that lie on the wrong rank and of those that already lie right. The teacher
    is not differentiated, so there is no way back.
    """

    def overlap(held: tuple[int, int], wanted: tuple[int, int]) -> tuple[int, int]:
        start = max(held[0], min(wanted[0], target.vocab))
        return start, max(start, min(held[1], wanted[1], target.vocab))

    ranks, tokens = range(len(source.widths)), chunk.shape[0]
    held = source.range_of(source.rank)
    sent = [overlap(held, target.range_of(rank)) for rank in ranks]
    received = [overlap(source.range_of(rank), target.range_of(target.rank)) for rank in ranks]
    if target.group is None:
        return chunk[:, : target.width]
    pieces = torch.cat([chunk[:, start - held[0] : stop - held[0]].reshape(-1) for start, stop in sent])
    counts = [tokens * (stop - start) for start, stop in received]
    moved = chunk.new_empty(sum(counts))
    sizes = [tokens * (stop - start) for start, stop in sent]
    dist.all_to_all_single(moved, pieces, counts, sizes, group=target.group)
    return torch.cat([piece.view(tokens, -1) for piece in moved.split(counts) if piece.numel()] or [chunk[:, :0]], 1)
