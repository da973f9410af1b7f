"""Which rows are trained on and evaluated: every one, equally often, whatever the batch, the layout and the moment."""

import math

import pytest

from tests.json_lines import read_json_lines, write_json_lines
from tests.launching.commands import Run, megatron_rlhf
from tests.paths import BASE_MODEL

ROWS = 5


@pytest.fixture(scope="module")
def still(flags, blurred, tmp_path_factory):
    """A run whose weights stay as they are; its five rows of one response token are trained on and evaluated."""
    file = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    turns = [[{"role": "user", "content": f"say {n}"}, {"role": "assistant", "content": str(n)}] for n in range(ROWS)]
    write_json_lines(file, ({"messages": messages} for messages in turns))
    changes = {"model": BASE_MODEL, "teacher_model": blurred, "dataset": file, "val_dataset": file, "lr": 0}
    changes |= {"torch_dtype": "float32", "fp16": False, "bf16": False, "kd_metrics": True, "dataloader_num_workers": 0}
    return {**flags, **changes, "metric_for_best_model": "divergence", "no_save_optim": True}


def evaluations(run: Run) -> list[dict[str, float]]:
    rows = [row for row in read_json_lines(run.output / "logging.jsonl") if "eval_loss" in row]
    return [{name: value for name, value in row.items() if name.startswith("eval_")} for row in rows]


def check(run: Run, moments: int) -> dict[str, float]:
    """The figures of an evaluation, which are the same each time, and of two epochs of training."""
    figures, *later = evaluations(run.expect_success())
    assert later == [figures] * (moments - 1)
    for name in ("loss", "forward_kl", "top1_agreement"):
        values = [step[name] for step in run.steps]
        assert math.isclose(sum(values) / len(values), figures[f"eval_{name}"], rel_tol=1e-5), name
    return figures


@pytest.fixture(scope="module")
def figures(still, tmp_path_factory) -> dict[str, float]:
    """Of one process, with micro-batches that neither set of rows fills."""
    changes = {"micro_batch_size": 2, "global_batch_size": 2, "num_train_epochs": 2, "train_iters": None}
    run = megatron_rlhf(tmp_path_factory.mktemp("one"), still | changes | {"eval_steps": 2, "save_steps": 2})
    found = check(run, moments=3)
    assert "5 steps of 2 rows use each of the 5 rows 2 times.\n" in run.log
    assert "Every evaluation takes each of the 5 validation rows once.\n" in run.log
    return found


@pytest.mark.parametrize("streaming", [False, True])
def test_two_replicas_use_the_same_rows(still, figures, tmp_path, streaming):
    changes = {"micro_batch_size": 1, "global_batch_size": 2, "train_iters": 5, "eval_steps": 5}
    if streaming:
        changes |= {"streaming": True, "eval_iters": 3}
    other = check(megatron_rlhf(tmp_path, still | changes, processes=2), moments=1)
    assert other == pytest.approx(figures, rel=1e-6)


@pytest.mark.parametrize("layout", ["pipeline_model_parallel_size", "context_parallel_size"])
def test_a_row_on_two_ranks_has_the_same_figures(still, figures, tmp_path, layout):
    changes = {layout: 2, "micro_batch_size": 2, "global_batch_size": 2, "train_iters": 5, "eval_steps": 5}
    other = check(megatron_rlhf(tmp_path, still | changes, processes=2), moments=1)
    assert other == pytest.approx(figures, rel=1e-6)


def test_a_teacher_that_knows_no_more_is_said_by_the_last_stage(still, figures, blurred, tmp_path):
    """Of a list that was made at another temperature, too."""
    changes = {"model": blurred, "teacher_model": BASE_MODEL, "kd_topk": 10_000, "temperature": 0.9}
    changes |= {"micro_batch_size": 2, "global_batch_size": 2, "train_iters": 1, "eval_steps": 1}
    run = megatron_rlhf(tmp_path, still | changes | {"pipeline_model_parallel_size": 2}, processes=2).expect_success()
    (found,) = evaluations(run)
    assert found["eval_teacher_ce"] == pytest.approx(figures["eval_student_ce"], rel=1e-5)
    assert len(run.warnings("At the first step the teacher's cross-entropy on the responses is ")) == 1


def test_rows_that_fill_no_step_are_evaluated(still, figures, tmp_path):
    changes = {"micro_batch_size": 4, "global_batch_size": 8, "train_iters": 1, "split_dataset_ratio": 0}
    changes["dataset"] = [still["dataset"]] * 4
    run = megatron_rlhf(tmp_path, still | changes, processes=2).expect_success()
    assert evaluations(run) == [pytest.approx(figures, rel=1e-6)]
    assert "1 steps of 8 rows use each of the 20 rows 0 or 1 times; the last epoch leaves 12 of them out.\n" in run.log


def test_a_shuffled_stream_goes_on_where_it_was(still, tmp_path):
    long = {"messages": [{"role": "user", "content": "1+" * 200}, {"role": "assistant", "content": "1"}]}
    write_json_lines(tmp_path / "rows.jsonl", [*read_json_lines(still["dataset"]), long])
    changes = {"dataset": tmp_path / "rows.jsonl", "streaming": True, "shuffle_buffer_size": 3, "val_dataset": None}
    changes |= {"micro_batch_size": 1, "global_batch_size": 2, "train_iters": 7, "lr": 1e-3, "no_save_optim": None}
    whole = megatron_rlhf(tmp_path / "whole", still | changes | {"save_steps": 4}, processes=2).expect_success()
    assert len(whole.warnings("line 6 is left out: it has ")) == 1
    again = {"mcore_model": whole.output / "checkpoint-4", "finetune": False}
    resumed = megatron_rlhf(tmp_path / "resumed", still | changes | again, processes=2).expect_success()
    assert resumed.log.count("The stream is read again up to row 8, where the checkpoint was written.") == 1
    assert resumed.log.count("The stream is read again") == 1  # though its first pass ends before
    assert "took its rows in another order" not in resumed.log
    assert resumed.losses == whole.losses[4:]
    assert len(set(whole.losses)) == 7
