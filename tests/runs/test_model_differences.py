"""A model that Megatron would build as another one, through the real command."""

import json
import shutil

import pytest

from tests.json_lines import read_json_lines, write_json_lines
from tests.launching.commands import megatron_rlhf
from tests.tiny_models import make_moe


@pytest.fixture(scope="module")
def models(material, tmp_path_factory):
    """Student and teacher with other settings than those that their weights were made with."""
    folder = tmp_path_factory.mktemp("different")

    def make(name: str, **settings):
        shutil.copytree(material / name, folder / name)
        file = folder / name / "config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | settings))
        return folder / name

    window = {"use_sliding_window": True, "sliding_window": 100, "max_window_layers": 0, "layer_types": None}
    return {"student": make("student", hidden_act="gelu"), "teacher": make("teacher", **window)}


def test_student_and_teacher_are_refused_by_name(flags, models, tmp_path):
    run = megatron_rlhf(tmp_path / "student", {**flags, "model": models["student"]})
    assert run.code == 1
    assert f"error: --model {models['student']}: Megatron builds another model" in run.log
    assert "hidden_act 'gelu' becomes silu. Choose another model, or train" in run.log
    run = megatron_rlhf(tmp_path / "teacher", {**flags, "teacher_model": models["teacher"]}, processes=2)
    assert run.code == 1
    assert "sliding_window 100 is left out, and attention goes over all of a sequence of up to 256 tokens" in run.log
    assert "Traceback" not in run.log


def test_a_flag_makes_it_a_warning(flags, models, tmp_path):
    changes = {"model": models["student"], "teacher_model": models["teacher"], "kd_allow_model_differences": True}
    run = megatron_rlhf(tmp_path, {**flags, **changes, "train_iters": 1}).expect_success()
    assert run.log.count("Megatron builds another model than its config.json says") == 2


def test_a_window_that_only_a_teachers_view_passes(flags, material, models, tmp_path):
    rows = read_json_lines(material / "sums.jsonl")
    short = {**flags, "teacher_model": models["teacher"], "max_length": 100, "train_iters": 1}
    megatron_rlhf(tmp_path / "short", short).expect_success()
    for row in rows:
        row["teacher_prompt"] = " 7" * 200 + row["messages"][0]["content"]
    long = write_json_lines(tmp_path / "long.jsonl", rows)
    run = megatron_rlhf(tmp_path / "long", {**short, "dataset": long})
    assert run.code == 1
    assert "has a sliding window of 100, which Megatron leaves out; shorten the row" in run.log


def test_the_balancing_loss_of_experts_is_said(flags, material, tmp_path):
    student = make_moe(tmp_path / "student")
    kind = {"model": student, "model_type": "qwen3_moe", "train_iters": 1}
    run = megatron_rlhf(tmp_path / "run", {**flags, **kind}).expect_success()
    assert run.log.count("give --moe_aux_loss_coeff 0.001 to balance the experts") == 1
