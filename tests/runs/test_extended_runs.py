"""A run that goes on from a checkpoint with other flags than it was begun with."""

import pytest
from safetensors import safe_open

from tests.json_lines import read_json_lines
from tests.launching.commands import Run, megatron_rlhf

RATES = {"lr": 1e-3, "lr_warmup_iters": 1}


def rates(run: Run) -> list[float]:
    """As logged: the log of a step has the rate of the next one."""
    return [step["learning_rate"] for step in run.steps]


@pytest.fixture(scope="module")
def finished(flags, tmp_path_factory) -> Run:
    """Two iterations, with which its schedule ends."""
    folder = tmp_path_factory.mktemp("finished")
    return megatron_rlhf(folder, {**flags, **RATES, "save_steps": 2}).expect_success()


def go_on(finished: Run, flags: dict, folder, processes: int = 1, **changes) -> Run:
    start = {"mcore_model": finished.output / "checkpoint-2", "finetune": False}
    return megatron_rlhf(folder, {**flags, **RATES, **start, **changes}, processes)


def test_more_iterations_are_trained_at_the_rates_of_a_run_that_long(flags, finished, tmp_path):
    longer = go_on(finished, flags, tmp_path / "longer", train_iters=5).expect_success()
    whole = megatron_rlhf(tmp_path / "whole", {**flags, **RATES, "train_iters": 5}).expect_success()
    assert rates(longer) == rates(whole)[2:]
    assert longer.steps[-1]["loss"] < longer.steps[0]["loss"]
    assert "the schedule of its own flags, not that of the checkpoint: lr_decay_iters 2 -> 5." in longer.log


def test_other_rates_and_batches_are_those_of_the_flags(flags, finished, tmp_path):
    changes = {"train_iters": 5, "lr": 5e-4, "min_lr": 1e-5, "lr_warmup_iters": 0, "lr_decay_style": "linear"}
    changes |= {"global_batch_size": 8, "adam_beta2": 0.9}
    other = go_on(finished, flags, tmp_path / "other", **changes).expect_success()
    assert rates(other) == pytest.approx([1e-5 + 4.9e-4 * left / 5 for left in (2, 1, 0)])
    said = "global_batch_size 4 -> 8, lr 0.001 -> 0.0005, min_lr 0 -> 1e-05, lr_warmup_iters 1 -> 0, lr_decay_iters 2"
    assert said in other.log


def test_a_finished_run_is_said_to_be_finished(flags, finished, tmp_path):
    again = go_on(finished, flags, tmp_path / "again").expect_success()
    assert again.steps == []
    assert "The checkpoint is of iteration 2, and the run ends at 2: nothing is trained." in again.log


def test_another_layout(flags, finished, tmp_path):
    """Refused before a rank starts; without the optimizer, or with one that was saved for it, it goes on."""
    changes = {"train_iters": 3, "tensor_model_parallel_size": 2}
    refused = go_on(finished, flags, tmp_path / "refused", processes=2, **changes)
    assert refused.code == 1
    assert "swift_kd_plugin: error: --mcore_model " in refused.log
    fresh = {**changes, "no_load_optim": True, "no_load_rng": True}
    assert len(go_on(finished, flags, tmp_path / "fresh", processes=2, **fresh).expect_success().steps) == 1

    reshardable = {**RATES, "dist_ckpt_optim_fully_reshardable": True, "train_iters": 3, "save_steps": 2}
    one = megatron_rlhf(tmp_path / "one", {**flags, **reshardable}).expect_success()
    two = go_on(one, flags, tmp_path / "two", processes=2, **changes).expect_success()
    assert two.losses == pytest.approx(one.losses[2:], rel=1e-2)
    assert rates(two) == rates(one)[2:]


def test_files_are_no_larger_than_asked(flags, tmp_path):
    run = megatron_rlhf(tmp_path, {**flags, "max_shard_size": "300KB", "async_save": True, "train_iters": 1})
    run.expect_success()
    files = sorted(run.checkpoint.glob("*.safetensors"))
    assert len(files) > 1
    assert max(file.stat().st_size for file in files) < 310_000

    # Into the same folder, in which async_save lets old files stand.
    again = megatron_rlhf(tmp_path, {**flags, "async_save": True, "train_iters": 1}).expect_success()
    assert [file.name for file in again.checkpoint.glob("model*")] == ["model.safetensors"]
    with safe_open(again.checkpoint / "model.safetensors", "pt") as weights:
        assert "lm_head.weight" in weights.keys()  # noqa: SIM118


def test_virtual_stages_go_on(flags, tmp_path):
    staged = {"pipeline_model_parallel_size": 2, "virtual_pipeline_model_parallel_size": 2}
    begun = megatron_rlhf(tmp_path / "begun", {**flags, **RATES, **staged, "save_steps": 2}, 2).expect_success()
    longer = go_on(begun, flags, tmp_path / "longer", 2, **staged, train_iters=4).expect_success()
    whole = megatron_rlhf(tmp_path / "whole", {**flags, **RATES, **staged, "train_iters": 4}, 2).expect_success()
    assert begun.losses + longer.losses == whole.losses


def test_the_best_checkpoint_of_the_run_before_stays_the_best(flags, tmp_path):
    evaluated = {"val_dataset": flags["dataset"], "eval_steps": 1, "save_steps": 1, "no_save_optim": False}
    begun = megatron_rlhf(tmp_path, {**flags, **RATES, **evaluated}).expect_success()
    changes = {"lr": 0.5, "train_iters": 4, "save_total_limit": 2}
    worse = go_on(begun, {**flags, **evaluated}, tmp_path, **changes).expect_success()
    assert sorted(path.name for path in worse.output.glob("checkpoint-*")) == ["checkpoint-2", "checkpoint-4"]
    assert f"The best checkpoint so far is {worse.output}/checkpoint-2, by loss 0." in worse.log
    (*_, end) = read_json_lines(worse.output / "logging.jsonl")
    assert end["best_model_checkpoint"] == f"{worse.output}/checkpoint-2"
