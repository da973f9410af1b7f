"""The command that a finished run proposes."""

import shlex
from argparse import Namespace
from pathlib import Path

import pytest

from swift_kd_plugin.host.train.next_command import eval_command


def make_args(folder: Path, **changed) -> Namespace:
    flags = {
        "tuner_type": "full",
        "save_safetensors": True,
        "model": "Qwen/Qwen3-0.6B",
        "adapters": [],
        "model_type": "qwen3",
        "teacher_model": "Qwen/Qwen3-8B",
        "teacher_model_type": None,
        "kd_teacher_adapters": [],
        "kd_teacher_bits": None,
        "kd_teacher_head_bits": 16,
        "template": "qwen3",
        "use_chat_template": True,
        "system": None,
        "enable_thinking": None,
        "torch_dtype": None,
        "max_model_len": None,
        "kd_datasets": "data.yaml",
        "dataset": ["pairs#100"],
        "val_dataset": ["held out.jsonl"],
        "output_dir": str(folder),
    }
    return Namespace(**flags | changed)


def flags_of(args: Namespace, checkpoint: Path) -> dict[str, list[str]]:
    """The command as it is typed: the values of each flag."""
    words, flags = shlex.split(eval_command(args, checkpoint)), {}
    assert words[:2] == ["swift-kd", "eval"]
    for word in words[2:]:
        if word.startswith("--"):
            flags[word[2:]] = values = []
        else:
            values.append(word)
    return flags


def test_what_it_compares(tmp_path):
    folder = tmp_path / "my run"
    checkpoint = folder / "checkpoint-60"
    assert flags_of(make_args(folder), checkpoint) == {
        "model": [f"student={checkpoint}", "teacher=Qwen/Qwen3-8B"],
        "model_type": ["student=qwen3", "teacher=qwen3"],
        "template": ["qwen3"],
        "kd_datasets": ["data.yaml"],
        "dataset": ["held out.jsonl"],
        "metric": ["exact", "ppl"],
        "output": [str(folder / "eval")],
    }
    alone = flags_of(make_args(folder, teacher_model=None, val_dataset=[]), checkpoint)
    assert (alone["model"], alone["dataset"]) == ([f"student={checkpoint}"], ["pairs"])


def test_models_are_asked_as_they_were_trained(tmp_path):
    changed = {
        "system": "Answer in one word.",
        "enable_thinking": False,
        "torch_dtype": "torch.bfloat16",
        "max_model_len": 4096,
        "kd_teacher_adapters": ["a lora", "b"],
        "kd_teacher_bits": 8,
    }
    flags = flags_of(make_args(tmp_path, **changed), tmp_path / "checkpoint-60")
    assert flags["system"] == ["Answer in one word."]
    assert flags["thinking"] == ["off"]
    assert flags["torch_dtype"] == ["bfloat16"]
    assert flags["max_model_len"] == ["4096"]
    assert flags["adapters"] == ["teacher=a lora", "teacher=b"]
    assert flags["bits"] == ["teacher=8"]


@pytest.mark.parametrize(
    "changed", [{"teacher_model_server": "http://x"}, {"teacher_model_revision": "v2"}, {"kd_teacher_head_bits": 8}]
)
def test_a_teacher_that_eval_would_load_otherwise_is_left_out(tmp_path, changed):
    flags = flags_of(make_args(tmp_path, kd_teacher_bits=8, **changed), tmp_path / "checkpoint-60")
    assert len(flags["model"]) == 1
    assert "bits" not in flags


def test_a_student_of_lora(tmp_path):
    checkpoint, args = tmp_path / "checkpoint-60", make_args(tmp_path, tuner_type="lora", teacher_model=None)
    checkpoint.mkdir()
    assert eval_command(args, checkpoint) is None
    (checkpoint / "adapter_config.json").write_text("{}")
    flags = flags_of(args, checkpoint)
    assert (flags["model"], flags["adapters"]) == (["student=Qwen/Qwen3-0.6B"], [f"student={checkpoint}"])
    checkpoint.with_name("checkpoint-60-merged").mkdir()
    assert flags_of(args, checkpoint)["model"] == [f"student={checkpoint}-merged"]


@pytest.mark.parametrize(
    "changed", [{"use_chat_template": False}, {"response_prefix": "<think>"}, {"save_safetensors": False}]
)
def test_where_eval_would_ask_another_student_there_is_no_command(tmp_path, changed):
    assert eval_command(make_args(tmp_path, **changed), tmp_path / "checkpoint-60") is None
