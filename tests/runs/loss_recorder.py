"""An external plugin for tests: each rank writes what went into every loss of training and what came out of it, to
`<KD_TEST_RECORD>/losses<rank>.pt`: the student's logits, labels, loss_scale, the teacher's output, who wrote what, the
loss, its number of tokens, and the gradient that went into the logits."""

import os
from pathlib import Path

import torch
from swift.megatron.trainers.base import BaseMegatronTrainer
from torch import distributed as dist

from swift_kd_plugin.host.trainer import KDTrainer

FOLDER = Path(os.environ["KD_TEST_RECORD"])
RECORDS: list[dict] = []

loss_func = KDTrainer.loss_func
finalize = BaseMegatronTrainer.finalize_training


def record_loss(self, output_tensor, *, labels, teacher_output, responses, loss_scale):
    record = {
        "iteration": self.state.iteration,
        "logits": output_tensor.detach().clone(),
        "labels": labels.clone(),
        "loss_scale": None if loss_scale is None else loss_scale.clone(),
        "teacher": {name: value for name, value in vars(teacher_output).items() if value is not None},
        "index": responses.index,
        "vocabularies": (self.vocabularies.student, self.vocabularies.teacher),
    }
    if output_tensor.requires_grad:
        output_tensor.register_hook(lambda gradient: record.update(gradient=gradient.detach().clone()))
    loss, count, metrics = loss_func(
        self, output_tensor, labels=labels, teacher_output=teacher_output, responses=responses, loss_scale=loss_scale
    )
    RECORDS.append(record)
    record.update(loss=loss.detach().clone(), count=count.clone(), metrics=metrics)
    return loss, count, metrics


def finalize_training(self):
    finalize(self)
    torch.save(RECORDS, FOLDER / f"losses{dist.get_rank()}.pt")


KDTrainer.loss_func = record_loss
BaseMegatronTrainer.finalize_training = finalize_training
