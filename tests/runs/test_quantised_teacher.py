"""--kd_teacher_bits against teachers whose files hold the quantised values."""

import re
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from tests.json_lines import read_json_lines, write_json_lines
from tests.launching.commands import Run, environment, megatron_rlhf, run_tool
from tests.paths import ROOT
from tests.plain_quantisation import quantised_model
from tests.tiny_models import make_dense, make_moe

RECORDER = ROOT / "tests" / "recorders" / "record_quantised.py"


@pytest.fixture(scope="module")
def few(flags):
    """One micro-batch a step, so that the first step's figures are of the rows that are measured."""
    return {**flags, "global_batch_size": 2, "lr": 1e-3}


def kl_of(run: Run, bits: int) -> float:
    return float(re.search(rf"The teacher in {bits} bits is ([\d.]+) nats a token \(KL\)", run.log)[1])


def test_eight_bits_are_those_of_the_formulas(few, material, tmp_path):
    """Also the output layer, whole for the loss alone."""
    teacher = quantised_model(material / "teacher", tmp_path / "teacher", 8, ("_proj.weight", "lm_head.weight"))
    expected = megatron_rlhf(tmp_path / "files", {**few, "teacher_model": teacher}).expect_success()
    changes = {"kd_teacher_bits": 8, "kd_teacher_head_bits": 8, "offload_teacher_model": True}
    run = megatron_rlhf(tmp_path / "bits", {**few, **changes}).expect_success()
    assert run.losses == expected.losses
    assert run.grad_norms == expected.grad_norms
    assert "The teacher's linear weights are kept in 8 bits: 0.62 MiB on this rank in place of 1.22 MiB." in run.log
    assert 0 < kl_of(run, 8) < 1e-3


def test_four_bits_are_those_of_the_formulas_on_every_rank(few, material, tmp_path):
    teacher = quantised_model(material / "teacher", tmp_path / "teacher", 4)
    expected = megatron_rlhf(tmp_path / "files", {**few, "teacher_model": teacher}).expect_success()
    layout = {"tensor_model_parallel_size": 2, "sequence_parallel": True, "offload_teacher_model": True}
    run = megatron_rlhf(tmp_path / "bits", {**few, **layout, "kd_teacher_bits": 4}, 2).expect_success()
    assert run.losses == pytest.approx(expected.losses, rel=2e-3)  # bf16 sums in another order
    assert "0.16 MiB on this rank in place of 0.56 MiB" in run.log
    # The same distance, as a loss between two models of files.
    models = {"model": teacher, "teacher_model": material / "teacher", "train_iters": 1, "temperature": 1}
    distance = megatron_rlhf(tmp_path / "distance", {**few, **models}).expect_success()
    assert kl_of(run, 4) == pytest.approx(distance.steps[0]["forward_kl"], rel=1e-2)


def test_experts_are_quantised_one_by_one(few, tmp_path):
    kinds = {"model_type": "qwen3_moe", "teacher_model_type": "qwen3_moe", "moe_aux_loss_coeff": 0}
    student, teacher = (make_moe(tmp_path / name, hidden, active=4) for name, hidden in (("s", 64), ("t", 128)))
    flags = {**few, **kinds, "model": student, "teacher_model": teacher}
    files = quantised_model(teacher, tmp_path / "teacher-4", 4)
    expected = megatron_rlhf(tmp_path / "files", {**flags, "teacher_model": files}).expect_success()
    layout = {"expert_model_parallel_size": 2, "micro_batch_size": 1, "kd_teacher_bits": 4}
    run = megatron_rlhf(tmp_path / "bits", {**flags, **layout}, 2).expect_success()
    assert run.losses == pytest.approx(expected.losses, rel=1e-3)


LAYOUTS = {
    "one": {},
    "TP2": {"tensor_model_parallel_size": 2, "sequence_parallel": True},
    "TP4": {"tensor_model_parallel_size": 4, "sequence_parallel": True},
    "ETP2": {"tensor_model_parallel_size": 2, "sequence_parallel": True, "expert_tensor_parallel_size": 2},
}


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_has_the_same_weights(few, tmp_path, layout, bits):
    """Of experts, too, where the ranks' parts of a row are 48, 72 or 96 wide and groups of 64 lie on two of them."""
    make, kind = (make_moe, "qwen3_moe") if "ETP" in layout else (make_dense, "qwen3")
    sizes = {"hidden": 96} if make is make_moe else {"hidden": 96, "intermediate_size": 288, "num_key_value_heads": 4}
    teacher = make(tmp_path / "teacher", **sizes)
    flags = {**few, **LAYOUTS[layout], "teacher_model": teacher, "teacher_model_type": kind, "kd_teacher_bits": bits}
    if make is make_moe:
        flags |= {"model": make(tmp_path / "student", hidden=64), "model_type": kind, "moe_aux_loss_coeff": 0}
    flags |= {"train_iters": 1, "external_plugins": ["swift_kd_plugin", RECORDER], "global_batch_size": 4}
    file = tmp_path / "weights.safetensors"
    ranks = int(layout[-1]) if layout[-1].isdigit() else 1
    megatron_rlhf(tmp_path / "run", flags, ranks, {"KD_TEST_QUANTISED": str(file)}).expect_success()
    weights = load_file(file)
    expected = load_file(quantised_model(teacher, tmp_path / "files", bits) / "model.safetensors")
    names = [name for name in expected if name.endswith("_proj.weight")]
    assert len(names) >= 4 * 7
    assert [name for name in names if not torch.equal(weights[name], expected[name].bfloat16())] == []


def test_replicas_that_read_wait_for_none_that_ask(few, material, tmp_path):
    """Of two replicas one finds all its rows in the cache: they measure the distance together, or the run stands
    still."""
    rows = read_json_lines(material / "sums.jsonl")[:4]
    flags = {**few, "micro_batch_size": 1, "train_iters": 2, "kd_teacher_bits": 8, "kd_teacher_cache": tmp_path / "c"}
    flags |= {"dataset_shuffle": False, "train_dataloader_shuffle": False}
    half = {"dataset": write_json_lines(tmp_path / "half.jsonl", rows[::2]), "kd_teacher_cache_mode": "fill"}
    megatron_rlhf(tmp_path / "fill", {**flags, **half}).expect_success()
    all_rows = {"dataset": write_json_lines(tmp_path / "all.jsonl", rows)}
    run = megatron_rlhf(tmp_path / "run", {**flags, **all_rows}, 2).expect_success()
    assert "2 samples were read, 2 scored" in run.log
    assert 0 < kl_of(run, 8) < 1e-3


def test_what_writes_is_what_scores(few, tmp_path):
    """A copy in transformers, which is chosen by itself, is kept in as few bits and writes what the Megatron teacher
    does."""
    flags = {**few, "teacher_model": make_dense(tmp_path / "teacher", hidden=96), "torch_dtype": "float32"}
    flags |= {"fp16": False, "bf16": False, "seq_kd": True, "kd_teacher_temperature": 0, "log_completions": True}
    flags |= {"use_vllm": False, "max_completion_length": 12, "micro_batch_size": 4, "global_batch_size": 4}
    bits = {"kd_teacher_bits": 4}
    runs = {
        "copy": megatron_rlhf(tmp_path / "copy", {**flags, **bits}).expect_success(),
        "megatron": megatron_rlhf(tmp_path / "m", {**flags, **bits, "kd_teacher_engine": "megatron"}).expect_success(),
        "whole": megatron_rlhf(tmp_path / "whole", flags).expect_success(),
    }
    assert "What the teacher writes comes from CopyWriter" in runs["copy"].log
    said = {name: completions(run) for name, run in runs.items()}
    assert said["copy"] == said["megatron"]
    assert said["copy"] != said["whole"]
    assert runs["copy"].losses == pytest.approx(runs["megatron"].losses, rel=1e-4)


def completions(run: Run) -> list[tuple[str, str]]:
    """Prompt and response of all that the teacher wrote, sorted."""
    return sorted((row["prompt"], row["completion"]) for row in read_json_lines(run.output / "completions.jsonl"))


def evaluated(run: Run) -> list[float]:
    return [row["eval_loss"] for row in read_json_lines(run.output / "logging.jsonl") if "eval_loss" in row]


def test_it_scores_alone(few, tmp_path):
    """What is read then is what it says within a run, and another form than that of the whole teacher. Rows that are
    held out are there, too."""
    held_out = write_json_lines(tmp_path / "held_out.jsonl", [{"query": "say 99", "response": "99"}])
    few = {**few, "val_dataset": held_out, "eval_steps": 1}
    online = megatron_rlhf(tmp_path / "online", {**few, "kd_teacher_bits": 8}).expect_success()
    keys = {name: str(value) if isinstance(value, Path) else value for name, value in few.items()}
    keys |= {"kd_teacher_bits": 8, "kd_teacher_cache": str(tmp_path / "cache")}
    del keys["external_plugins"], keys["rlhf_type"]
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(keys | {"output_dir": "output"}))
    code, log, _ = run_tool(["swift-kd", "score", "run.yaml"], tmp_path, environment(None))
    assert code == 0, log[-3000:]
    assert "The teacher in 8 bits is" in log
    reads = {"kd_teacher_cache": tmp_path / "cache", "kd_teacher_cache_mode": "read"}
    run = megatron_rlhf(tmp_path / "read", {**few, **reads, "kd_teacher_bits": 8}).expect_success()
    assert run.losses == online.losses
    assert evaluated(run) == evaluated(online) != []
    whole = megatron_rlhf(tmp_path / "whole", {**few, **reads})
    assert whole.code == 1
    assert "have bits 8, and this run has 16" in " ".join(whole.log.split())
