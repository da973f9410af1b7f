"""How many steps training and evaluation take, without a launch."""

from types import SimpleNamespace

import pytest

pytestmark = pytest.mark.usefixtures("cpu_backend")


def counted(monkeypatch, rows: int | None, val_rows: int | None, **changes) -> tuple[SimpleNamespace, list[str]]:
    """The flags after counting, and what was said. ms-swift's own part leaves no evaluation of few rows."""
    from swift_kd_plugin.host.start import step_counts

    given = {"global_batch_size": 4, "train_iters": 2, "num_train_epochs": None, "eval_iters": -1}
    given["kd_teacher_cache_mode"] = "auto"
    args = SimpleNamespace(**given | {"save_strategy": "steps", "save_steps": 500, "eval_steps": 500} | changes)

    def stock(train_dataset, val_dataset):
        if val_dataset is None or args.eval_iters < 0 or len(val_dataset) < 8:
            args.eval_iters = 0

    data = [None if count is None else [0] * count for count in (rows, val_rows)]
    lines = []
    monkeypatch.setattr(step_counts.logger, "info", lines.append)
    step_counts.set_step_counts(args, stock, *data)
    return args, lines


@pytest.mark.parametrize(
    ("rows", "epochs", "steps", "said"),
    [
        (11, 4, 11, "11 steps of 4 rows use each of the 11 rows 4 times."),
        (11, 3, 8, "8 steps of 4 rows use each of the 11 rows 2 or 3 times; the last epoch leaves 1 of them out."),
        (12, 1, 3, "3 steps of 4 rows use each of the 12 rows 1 times."),
    ],
)
def test_epochs_are_counted_in_rows(monkeypatch, rows, epochs, steps, said):
    args, lines = counted(monkeypatch, rows, None, num_train_epochs=epochs)
    assert args.train_iters == steps
    assert said in lines
    assert args.eval_iters == 0


def test_a_teacher_that_scores_takes_every_row_once(monkeypatch):
    args, lines = counted(monkeypatch, 7, 3, num_train_epochs=1, kd_teacher_cache_mode="fill")
    assert (args.train_iters, args.eval_iters) == (2, 1)
    assert not lines


@pytest.mark.parametrize(
    ("val_rows", "given", "steps", "said"),
    [
        (3, -1, 1, "Every evaluation takes each of the 3 validation rows once."),
        (10, -1, 3, "Every evaluation takes each of the 10 validation rows once."),
        (10, 2, 2, "--eval_iters 2: every evaluation takes the first 8 of 10 validation rows."),
        (10, 9, 3, "Every evaluation takes each of the 10 validation rows once."),
        (10, 0, 0, None),
        (0, -1, 0, None),
    ],
)
def test_an_evaluation_takes_each_row(monkeypatch, val_rows, given, steps, said):
    args, lines = counted(monkeypatch, 12, val_rows, eval_iters=given)
    assert args.eval_iters == steps
    assert said is None or said in lines


def test_an_epoch_that_is_saved_is_counted_in_rows(monkeypatch):
    args, _ = counted(monkeypatch, 11, None, save_strategy="epoch")
    assert (args.save_steps, args.eval_steps) == (2, 2)
