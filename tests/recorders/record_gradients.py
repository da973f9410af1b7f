"""An external plugin for tests: writes every gradient after the first step, whatever the layout, in one form.

For a moment the gradients stand in the weights' place and go through mcore-bridge's export, which gathers the shards of
all ranks into Hugging Face names and shapes. The file's name comes from KD_TEST_GRADIENTS.
"""

import os
from contextlib import contextmanager

import torch
from megatron.core import mpu
from megatron.core.distributed.param_and_grad_buffer import shard_buffer
from safetensors.torch import save_file
from swift.megatron.trainers.base import BaseMegatronTrainer
from torch import distributed as dist

stock_setup = BaseMegatronTrainer.setup_model_training


def setup_model_training(self):
    stock_setup(self)
    stock_step = self.optimizer.step

    def step():
        self.optimizer.step = stock_step
        write_gradients(self, os.environ["KD_TEST_GRADIENTS"])
        return stock_step()

    self.optimizer.step = step


def write_gradients(trainer, file: str) -> None:
    for model in trainer.wrapped_models:
        gather_optimizer_shards(model)
    with gradients_in_place_of_weights(trainer.unwrapped_models):
        is_lora = trainer.args.tuner_type == "lora"
        exported = trainer.bridge.export_weights(trainer.unwrapped_models, peft_format=is_lora)
        gradients = {name: tensor.float().clone().contiguous() for name, tensor in exported}
    gradients |= projection_gradients(trainer.unwrapped_models)
    if dist.get_rank() == dist.get_world_size() - 1:
        save_file(gradients, file)
    dist.barrier()


def projection_gradients(models) -> dict[str, torch.Tensor]:
    """Of the projections of matched features, which no export has: by pair of layers, from whichever rank has them."""
    found = {
        f"projection of {name.split('.')[-2]}": parameter.main_grad.float().clone()
        for model in models
        for name, parameter in model.named_parameters()
        if "kd_features" in name
    }
    ranks = [None] * dist.get_world_size()
    dist.all_gather_object(ranks, found)
    return {name: gradient for rank in ranks for name, gradient in rank.items()}


@contextmanager
def gradients_in_place_of_weights(models):
    """Every module's parameters are replaced by parameters that hold their gradients (fp32), and come back after.

    The parameters themselves are left alone: assigning `.data` of another type would cut them from their gradient
    accumulators.
    """
    originals = []
    for module in (module for model in models for module in model.modules()):
        for name, param in module._parameters.items():
            if param is not None:
                originals.append((module, name, param))
                gradient = getattr(param, "main_grad", None)
                shown = torch.zeros_like(param) if gradient is None else gradient.float().clone()
                module._parameters[name] = torch.nn.Parameter(shown, requires_grad=False)
                module._parameters[name].__dict__.update(param.__dict__)
    yield
    for module, name, param in originals:
        module._parameters[name] = param


def gather_optimizer_shards(model) -> None:
    """With the distributed optimizer each data-parallel rank holds the sum of its own shard only."""
    if not model.ddp_config.use_distributed_optimizer:
        return
    groups = [(model.buffers, mpu.get_data_parallel_group(with_context_parallel=True))]
    groups.append((model.expert_parallel_buffers, mpu.get_expert_data_parallel_group()))
    for buffers, group in groups:
        size = dist.get_world_size(group)
        for bucket in (bucket for buffer in buffers for bucket in buffer.buckets):
            own = shard_buffer(bucket.grad_data, size)[dist.get_rank(group)].clone()
            dist.all_gather_into_tensor(bucket.grad_data, own, group=group)


BaseMegatronTrainer.setup_model_training = setup_model_training
