"""An external plugin for tests: each rank writes what it saw of its own model to `<KD_TEST_RECORD>/rank<n>.pt`.

- `first`, `last`: logits of the tokens in `<KD_TEST_RECORD>/probe.pt` before the first and after the last step, in
  evaluation mode, with the whole vocabulary
- `trained`: this rank's trainable weights after the last step
- `moved`: names of its frozen weights that are not what they were before the first step, bit by bit
- `answers`: each answer of the colocated vLLM, with vLLM's log-probabilities and the model's own logits
- `scored`: the ids that models wrote and the ids that the loss is about, of each micro-batch
- `vllm_distances`: after each weight sync, per weight of vLLM, the largest difference to the trainer's
- `synced`: one of the trainer's weights at each sync
"""

import os
from pathlib import Path

import torch
from megatron.core.tensor_parallel import gather_from_tensor_model_parallel_region
from swift.megatron.trainers.base import BaseMegatronTrainer
from swift.megatron.trainers.rollout_mixin import MegatronRolloutMixin
from swift.megatron.utils import get_packed_seq_params
from torch import distributed as dist

from swift_kd_plugin.host.train.trainer import KDTrainer

FUSED = {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj")}
FOLDER = Path(os.environ["KD_TEST_RECORD"])
PROBE = torch.load(FOLDER / "probe.pt")
RECORD: dict = {"answers": [], "scored": [], "vllm_distances": [], "synced": []}

stock_setup = BaseMegatronTrainer.setup_model_training
stock_finalize = BaseMegatronTrainer.finalize_training
stock_rollout = MegatronRolloutMixin._colocate_rollout
stock_sync = MegatronRolloutMixin._move_model_to_vllm
encode_samples = KDTrainer._encode_samples


def setup_model_training(self):
    stock_setup(self)
    RECORD["first"] = read_logits(self, PROBE)
    RECORD["moved"] = read_weights(self, trained=False)


def finalize_training(self):
    stock_finalize(self)
    RECORD["last"] = read_logits(self, PROBE)
    RECORD["trained"] = read_weights(self, trained=True)
    now = read_weights(self, trained=False)
    RECORD["moved"] = [name for name, weight in RECORD["moved"].items() if not weight.equal(now[name])]
    torch.save(RECORD, FOLDER / f"rank{dist.get_rank()}.pt")


def read_weights(trainer, trained: bool) -> dict[str, torch.Tensor]:
    """Copies of this rank's trainable or frozen weights."""
    named = [item for model in trainer.unwrapped_models for item in model.named_parameters()]
    return {name: weight.detach().clone() for name, weight in named if weight.requires_grad == trained}


@torch.no_grad()
def read_logits(trainer, tokens: torch.Tensor) -> torch.Tensor:
    """tokens [T] to logits [T, V], as one packed sample."""
    (model,) = trainer.unwrapped_models
    positions = torch.arange(len(tokens))[None]
    was_training = model.training
    model.eval()
    logits = model(
        input_ids=tokens[None],
        position_ids=positions,
        attention_mask=None,
        packed_seq_params=get_packed_seq_params(trainer.args, positions),
    )
    model.train(was_training)
    return gather_from_tensor_model_parallel_region(logits)[0].float()


def colocate_rollout(self, samples, request_config):
    outputs = stock_rollout(self, samples, request_config)
    for output in outputs:
        choice = output.response.choices[0]
        prompt = output.response.prompt_token_ids
        logits = read_logits(self, torch.tensor([*prompt, *choice.token_ids]))
        RECORD["answers"].append(
            {
                "prompt": torch.tensor(prompt),
                "tokens": torch.tensor(choice.token_ids),
                "logprobs": torch.tensor([entry["logprob"] for entry in choice.logprobs["content"]]),
                # Position i predicts token i + 1.
                "logits": logits[len(prompt) - 1 : -1],
            }
        )
    return outputs


def move_model_to_vllm(self):
    stock_sync(self)
    truth = {name: tensor.clone() for name, tensor in self.bridge.export_weights(self.unwrapped_models)}
    found = dict(self.engine.inner_model.named_parameters())
    RECORD["vllm_distances"].append({name: measure_distance(name, weight, truth) for name, weight in found.items()})
    RECORD["synced"].append(truth["model.layers.0.mlp.down_proj.weight"])


def record_scored(self, samples):
    batch = encode_samples(self, samples)
    labels = batch["labels"]
    written = [token for sample in samples for token in sample.written_ids]
    RECORD["scored"].append((written, labels[labels != -100].tolist()))
    return batch


def measure_distance(name: str, weight: torch.Tensor, truth: dict[str, torch.Tensor]) -> float:
    """The largest difference between a weight of vLLM and the trainer's; vLLM fuses some and pads the vocabulary."""
    fused = next((part for part in FUSED if part in name), None)
    parts = [name.replace(fused, part) for part in FUSED[fused]] if fused else [name]
    true = torch.cat([truth[part] for part in parts])
    if weight.shape[1:] != true.shape[1:] or len(weight) < len(true):
        return float("inf")
    return (weight[: len(true)].float() - true.float()).abs().max().item()


BaseMegatronTrainer.setup_model_training = setup_model_training
BaseMegatronTrainer.finalize_training = finalize_training
MegatronRolloutMixin._colocate_rollout = colocate_rollout
MegatronRolloutMixin._move_model_to_vllm = move_model_to_vllm
KDTrainer._encode_samples = record_scored
