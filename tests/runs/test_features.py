"""Feature matching in the real command: what is trained, saved, resumed, evaluated and refused."""

import pytest
from safetensors import safe_open

from tests.launching.commands import Run, megatron_rlhf

FEATURES = {"kd_feature_weight": 0.5, "kd_feature_layers": "1:2,3:4"}
LORA = {"tuner_type": "lora", "lora_dropout": 0.0, "target_modules": "all-linear"}
PP2 = {"pipeline_model_parallel_size": 2}


def names_in(run: Run) -> set[str]:
    """Of the tensors that are exported."""
    found: set[str] = set()
    for file in run.checkpoint.glob("*.safetensors"):
        with safe_open(file, "pt") as tensors:
            found |= set(tensors.keys())
    return found


@pytest.mark.parametrize(
    ("tuner", "flag", "processes"),
    [(LORA, "mcore_adapter", 1), (PP2, "mcore_model", 2)],
    ids=["LoRA", "PP2"],
)
def test_projections_are_resumed_and_not_exported(flags, tmp_path, tuner, flag, processes):
    flags = {**flags, **FEATURES, **tuner, "train_iters": 4, "save_steps": 2, "lr": 1e-2}
    whole = megatron_rlhf(tmp_path / "whole", flags, processes).expect_success()
    start = {flag: whole.output / "checkpoint-2", "finetune": False}
    resumed = megatron_rlhf(tmp_path / "resumed", {**flags, **start}, processes).expect_success()
    for name in ("loss", "feature_1_2", "feature_3_4", "grad_norm"):
        assert [step[name] for step in resumed.steps] == [step[name] for step in whole.steps[2:]], name
    first, last = (whole.steps[index] for index in (0, -1))
    assert first["loss"] == pytest.approx(first["divergence"] + 0.25 * (first["feature_1_2"] + first["feature_3_4"]))
    assert last["feature_1_2"] < first["feature_1_2"]
    assert f"at most: 1,024 tokens a cycle of {512 // processes} bytes\n" in whole.log
    assert names_in(whole)
    assert not [name for name in names_in(whole) if "kd_features" in name]
