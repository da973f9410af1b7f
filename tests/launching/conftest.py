from pathlib import Path

import pytest

from tests.tiny_models import make_dense, make_sums


@pytest.fixture(scope="package")
def flags(tmp_path_factory) -> dict[str, object]:
    """Four off-policy steps with dropout, so that random states count."""
    folder: Path = tmp_path_factory.mktemp("launching")
    return {
        "rlhf_type": "gkd",
        "external_plugins": "swift_kd_plugin",
        "model": make_dense(folder / "student", hidden=64, seed=0),
        "teacher_model": make_dense(folder / "teacher", hidden=128, seed=1),
        "dataset": make_sums(folder / "sums.jsonl"),
        "template": "qwen3",
        "model_type": "qwen3",
        "teacher_model_type": "qwen3",
        "micro_batch_size": 2,
        "global_batch_size": 4,
        "train_iters": 4,
        "lr": 1e-3,
        "max_length": 256,
        "lmbda": 0,
        "recompute_granularity": "none",
        "logging_steps": 1,
        "torch_dtype": "bfloat16",
        "dataset_num_proc": 1,
        "megatron_extra_kwargs": '{"hidden_dropout": 0.1, "attention_dropout": 0.1}',
        "no_save_optim": True,
    }
