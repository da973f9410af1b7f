"""--kd_teacher_adapters against teachers that PEFT merged beforehand."""

import shutil
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

from tests.launching.commands import megatron_rlhf

PLAIN = {"r": 8, "lora_alpha": 32, "target_modules": "all-linear"}
RANK_STABLE = {
    "r": 4,
    "lora_alpha": 8,
    "target_modules": ["q_proj", "v_proj", "down_proj"],
    "use_rslora": True,
    "rank_pattern": {"v_proj": 6},
    "alpha_pattern": {"layers.1.self_attn.q_proj": 24},
}


def make_adapter(folder: Path, model: Path, seed: int, **settings) -> Path:
    """An adapter as PEFT trains it: q, k and v have a lora_A each, which Megatron's fused layers have not."""
    torch.manual_seed(seed)
    base = AutoModelForCausalLM.from_pretrained(model)
    get_peft_model(base, LoraConfig(init_lora_weights=False, **settings)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def adapters(material, tmp_path_factory) -> list[Path]:
    folder = tmp_path_factory.mktemp("adapters")
    return [
        make_adapter(folder / "plain", material / "teacher", 3, **PLAIN),
        make_adapter(folder / "rank-stable", material / "teacher", 4, **RANK_STABLE),
    ]


@pytest.fixture(scope="module")
def merged_run(flags, material, adapters, tmp_path_factory):
    """The run with a teacher that PEFT merged."""
    folder = tmp_path_factory.mktemp("merged")
    model = AutoModelForCausalLM.from_pretrained(material / "teacher", dtype=torch.float32)
    for adapter in adapters:
        model = PeftModel.from_pretrained(model, adapter).merge_and_unload()
    shutil.copytree(material / "teacher", folder / "teacher")
    model.save_pretrained(folder / "teacher")
    return megatron_rlhf(folder / "run", {**flags, "teacher_model": folder / "teacher"}).expect_success()


@pytest.mark.parametrize(
    ("name", "processes", "changes"),
    [
        ("single", 1, {"offload_teacher_model": True}),
        ("tp2", 2, {"tensor_model_parallel_size": 2}),
        ("pp2", 2, {"pipeline_model_parallel_size": 2}),
    ],
)
def test_a_merged_teacher_is_that_of_peft(flags, adapters, merged_run, tmp_path, name, processes, changes):
    changes = {**changes, "kd_teacher_adapters": adapters}
    run = megatron_rlhf(tmp_path / name, {**flags, **changes}, processes).expect_success()
    assert "Merged 2 adapters into 28 weights of the teacher" in run.log
    tolerance = 1e-4 if name == "single" else 5e-3  # bf16 sums in another order under TP
    assert run.losses == pytest.approx(merged_run.losses, rel=tolerance)


def test_an_adapter_of_another_model_is_refused(flags, material, tmp_path):
    adapter = make_adapter(tmp_path / "adapter", material / "student", 5, **PLAIN)
    run = megatron_rlhf(tmp_path / "run", {**flags, "kd_teacher_adapters": adapter})
    assert run.code == 1
    assert "it belongs to another base model" in run.log
    assert "Traceback" not in run.log
