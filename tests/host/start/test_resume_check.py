"""Layouts in which the optimizer of a checkpoint can be loaded: what Megatron itself does of each was run."""

import json
from types import SimpleNamespace

import pytest

from swift_kd_plugin.errors import KDError
from swift_kd_plugin.host.start.resume_check import check_resume

SIZES = {
    **{"tensor_model_parallel_size": 1, "pipeline_model_parallel_size": 2, "expert_model_parallel_size": 1},
    **{"virtual_pipeline_model_parallel_size": None, "decoder_first_pipeline_num_layers": None},
    **{"decoder_last_pipeline_num_layers": None, "pipeline_model_parallel_layout": None},
    **{"expert_tensor_parallel_size": 1, "use_distributed_optimizer": True},
}
ANEW = "--no_load_optim true --no_load_rng true"


@pytest.fixture
def resume(tmp_path):
    def check(saved: dict, **changes) -> None:
        (tmp_path / "args.json").write_text(json.dumps(SIZES | saved))
        args = {"mcore_adapter": None, "mcore_model": str(tmp_path), "tuner_type": "full", "finetune": False}
        check_resume(SimpleNamespace(**args, no_load_optim=False, **(SIZES | changes)))

    return check


@pytest.mark.parametrize(
    ("name", "size", "said"),
    [
        ("tensor_model_parallel_size", 2, "--tensor_model_parallel_size 1, and this run has"),
        ("virtual_pipeline_model_parallel_size", 2, "no --virtual_pipeline_model_parallel_size, and this run has"),
        ("decoder_first_pipeline_num_layers", 1, "this run has --decoder_first_pipeline_num_layers 1: "),
        ("expert_tensor_parallel_size", 2, "this run has --expert_tensor_parallel_size 2: "),
    ],
)
def test_a_layout_for_which_the_optimizer_was_not_saved(resume, name, size, said):
    with pytest.raises(KDError, match=ANEW) as caught:
        resume({}, **{name: size})
    assert said in str(caught.value)
    resume({"dist_ckpt_optim_fully_reshardable": True}, **{name: size})
    resume({"use_distributed_optimizer": False}, **{name: size})


@pytest.mark.parametrize("reshardable", [False, True])
def test_experts_on_other_ranks(resume, reshardable):
    with pytest.raises(KDError, match=f"2: Megatron cannot load its optimizer so. Keep the old layout, .*{ANEW}"):
        resume({"dist_ckpt_optim_fully_reshardable": reshardable}, expert_model_parallel_size=2)


def test_the_same_layout(resume):
    resume({})


ROWS = {
    **{"dataset": ["rows.jsonl"], "data_seed": 42, "dataset_shuffle": True, "shuffle_buffer_size": 1000},
    **{"train_dataloader_shuffle": True, "interleave_prob": None, "split_dataset_ratio": 0.0, "streaming": True},
    **{"stopping_strategy": "first_exhausted", "group_by_length": False, "data_sharding": False},
}


@pytest.fixture
def said(monkeypatch):
    from swift_kd_plugin.host.start import resume_warnings

    lines = []
    monkeypatch.setattr(resume_warnings.logger, "warning", lines.append)
    return lines


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({}, []),
        ({"data_seed": 7}, ["--data_seed 42 -> 7"]),
        ({"data_seed": 7, "shuffle_buffer_size": 3}, ["--data_seed 42 -> 7, --shuffle_buffer_size 1000 -> 3"]),
        ({"shuffle_buffer_size": 3, "streaming": False}, ["--streaming True -> False."]),
        ({"dataset": ["rows.jsonl", "more.jsonl"]}, ["--dataset rows.jsonl -> rows.jsonl more.jsonl"]),
        ({"dataset_shuffle": False, "interleave_prob": [0.5]}, ["prob None -> 0.5, --dataset_shuffle True -> False"]),
        ({"data_seed": 7, "finetune": True}, []),
        ({"data_seed": 7, "mcore_model": None}, []),
    ],
)
def test_other_rows_of_a_resumed_run_are_said(tmp_path, said, changes, named):
    from swift_kd_plugin.host.start.resume_warnings import warn_of_other_rows

    (tmp_path / "args.json").write_text(json.dumps(ROWS))
    of_run = {"mcore_adapter": None, "mcore_model": str(tmp_path), "tuner_type": "full", "finetune": False}
    warn_of_other_rows(SimpleNamespace(**ROWS | of_run | changes))
    assert len(said) == len(named)
    assert all(text in line for text, line in zip(named, said, strict=True))


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({}, True),
        ({"finetune": False}, False),
        ({"output_dir": "elsewhere"}, False),
        ({"mcore_model": None}, False),
    ],
)
def test_a_checkpoint_of_the_run_itself_that_gives_its_weights_alone_is_said(tmp_path, said, changes, named):
    from swift_kd_plugin.host.start.resume_warnings import warn_of_fresh_start

    given = {"mcore_adapter": None, "mcore_model": str(tmp_path / "checkpoint-7"), "finetune": True}
    warn_of_fresh_start(SimpleNamespace(**given | {"output_dir": str(tmp_path)} | changes))
    assert len(said) == named
    assert not named or "To go on where it stopped give --finetune false." in said[0]


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"lr_decay_iters": 2}, "4 of the 4 steps, which go on from iteration 4 of --mcore_model "),
        ({"lr_decay_iters": 6}, "2 of the 4 steps, which go on from iteration 4 of --mcore_model "),
        ({"lr_decay_iters": 2, "finetune": True}, "6 of the 8 steps have the learning rate 0"),
        ({"lr_decay_iters": 2, "no_load_optim": True}, "6 of the 8 steps have"),
        ({"lr_decay_iters": 8}, None),
        ({"lr_decay_iters": None}, None),
        ({"lr_decay_iters": 2, "min_lr": 1e-5}, None),
        ({"lr_decay_iters": 2, "lr_decay_style": "constant"}, None),
    ],
)
def test_steps_at_rate_0_are_said(tmp_path, said, changes, named):
    from swift_kd_plugin.host.start.resume_warnings import warn_of_idle_steps

    (tmp_path / "latest_checkpointed_iteration.txt").write_text("4")
    of_run = {"mcore_adapter": None, "mcore_model": str(tmp_path), "tuner_type": "full", "finetune": False}
    rates = {"lr": 1e-3, "min_lr": 0, "lr_decay_style": "cosine", "train_iters": 8, "no_load_optim": False}
    warn_of_idle_steps(SimpleNamespace(**of_run | rates | changes))
    assert len(said) == (named is not None)
    assert named is None or named in said[0]
