"""LoRA: what is frozen stays as it was, bit by bit, whatever is saved and synced on the way."""

import json

import pytest
from safetensors.torch import load_file

from tests.launching.commands import megatron_rlhf
from tests.machine import needs_cpu_backend
from tests.paths import BASE_MODEL, DATA, EXAMPLES
from tests.recorders.recorded_runs import assert_same_weights, train_and_record
from tests.tiny_models import make_pictures, make_vision_model

pytestmark = needs_cpu_backend

LORA = {"tuner_type": "lora", "target_modules": "all-linear", "lora_dropout": 0.0, "lr": 1e-2}
STEPS = 10


@pytest.mark.parametrize("layout", [{}, {"tensor_model_parallel_size": 2}], ids=["one process", "TP2"])
def test_saves_change_nothing(flags, layout, tmp_path):
    """The teacher is the student without its adapter, so that its weights would move as well."""
    processes = 2 if layout else 1
    changes = {**LORA, **layout, "teacher_model": flags["model"], "train_iters": STEPS}
    often = train_and_record(tmp_path / "often", flags, processes, save_steps=1, no_save_optim=True, **changes)
    once = train_and_record(tmp_path / "once", flags, processes, save_steps=5, **changes)
    assert often.curve == once.curve
    assert len(often.curve) == STEPS
    assert_same_weights(often, once)
    assert [rank["moved"] for rank in (*often.ranks, *once.ranks)] == [[]] * 2 * processes
    for name in ("checkpoint-10/adapter_model.safetensors", "checkpoint-10-merged/model.safetensors"):
        one, other = (load_file(recorded.run.output / name) for recorded in (often, once))
        assert one.keys() == other.keys()
        assert all(one[key].equal(other[key]) for key in one)

    changes |= {"mcore_adapter": once.run.output / "checkpoint-5", "finetune": False}
    resumed = train_and_record(tmp_path / "resumed", flags, processes, save_steps=5, **changes)
    assert resumed.curve == {step: once.curve[step] for step in list(once.curve)[5:]}
    assert_same_weights(resumed, once)


def test_ten_saves_and_twenty_syncs_change_nothing(flags, tmp_path):
    vllm = {"use_vllm": True, "vllm_mode": "colocate", "vllm_max_model_len": 160, "max_completion_length": 8}
    changes = {**LORA, **vllm, "model": BASE_MODEL, "teacher_model": BASE_MODEL, "dataset": DATA / "exp.jsonl"}
    changes |= {"lmbda": 1, "train_iters": 20, "save_steps": 2, "no_save_optim": True}
    recorded = train_and_record(tmp_path / "run", flags, **changes)
    (rank,) = recorded.ranks
    assert len(rank["synced"]) == 20
    assert len(list(recorded.run.output.glob("checkpoint-*-merged"))) == 10
    assert rank["moved"] == []


def test_the_adapter_of_a_vision_tower_is_merged(flags, tmp_path):
    """Its modules are PEFT's, which ms-swift leaves out."""
    student, teacher = (make_vision_model(tmp_path / str(hidden), "qwen2_5_vl", hidden) for hidden in (64, 128))
    make_pictures(tmp_path / "pictures")
    changes = {**LORA, "model": student, "teacher_model": teacher, "dataset": tmp_path / "pictures" / "pictures.jsonl"}
    changes |= {"template": "qwen2_5_vl", "model_type": "qwen2_5_vl", "teacher_model_type": "qwen2_5_vl"}
    changes |= {"freeze_vit": False, "freeze_aligner": False, "no_save_optim": True}
    changes["external_plugins"] = ["swift_kd_plugin", EXAMPLES / "without_torchvision.py"]
    run = megatron_rlhf(tmp_path / "run", {**flags, **changes}).expect_success()
    base, adapter = load_file(student / "model.safetensors"), load_file(run.checkpoint / "adapter_model.safetensors")
    merged = load_file(run.output / f"{run.checkpoint.name}-merged" / "model.safetensors")
    settings = json.loads((run.checkpoint / "adapter_config.json").read_text())
    adapted = [name.removesuffix(".lora_A.weight") for name in adapter if "visual" in name and ".lora_A." in name]
    assert adapted
    for name in adapted:
        weight = f"{name.removeprefix('base_model.model.')}.weight"
        delta = adapter[f"{name}.lora_B.weight"] @ adapter[f"{name}.lora_A.weight"]
        scale = settings["lora_alpha"] / settings["r"]
        assert delta.any()
        assert merged[weight].equal(base[weight] + (scale * delta).to(base[weight].dtype))


def test_rslora_is_trained_as_it_is_saved(flags, tmp_path):
    """Megatron's modules do not read the setting; who opens the adapter does."""
    run = megatron_rlhf(
        tmp_path / "run", {**flags, **LORA, "lora_rank": 4, "use_rslora": True, "lora_dropout": 0.05, "lr": 1e-1}
    ).expect_success()
    assert "--lora_dropout 0.05 has no effect" in run.log
    base, adapter = (
        load_file(flags["model"] / "model.safetensors"),
        load_file(run.checkpoint / "adapter_model.safetensors"),
    )
    merged = load_file(run.output / f"{run.checkpoint.name}-merged" / "model.safetensors")
    settings = json.loads((run.checkpoint / "adapter_config.json").read_text())
    assert settings["use_rslora"] is True
    for name in (name.removesuffix(".lora_A.weight") for name in adapter if ".lora_A." in name):
        weight = f"{name.removeprefix('base_model.model.')}.weight"
        delta = (adapter[f"{name}.lora_B.weight"].float() @ adapter[f"{name}.lora_A.weight"].float()) * (
            settings["lora_alpha"] / settings["r"] ** 0.5
        )
        changed = merged[weight].float() - base[weight].float()
        assert delta.norm() > 0
        assert (changed - delta).norm() < 0.05 * delta.norm(), name
