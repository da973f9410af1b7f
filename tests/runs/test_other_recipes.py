"""The recipes of examples/minimind, qwen25_lora_to_small and strong_to_weak on a laptop, through the real command."""

import json

import pytest

from tests.examples.recipes import run_tiny, samples_used
from tests.machine import needs_cpu_backend

pytestmark = needs_cpu_backend


@pytest.mark.parametrize("student", ["dense", "features", "moe"])
def test_minimind(student, tmp_path, tiny_models):
    run = run_tiny(tmp_path, tiny_models, f"minimind/{student}.yaml")
    (steps,) = run.steps.values()
    temperatures = [step["temperature"] for step in steps]
    assert temperatures == sorted(temperatures, reverse=True)
    assert (temperatures[0], temperatures[-1]) == (5, 1)
    assert steps[-1]["learning_rate"] == pytest.approx(1e-4)  # a tenth of lr
    assert "eval_divergence" in run.log
    if student == "features":
        assert [steps[step]["feature_weight"] for step in (0, -1)] == [1, 0]
        assert {"feature_1_2", "feature_2_4"} <= steps[0].keys()


def test_minimind_progressive(tmp_path, tiny_models):
    run = run_tiny(tmp_path, tiny_models, "minimind/progressive.yaml")
    output = tmp_path / "output" / "minimind" / "progressive_tiny"
    stages = json.loads((output / "summary.json").read_text())["stages"]
    assert [stage["stage"] for stage in stages] == ["medium/off_policy", "small/off_policy"]
    args = json.loads((output / "small" / "off_policy" / "args.json").read_text())
    assert args["teacher_model"] == stages[0]["best"]["folder"]
    assert len(run.steps) == 2
    scored = [samples_used(output / name / "off_policy") for name in ("medium", "small")]
    assert scored == [(24 * 2 + 8 * 2, 24 + 8)] * 2  # 24 rows and 8 of validation, three times each


@pytest.mark.parametrize(("recipe", "output"), [("run", "small_tiny"), ("teacher_8bit", "small_8bit_tiny")])
def test_qwen25_lora_to_small(recipe, output, tmp_path, tiny_models):
    run_tiny(tmp_path, tiny_models, f"qwen25_lora_to_small/{recipe}.yaml")
    folder = tmp_path / "output" / f"qwen25_lora_to_{output}"
    assert len((folder / "generate" / "responses.jsonl").read_text().splitlines()) >= 32
    log = (folder / "off_policy" / "train.log").read_text()
    assert ("linear weights are kept in 8 bits" in log) == (recipe == "teacher_8bit")
    read, scored = samples_used(folder / "off_policy")
    assert read > 0  # of validation
    assert scored >= 32


def test_strong_to_weak_with_a_local_teacher_in_four_bits(tmp_path, tiny_models):
    """Its `base` is the recipe with the teacher as it is."""
    run = run_tiny(tmp_path, tiny_models, "strong_to_weak/local_teacher_4bit.yaml")
    assert len(run.steps) == 2
    for stage in ("off_policy", "on_policy"):
        log = tmp_path / "output" / "strong_to_weak_local_4bit_tiny" / stage / "train.log"
        assert "linear weights are kept in 4 bits" in log.read_text()
        assert ("--kd_teacher_cache" in log.read_text()) == (stage == "off_policy")
