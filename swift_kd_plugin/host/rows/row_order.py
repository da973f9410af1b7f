"""In which order training takes its rows: one endless stream, so that no row is used twice more than another."""

from collections.abc import Iterator, Sequence
from itertools import islice

import torch


class RowOrder:
    """The permutation of each epoch, one after the other, as ms-swift's sampler draws it.

    Args:
        rows: how many there are.
        seed: of the first epoch; that of a later one is larger by its number.
        shards: number of equal parts, of which every micro-batch of a stretch has one of its own (--data_sharding).
        micro_batch_size: of such a stretch.
        lengths: of the rows, where rows of one length are to lie together (--group_by_length).
        at_once: number of rows that lie together then.
    """

    def __init__(
        self,
        rows: int,
        seed: int,
        shuffle: bool = True,
        shards: int = 1,
        micro_batch_size: int = 1,
        lengths: Sequence[int] | None = None,
        at_once: int = 1,
    ):
        self.rows, self.seed, self.shuffle = rows, seed, shuffle
        self.shards, self.micro_batch_size = shards, micro_batch_size
        self.lengths, self.at_once = lengths, at_once

    def of_epoch(self, epoch: int) -> Sequence[int]:
        """Every row once."""
        if not self.shuffle:
            return range(self.rows)
        draws = torch.Generator()
        draws.manual_seed(self.seed + epoch)
        if self.lengths is not None:
            from transformers.trainer_pt_utils import get_length_grouped_indices

            return get_length_grouped_indices(self.lengths, self.at_once, generator=draws)
        if self.shards == 1:
            return torch.randperm(self.rows, generator=draws).tolist()
        return self._in_shards(draws)

    def _in_shards(self, draws: torch.Generator) -> list[int]:
        size = self.rows // self.shards
        order = torch.randperm(size, generator=draws).tolist()
        stretches = (order[start : start + self.micro_batch_size] for start in range(0, size, self.micro_batch_size))
        rows = [shard * size + row for stretch in stretches for shard in range(self.shards) for row in stretch]
        return [*rows, *range(len(rows), self.rows)]

    def after(self, used: int) -> Iterator[int]:
        """What comes after so many rows of the stream; it never ends."""
        epoch, start = divmod(used, self.rows)
        while True:
            yield from islice(self.of_epoch(epoch), start, None)
            epoch, start = epoch + 1, 0


class EvenBatchSampler:
    """A replica's micro-batches. What ends an epoch and fills none goes into the first of the next epoch.

    Args:
        used: rows that the run has used before, those of all replicas.
        by_shard: each replica has a stretch of its own; otherwise they take rows in turn.
    """

    def __init__(
        self, order: RowOrder, used: int, micro_batch_size: int, replica: int, replicas: int, by_shard: bool = False
    ):
        self.order, self.used, self.at_once = order, used, micro_batch_size * replicas
        start = replica * micro_batch_size
        self.part = slice(start, start + micro_batch_size) if by_shard else slice(replica, None, replicas)

    def __iter__(self) -> Iterator[list[int]]:
        rows = self.order.after(self.used)
        while True:
            yield list(islice(rows, self.at_once))[self.part]


def sampler_for(args, dataset, used: int, replica: int, replicas: int) -> EvenBatchSampler:
    """What the flags ask for.

    Raises:
        ValueError: --group_by_length without shuffling.
    """
    size, lengths = args.micro_batch_size, None
    if args.group_by_length:
        if not args.train_dataloader_shuffle:
            raise ValueError("--group_by_length true needs --train_dataloader_shuffle true.")
        lengths = [max(length) if isinstance(length, list) else length for length in dataset["lengths"]]
    by_shard = args.data_sharding and args.train_dataloader_shuffle and lengths is None and replicas > 1
    order = RowOrder(
        len(dataset),
        args.data_seed,
        shuffle=args.train_dataloader_shuffle,
        shards=replicas if by_shard else 1,
        micro_batch_size=size,
        lengths=lengths,
        at_once=size * replicas,
    )
    return EvenBatchSampler(order, used, size, replica, replicas, by_shard)
