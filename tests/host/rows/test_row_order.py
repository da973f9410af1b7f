"""Which rows a training step takes, without a launch."""

from collections import Counter
from itertools import chain, islice
from types import SimpleNamespace

import pytest

from swift_kd_plugin.host.rows.row_order import sampler_for

pytestmark = pytest.mark.usefixtures("cpu_backend")

ORDERS = {
    "shuffled": {},
    "in order": {"train_dataloader_shuffle": False},
    "in shards": {"data_sharding": True},
    "by length": {"group_by_length": True},
}


class Rows(list):
    """A data set as a sampler sees it."""

    def __init__(self, count: int):
        super().__init__(range(count))

    def __getitem__(self, name: str) -> list[int]:
        return [7 * row % 5 + 1 for row in self]


def settings(**changes) -> SimpleNamespace:
    given = {"train_dataloader_shuffle": True, "data_sharding": False, "group_by_length": False, "data_seed": 42}
    return SimpleNamespace(**given | {"micro_batch_size": 2} | changes)


def batches(args, rows: int, replicas: int, count: int, used: int = 0) -> list[list[list[int]]]:
    """The first micro-batches of every replica."""
    return [list(islice(sampler_for(args, Rows(rows), used, replica, replicas), count)) for replica in range(replicas)]


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(("rows", "size", "replicas"), [(11, 4, 1), (11, 2, 2), (13, 3, 2), (12, 3, 4), (7, 1, 4)])
def test_no_row_is_used_twice_more_than_another(order, rows, size, replicas):
    args = settings(micro_batch_size=size, **ORDERS[order])
    parts = batches(args, rows, replicas, count=40)
    used = Counter()
    for step in zip(*parts, strict=True):
        used.update(chain(*step))
        assert max(used.values()) - min(used[row] for row in range(rows)) <= 1
    assert sum(used.values()) == 40 * size * replicas


@pytest.mark.parametrize("order", ORDERS)
def test_a_resumed_run_takes_what_comes_next(order):
    args = settings(**ORDERS[order])
    whole = batches(args, 11, replicas=2, count=20)
    for done in (1, 3, 8):
        assert batches(args, 11, 2, 20 - done, used=done * 4) == [part[done:] for part in whole]


def test_the_rows_of_a_step_are_those_of_every_layout():
    layouts = [(8, 1), (4, 2), (2, 4), (1, 8), (2, 1)]
    steps = []
    for size, replicas in layouts:
        parts = batches(settings(micro_batch_size=size), 11, replicas, count=40 // (size * replicas))
        taken = [row for step in zip(*parts, strict=True) for row in sorted(chain(*step))]
        steps.append([sorted(taken[start : start + 8]) for start in range(0, 40, 8)])
    assert all(step == steps[0] for step in steps)


@pytest.mark.parametrize("order", ORDERS)
def test_whole_epochs_are_taken_as_ms_swift_takes_them(order):
    from swift.megatron.trainers.batch_sampler import MegatronPretrainingRandomSampler

    args = settings(**ORDERS[order])
    for replica in range(3):
        stock = MegatronPretrainingRandomSampler(
            Rows(24),
            total_samples=24,
            consumed_samples=12,
            micro_batch_size=2,
            data_parallel_rank=replica,
            data_parallel_size=3,
            data_sharding=args.data_sharding,
            shuffle=args.train_dataloader_shuffle,
            group_by_length=args.group_by_length,
            seed=42,
        )
        two_epochs = [*stock, *stock]
        assert list(islice(sampler_for(args, Rows(24), 12, replica, 3), len(two_epochs))) == two_epochs
