"""The recipes of examples/minimind, qwen25_lora_to_small and strong_to_weak on a laptop, through the real command."""

import json

import pytest

from tests.examples.recipes import run_tiny
from tests.machine import needs_cpu_backend

pytestmark = needs_cpu_backend


@pytest.mark.parametrize("student", ["dense", "moe"])
def test_minimind(student, tmp_path, tiny_models):
    run = run_tiny(tmp_path, tiny_models, f"minimind/{student}.yaml")
    (steps,) = run.steps.values()
    temperatures = [step["temperature"] for step in steps]
    assert temperatures == sorted(temperatures, reverse=True)
    assert (temperatures[0], temperatures[-1]) == (5, 1)
    assert steps[-1]["learning_rate"] == pytest.approx(1e-4)  # a tenth of lr
    assert "eval_divergence" in run.log


def test_minimind_progressive(tmp_path, tiny_models):
    run = run_tiny(tmp_path, tiny_models, "minimind/progressive.yaml")
    output = tmp_path / "output" / "minimind" / "progressive_tiny"
    stages = json.loads((output / "summary.json").read_text())["stages"]
    assert [stage["stage"] for stage in stages] == ["medium/off_policy", "small/off_policy"]
    args = json.loads((output / "small" / "off_policy" / "args.json").read_text())
    assert args["teacher_model"] == stages[0]["best"]["folder"]
    assert len(run.steps) == 2


def test_qwen25_lora_to_small(tmp_path, tiny_models):
    run_tiny(tmp_path, tiny_models, "qwen25_lora_to_small/run.yaml")
    rows = (tmp_path / "output" / "qwen25_lora_to_small_tiny" / "generate" / "responses.jsonl").read_text().splitlines()
    assert len(rows) >= 32


def test_strong_to_weak_with_a_local_teacher(tmp_path, tiny_models):
    run = run_tiny(tmp_path, tiny_models, "strong_to_weak/local_teacher.yaml")
    assert len(run.steps) == 2
