"""A model that Megatron would build as another one, through the real command."""

import json
import shutil

import pytest
import torch
from transformers import Glm4Config, Glm4ForCausalLM

from swift_kd_plugin.host.samples.preview import load_training_template, preview
from tests.json_lines import read_json_lines, write_json_lines
from tests.launching.commands import megatron_rlhf
from tests.tiny_models import VOCABULARY, make_moe, make_tokenizer


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
    assert len(run.warnings("Megatron builds another model than its config.json says")) == 2


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


def test_a_teacher_is_built_as_its_own_kind(flags, material, tmp_path):
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
    sizes |= {"num_key_value_heads": 2, "head_dim": 16, "vocab_size": VOCABULARY, "pad_token_id": 0, "eos_token_id": 2}
    teacher = Glm4ForCausalLM(Glm4Config(**sizes)).float().eval()
    teacher.save_pretrained(tmp_path / "teacher")
    make_tokenizer().save_pretrained(tmp_path / "teacher")
    row = next(iter(read_json_lines(material / "sums.jsonl")))
    file = write_json_lines(tmp_path / "row.jsonl", [row])
    changes = {"teacher_model": tmp_path / "teacher", "teacher_model_type": "glm4", "val_dataset": file}
    changes |= {"train_iters": 1, "eval_steps": 1, "torch_dtype": "float32", "fp16": False, "bf16": False}
    run = megatron_rlhf(tmp_path / "run", {**flags, **changes}).expect_success()
    (figures,) = [line for line in read_json_lines(run.output / "logging.jsonl") if "eval_loss" in line]
    template = load_training_template(str(material / "student"), "qwen3", "qwen3", "last_round", None)
    pieces = preview(row, template)["student and teacher"]
    token_ids = torch.tensor([token for piece in pieces for token in piece.ids])
    trained = torch.tensor([piece.weight > 0 for piece in pieces for _ in piece.ids])
    with torch.no_grad():
        log_probs = teacher(token_ids[None]).logits[0, :-1].log_softmax(-1)
    told = -log_probs.gather(1, token_ids[1:, None])[trained[1:], 0].mean()
    assert figures["eval_teacher_ce"] == pytest.approx(told.item(), rel=1e-5)
