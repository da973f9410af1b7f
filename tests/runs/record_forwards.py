"""An external plugin for tests: every rank writes what went through it to `<KD_TEST_RECORD>/rank<n>.pt`.

Of each training step: the tokens and logits of the first micro-batch (with the whole vocabulary, gathered over tensor
parallelism), what vLLM answered, how far vLLM's weights are from the trainer's; at the end the trainable weights of
this rank.
"""

import os

import torch
from megatron.core import mpu
from megatron.core.tensor_parallel import gather_from_tensor_model_parallel_region
from swift.megatron.trainers.base import BaseMegatronTrainer
from swift.megatron.trainers.rollout_mixin import MegatronRolloutMixin
from torch import distributed as dist

FUSED = {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj")}
RECORD: dict[str, list | dict] = {"forwards": [], "answers": [], "vllm_distances": [], "synced": []}

stock_setup = BaseMegatronTrainer.setup_model_training
stock_finalize = BaseMegatronTrainer.finalize_training
stock_rollout = MegatronRolloutMixin._colocate_rollout
stock_sync = MegatronRolloutMixin._move_model_to_vllm


def setup_model_training(self):
    stock_setup(self)
    step = self.state.iteration - 1

    def keep(_model, _args, inputs, logits):
        nonlocal step
        if self.state.iteration != step and logits is not None and mpu.is_pipeline_last_stage():
            step = self.state.iteration
            RECORD["forwards"].append(describe_forward(step + 1, inputs, logits.detach()))

    self.unwrapped_models[0].register_forward_hook(keep, with_kwargs=True)


def describe_forward(step: int, inputs: dict, logits: torch.Tensor) -> dict:
    """The tokens of each sample and their logits; step counts from 1."""
    logits = gather_from_tensor_model_parallel_region(logits)[0].float()
    ends = inputs["packed_seq_params"].cu_seqlens_q.tolist()[1:]
    tokens = inputs["input_ids"][0]
    starts = [0, *ends[:-1]]
    return {
        "step": step,
        "tokens": [tokens[a:b].clone() for a, b in zip(starts, ends, strict=True)],
        "logits": [logits[a:b].clone() for a, b in zip(starts, ends, strict=True)],
    }


def colocate_rollout(self, samples, request_config):
    outputs = stock_rollout(self, samples, request_config)
    for output in outputs:
        choice = output.response.choices[0]
        logprobs = [entry["logprob"] for entry in choice.logprobs["content"]]
        RECORD["answers"].append(
            {"step": self.state.iteration + 1, "tokens": list(choice.token_ids), "logprobs": logprobs}
        )
    return outputs


def move_model_to_vllm(self):
    stock_sync(self)
    truth = {name: tensor.clone() for name, tensor in self.bridge.export_weights(self.unwrapped_models)}
    found = dict(self.engine.inner_model.named_parameters())
    RECORD["vllm_distances"].append({name: distance(name, found[name], truth) for name in found})
    RECORD["synced"].append(truth["model.layers.0.mlp.down_proj.weight"])


def distance(name: str, weight: torch.Tensor, truth: dict[str, torch.Tensor]) -> float:
    """The largest difference between a weight of vLLM and the trainer's; infinite if the shapes differ."""
    for fused, parts in FUSED.items():
        if fused in name:
            true = torch.cat([truth[name.replace(fused, part)] for part in parts])
            break
    else:
        true = truth[name]
    if weight.shape[1:] != true.shape[1:] or weight.shape[0] < true.shape[0]:
        return float("inf")
    return (weight[: true.shape[0]].float() - true.float()).abs().max().item()


def finalize_training(self):
    stock_finalize(self)
    RECORD["trained"] = {
        name: (param.detach().clone(), bool(getattr(param, "tensor_model_parallel", False)))
        for model in self.unwrapped_models
        for name, param in model.named_parameters()
        if param.requires_grad
    }
    torch.save(RECORD, os.path.join(os.environ["KD_TEST_RECORD"], f"rank{dist.get_rank()}.pt"))


BaseMegatronTrainer.setup_model_training = setup_model_training
BaseMegatronTrainer.finalize_training = finalize_training
MegatronRolloutMixin._colocate_rollout = colocate_rollout
MegatronRolloutMixin._move_model_to_vllm = move_model_to_vllm
