"""--kd_teacher_adapters against teachers that PEFT merged beforehand."""

import re
import shutil
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

from tests.examples.recipes import samples_in
from tests.launching.commands import Run, megatron_rlhf

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
def merged(material, adapters, tmp_path_factory) -> Path:
    """The teacher as PEFT merged it."""
    folder = tmp_path_factory.mktemp("merged") / "teacher"
    model = AutoModelForCausalLM.from_pretrained(material / "teacher", dtype=torch.float32)
    for adapter in adapters:
        model = PeftModel.from_pretrained(model, adapter).merge_and_unload()
    shutil.copytree(material / "teacher", folder)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def merged_run(flags, merged, tmp_path_factory):
    """The run with a teacher that PEFT merged."""
    return megatron_rlhf(tmp_path_factory.mktemp("merged_run"), {**flags, "teacher_model": merged}).expect_success()


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


def test_adapters_are_merged_before_the_teacher_is_quantised(flags, adapters, merged, tmp_path):
    """And one cache keeps its forms apart: with the adapters and merged, in 8 bits and as it is."""
    flags = {**flags, "kd_teacher_bits": 8, "kd_teacher_cache": tmp_path / "cache"}
    adapted = {**flags, "kd_teacher_adapters": adapters}
    expected = megatron_rlhf(tmp_path / "merged", {**flags, "teacher_model": merged}).expect_success()
    run = megatron_rlhf(tmp_path / "adapters", adapted).expect_success()
    assert of_teacher(run) == of_teacher(expected)
    assert samples_in(expected.log) == samples_in(run.log) == (0, 8)
    read = megatron_rlhf(tmp_path / "read", {**adapted, "kd_teacher_cache_mode": "read"}).expect_success()
    assert (read.losses, samples_in(read.log)) == (run.losses, (8, 0))
    changes = {"kd_teacher_bits": None, "kd_teacher_cache_mode": "read"}
    refused = megatron_rlhf(tmp_path / "refused", {**adapted, **changes})
    assert refused.code == 1
    assert "have bits 8, and this run has 16" in refused.log


def test_adapters_are_merged_before_the_teacher_is_cut_and_quantised(flags, adapters, merged, tmp_path):
    flags = {**flags, "kd_teacher_bits": 4, "tensor_model_parallel_size": 2}
    expected = megatron_rlhf(tmp_path / "merged", {**flags, "teacher_model": merged}, 2).expect_success()
    run = megatron_rlhf(tmp_path / "adapters", {**flags, "kd_teacher_adapters": adapters}, 2).expect_success()
    assert of_teacher(run) == of_teacher(expected)


def of_teacher(run: Run) -> tuple:
    """Losses, norms of the gradient, and how far the teacher is from its files with their adapters."""
    return run.losses, run.grad_norms, re.search(r"is ([\d.]+) nats a token", run.log)[1]


def test_an_adapter_of_another_model_is_refused(flags, material, tmp_path):
    adapter = make_adapter(tmp_path / "adapter", material / "student", 5, **PLAIN)
    run = megatron_rlhf(tmp_path / "run", {**flags, "kd_teacher_adapters": adapter})
    assert run.code == 1
    assert "it belongs to another base model" in run.log
    assert "Traceback" not in run.log
