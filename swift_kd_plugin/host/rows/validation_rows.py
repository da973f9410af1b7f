"""The rows of an evaluation: each exactly once, whatever the batch size and the layout."""

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

import torch

from swift_kd_plugin.data.rows import Filler
from swift_kd_plugin.host.rows.encoding_check import RowFilter, has_media

Row = dict[str, Any]


class ValidationRows:
    """A replica's part of the validation rows, in steps of micro-batches.

    Args:
        rows: that every evaluation takes, those of all replicas.
        global_batch_size: rows of a step.
        groups_of: the number of micro-batches of a step is a multiple of it.
    """

    def __init__(
        self,
        rows: Sequence[Row],
        global_batch_size: int,
        micro_batch_size: int,
        replica: int,
        replicas: int,
        groups_of: int = 1,
    ):
        self.rows, self.global_batch_size, self.micro_batch_size = rows, global_batch_size, micro_batch_size
        self.replica, self.replicas, self.groups_of = replica, replicas, groups_of

    def steps(self) -> Iterator[list[list[Row]]]:
        """The micro-batches of each step, as many as its rows need."""
        size, at_once = self.micro_batch_size, self.micro_batch_size * self.replicas
        for start in range(0, len(self.rows), self.global_batch_size):
            end = min(start + self.global_batch_size, len(self.rows))
            groups = -(-(end - start) // (at_once * self.groups_of))
            firsts = range(start + self.replica * size, start + groups * self.groups_of * at_once, at_once)
            yield [self._micro_batch(first, end) for first in firsts]

    def _micro_batch(self, first: int, end: int) -> list[Row]:
        numbers = range(first, first + self.micro_batch_size)
        return [self.rows[number] if number < end else Filler.of(self.rows[end - 1]) for number in numbers]


class FirstRows(Sequence):
    """The first rows of a data set, which are read when they are asked for."""

    def __init__(self, dataset, count: int):
        self.dataset, self.count = dataset, min(count, len(dataset))

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, number: int) -> Row:
        return self.dataset[number]


def read_stream(dataset, count: int, rows: RowFilter, group) -> list[Row]:
    """The first rows of a stream that can be used, or all where it has fewer; one rank of the group reads for all."""
    read = [None]
    if torch.distributed.get_rank(group) == 0:
        read = [list(islice((row for row in dataset if has_media(row) or rows.keeps(row)), count))]
    torch.distributed.broadcast_object_list(read, torch.distributed.get_global_rank(group, 0), group=group)
    return read[0]
