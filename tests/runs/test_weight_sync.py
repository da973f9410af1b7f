"""The colocated vLLM after training: it answers like transformers with the trained weights, and syncs leak nothing."""

import json
import shutil
from itertools import islice
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.launching.commands import Run, megatron_rlhf
from tests.machine import needs_cpu_backend
from tests.paths import BASE_MODEL, DATA, ROOT
from tests.tiny_models import make_moe

pytestmark = needs_cpu_backend

RECORDER = ROOT / "tests" / "recorders" / "record_weight_sync.py"
ROWS = DATA / "exp.jsonl"
QUESTIONS, SYNCS = 24, 200
# By how much the logit of a token that vLLM took may lie below the largest, in standard deviations of the logits: bf16
# here, float32 there.
ROUNDING = 0.1


@pytest.fixture(scope="module")
def moe(tmp_path_factory) -> Path:
    """Every expert is active: at a border between two, one bit of bf16 would decide."""
    return make_moe(tmp_path_factory.mktemp("moe") / "model", active=4)


CASES = {
    "one process": (1, {}),
    "TP2, LoRA": (2, {"tensor_model_parallel_size": 2, "tuner_type": "lora", "target_modules": "all-linear"}),
    "PP2": (2, {"pipeline_model_parallel_size": 2}),
    "EP2": (2, {"expert_model_parallel_size": 2, "model_type": "qwen3_moe", "teacher_model_type": "qwen3_moe"}),
}


def train(case: str, flags, moe: Path, folder: Path) -> Run:
    processes, changes = CASES[case]
    folder.mkdir()
    with ROWS.open(encoding="utf-8") as lines:
        (folder / "asked.jsonl").write_text("".join(islice(lines, QUESTIONS)), encoding="utf-8")
    model = moe if case == "EP2" else BASE_MODEL
    own = {
        "external_plugins": ["swift_kd_plugin", RECORDER],
        "model": model,
        "teacher_model": model,
        "dataset": ROWS,
        "lr": 1e-3,
        "lmbda": 1,
        "temperature": 0.0,
        "kd_temperature": 1.0,
        "vllm_mode": "colocate",
        "vllm_max_model_len": 160,
        "max_completion_length": 8,
        "no_save_optim": True,
        "merge_lora": True if "tuner_type" in changes else None,
    }
    env = {"KD_TEST_RECORD": str(folder), "KD_TEST_SYNCS": str(SYNCS if case == "one process" else 1)}
    return megatron_rlhf(folder / "run", {**flags, **own, **changes}, processes, env).expect_success()


@pytest.mark.parametrize("case", CASES)
def test_it_answers_like_transformers(case, flags, moe, tmp_path):
    run = train(case, flags, moe, tmp_path / "case")
    ranks = [json.loads(file.read_text()) for file in sorted((tmp_path / "case").glob("sync*.json"))]
    assert len(ranks) == CASES[case][0]
    assert all(rank["answers"] == ranks[0]["answers"] for rank in ranks)
    merged = run.output / f"{run.checkpoint.name}-merged"
    model = AutoModelForCausalLM.from_pretrained(merged if merged.exists() else run.checkpoint, dtype=torch.float32)
    for prompt, written in ranks[0]["answers"]:
        assert worst_distance(model, prompt, written) < ROUNDING
    if case == "one process":
        assert [greedy(model, prompt) for prompt, _ in ranks[0]["answers"]] == [w for _, w in ranks[0]["answers"]]
        assert_level(ranks[0]["resident"])
    shutil.rmtree(run.output)


@torch.no_grad()
def worst_distance(model, prompt: list[int], written: list[int]) -> float:
    """How far below the largest logit the taken ones lie at most, in standard deviations."""
    logits = model(torch.tensor([prompt + written])).logits[0, len(prompt) - 1 : -1]
    taken = logits.gather(1, torch.tensor(written)[:, None])[:, 0]
    return ((logits.max(-1).values - taken) / logits.std(-1)).max().item()


def greedy(model, prompt: list[int]) -> list[int]:
    ids = model.generate(torch.tensor([prompt]), do_sample=False, max_new_tokens=8)
    return ids[0, len(prompt) :].tolist()


def assert_level(resident: list[int]) -> None:
    """No growth from the first tenth on, but for what the allocator of the system keeps at hand."""
    assert len(resident) == SYNCS
    start, end = max(resident[: SYNCS // 10]), max(resident[-SYNCS // 10 :])
    assert end - start < 16 * 2**20, f"{(end - start) / 2**20:.1f} MiB in {SYNCS} syncs"
