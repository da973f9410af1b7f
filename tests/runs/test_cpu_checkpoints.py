"""Checkpoints on the CPU backend: a run goes on from one, and transformers and peft read the same model from it."""

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from tests.machine import needs_cpu_backend
from tests.recorders.recorded_runs import Recorded, assert_same_weights, read_probe, relative_distance, train_and_record

pytestmark = needs_cpu_backend

# Relative distance of Megatron's logits in bf16 to those of transformers in fp32, with the same bf16 weights. Seen: up
# to 0.012, as far as transformers in bf16 is from itself in fp32. The steps of these runs move the logits by 0.4 to 1.
BF16 = 0.02
LORA = {"tuner_type": "lora", "target_modules": "all-linear", "lora_dropout": 0.1, "lr": 1e-2, "no_save_optim": True}


def load(folder) -> torch.nn.Module:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).float()


def load_adapter(base, folder) -> torch.nn.Module:
    return PeftModel.from_pretrained(load(base), folder).float()


@pytest.fixture(scope="module")
def trained(flags, tmp_path_factory) -> Recorded:
    """One process, full training, with the optimizer in its checkpoints; a high rate, so that a step shows."""
    folder = tmp_path_factory.mktemp("checkpoints") / "run"
    return train_and_record(folder, flags, train_iters=4, save_steps=2, lr=1e-2)


def test_a_resumed_run_goes_on_as_if_it_had_not_stopped(flags, trained, tmp_path):
    changes = {"train_iters": 4, "lr": 1e-2, "mcore_model": trained.run.output / "checkpoint-2", "finetune": False}
    resumed = train_and_record(tmp_path / "run", flags, **changes)
    assert resumed.curve == {step: trained.curve[step] for step in ("3/4", "4/4")}
    assert_same_weights(resumed, trained)

    # The weights in the distributed format and those in safetensors are of the same moment.
    exported = load(trained.run.output / "checkpoint-2")
    assert relative_distance(read_probe(exported), resumed.ranks[0]["first"]) < BF16


def test_transformers_reads_what_was_trained(material, trained):
    start, end = trained.ranks[0]["first"], trained.ranks[0]["last"]
    assert relative_distance(read_probe(load(material / "student")), start) < BF16
    assert relative_distance(read_probe(load(trained.run.checkpoint)), end) < BF16
    assert relative_distance(start, end) > 10 * BF16


def test_a_fresh_adapter_is_saved_alone(flags, material, tmp_path):
    recorded = train_and_record(tmp_path / "run", flags, merge_lora=False, **LORA)
    assert not list(recorded.run.output.glob("*-merged"))
    rank = recorded.ranks[0]
    adapted = load_adapter(material / "student", recorded.run.checkpoint)
    assert relative_distance(read_probe(adapted), rank["last"]) < BF16
    assert relative_distance(rank["first"], rank["last"]) > 10 * BF16
    assert relative_distance(read_probe(load(material / "student")), rank["first"]) < BF16


def test_a_fresh_adapter_is_saved_with_merged_weights(flags, material, tmp_path):
    recorded = train_and_record(
        tmp_path / "run", flags, processes=2, tensor_model_parallel_size=2, merge_lora=True, **LORA
    )
    truth = recorded.ranks[0]["last"]
    folder = recorded.run.output / "checkpoint-2"
    assert relative_distance(read_probe(load_adapter(material / "student", folder)), truth) < BF16
    assert relative_distance(read_probe(load(f"{folder}-merged")), truth) < BF16

    first, second = (rank["trained"] for rank in recorded.ranks)
    shared = [n for n in first if ("linear_qkv.lora_A" in n or "linear_fc1.lora_A" in n or "_proj.lora_B" in n)]
    assert len(shared) == 4 * 3
    assert all(torch.equal(first[name], second[name]) for name in shared)
    drawn = [weight for name, weight in first.items() if "lora_A" in name]
    assert len({tuple(weight[0].tolist()) for weight in drawn}) == len(drawn) == 4 * 4
