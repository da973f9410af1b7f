"""The rows of an evaluation in steps of micro-batches, without a launch."""

from collections import Counter

import pytest

from swift_kd_plugin.data.rows import Filler
from swift_kd_plugin.host.rows.validation_rows import FirstRows, ValidationRows

pytestmark = pytest.mark.usefixtures("cpu_backend")


def rows_of(count: int) -> list[dict]:
    return [{"messages": [{"role": "user", "content": str(number)}], "kd_row": number} for number in range(count)]


@pytest.mark.parametrize("count", [1, 3, 11, 12, 13])
@pytest.mark.parametrize(
    ("batch", "size", "replicas", "groups_of"), [(4, 4, 1, 1), (8, 2, 2, 1), (8, 2, 1, 2), (12, 3, 4, 1), (16, 2, 2, 2)]
)
def test_each_row_once_and_no_micro_batch_too_many(count, batch, size, replicas, groups_of):
    rows, used = rows_of(count), Counter()
    of_replicas = [
        list(ValidationRows(rows, batch, size, replica, replicas, groups_of).steps()) for replica in range(replicas)
    ]
    for step in zip(*of_replicas, strict=True):
        assert len({len(batches) for batches in step}) == 1  # all replicas go on together
        assert len(step[0]) % groups_of == 0
        step_rows = [row for batches in step for micro_batch in batches for row in micro_batch]
        real = [row for row in step_rows if not isinstance(row, Filler)]
        assert real
        assert len(step_rows) - len(real) < size * replicas * groups_of
        assert {len(micro_batch) for batches in step for micro_batch in batches} == {size}
        used.update(row["kd_row"] for row in real)
    assert used == Counter(range(count))


def test_what_fills_a_batch_is_a_row_with_a_response():
    (batches,) = ValidationRows(rows_of(1), 2, 2, 0, 1).steps()
    (row, filler) = batches[0]
    assert filler["messages"] == [*row["messages"], {"role": "assistant", "content": "."}]


def test_the_first_rows_are_read_when_they_are_asked_for():
    rows = FirstRows(rows_of(5), 3)
    assert len(rows) == 3
    assert len(FirstRows(rows_of(2), 3)) == 2


@pytest.mark.parametrize("dataset", [[], iter(())])
def test_a_validation_set_of_which_nothing_is_left_is_refused(monkeypatch, dataset):
    from types import SimpleNamespace

    from swift_kd_plugin.errors import KDError
    from swift_kd_plugin.host.train import evaluation

    monkeypatch.setattr(evaluation, "read_stream", lambda rows, count, *_: list(rows)[:count])
    monkeypatch.setattr(evaluation.mpu, "get_data_parallel_group", lambda: None)
    args = SimpleNamespace(eval_iters=0 if dataset == [] else 2, global_batch_size=2)
    trainer = SimpleNamespace(args=args, kd=SimpleNamespace(rows_filter=None))
    with pytest.raises(KDError, match="--val_dataset has no row that can be evaluated"):
        evaluation.validation_rows(trainer, dataset)
    args.eval_iters = 0
    assert evaluation.validation_rows(trainer, iter(())) is None
    assert evaluation.validation_rows(trainer, None) is None
