"""The local teacher: its forward, and its K most probable tokens where only those are wanted."""

from contextlib import contextmanager
from dataclasses import dataclass

import torch
from megatron.core import mpu
from swift.megatron.utils import forward_step_helper
from swift.rlhf_trainers.gkd_loss import TeacherOutput
from torch import Tensor
from transformers.utils import ContextManagers

from swift_kd_plugin.losses.shards import shards_of
from swift_kd_plugin.losses.topk import teacher_topk


@dataclass
class KDTeacherOutput(TeacherOutput):
    """`TeacherOutput` whose top-k entries are log-probabilities over the whole vocabulary, taken at `temperature`."""

    temperature: float = 1.0


def tensor_group():
    """The tensor-parallel group, or None where a rank holds the whole vocabulary."""
    return mpu.get_tensor_model_parallel_group() if mpu.get_tensor_model_parallel_world_size() > 1 else None


@contextmanager
def without_interleaving(args):
    """A separate teacher runs forward only: it is built and run as if no interleaved pipeline stages were asked for."""
    names = ("virtual_pipeline_model_parallel_size", "pipeline_model_parallel_layout")
    given = {name: getattr(args, name) for name in names}
    if given[names[0]] is None:
        yield
        return
    vars(args).update(dict.fromkeys(names))
    mpu.set_virtual_pipeline_model_parallel_world_size(None)
    try:
        yield
    finally:
        vars(args).update(given)
        mpu.set_virtual_pipeline_model_parallel_world_size(given[names[0]])


def score_locally(trainer, batches: list[dict], vp_stage: int | None = None) -> None:
    """Adds `teacher_output` to every micro-batch by a forward of the teacher on this machine.

    The teacher is the separate frozen model, or for self-distillation the student as it is now (its adapters off where
    the same model with LoRA is asked for).
    """
    if trainer._is_self_distillation:
        model = trainer.unwrapped_models[vp_stage or 0]
        adapters = trainer.peft_models if trainer._teacher_use_disable_adapter else []
        context = ContextManagers([peft_model.disable_adapter() for peft_model in adapters])
    else:
        model = trainer.teacher_models[vp_stage or 0]
        context = ContextManagers([trainer.load_teacher_model_context(), without_interleaving(trainer.args)])
    with torch.no_grad(), context:
        for index, batch in enumerate(batches):
            inputs = {k: v.clone() if isinstance(v, Tensor) else v for k, v in batch["teacher_model_inputs"].items()}
            data = trainer._prepare_batch(inputs, vp_stage)
            data.pop("loss_scale", None)
            labels = data.pop("labels", None)
            logits = forward_step_helper(model, data)
            step = index // trainer.args.num_microbatches
            batch["teacher_output"] = _output(trainer, logits, labels, trainer.temperature_of_step(step))


def _output(trainer, logits: Tensor | None, labels: Tensor | None, temperature: float) -> KDTeacherOutput:
    if logits is None or trainer.gkd_logits_topk is None:
        return KDTeacherOutput(full_logits=logits, labels=labels)
    flat, (batch, length) = logits.flatten(0, 1), logits.shape[:2]
    shard, _ = shards_of(flat, None, tensor_group(), trainer.vocabularies.teacher_columns(flat), None)
    log_probs, ids = teacher_topk(flat, trainer.gkd_logits_topk, shard, temperature)
    return KDTeacherOutput(
        topk_logprobs=log_probs.view(batch, length, -1),
        topk_indices=ids.view(batch, length, -1),
        labels=labels,
        temperature=temperature,
    )
