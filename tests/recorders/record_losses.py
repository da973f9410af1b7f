"""An external plugin for tests: each rank writes what went into every loss of training and what came out of it, to
`<KD_TEST_RECORD>/losses<rank>.pt`: the student's logits or hidden states and head, labels, loss_scale, what the teacher
says, who wrote what, the loss, its number of tokens, and the gradient that went into the logits or hidden states."""

import os
from pathlib import Path

import torch
from swift.megatron.trainers.base import BaseMegatronTrainer
from torch import distributed as dist

from swift_kd_plugin.host.train.trainer import KDTrainer

FOLDER = Path(os.environ["KD_TEST_RECORD"])
RECORDS: list[dict] = []

loss_func = KDTrainer.loss_func
finalize = BaseMegatronTrainer.finalize_training


def record_loss(self, output_tensor, *, labels, teacher_outputs, responses, loss_scale, caught):
    said = teacher_outputs.load(self.device)
    record = {
        "iteration": self.state.iteration,
        "labels": labels.clone(),
        "loss_scale": None if loss_scale is None else loss_scale.clone(),
        "teacher": {"form": said.name, "rows": said.rows, "temperature": getattr(said, "temperature", 1.0)},
        "teacher_weights": [weight.detach().clone() for weight in getattr(said, "weights", ())],
        "index": responses.index,
        "vocabularies": (self.kd.vocabularies.student, self.kd.vocabularies.teacher),
    }
    student = output_tensor if caught is None else caught.head.inputs[0]
    record["student"] = student.detach().clone()
    if caught is not None:
        record["weight"] = caught.head.weights[0].detach().clone()
    if student.requires_grad:
        student.register_hook(lambda gradient: record.update(gradient=gradient.detach().clone()))
    of_batch = {"labels": labels, "teacher_outputs": teacher_outputs, "responses": responses}
    loss, count, metrics = loss_func(self, output_tensor, **of_batch, loss_scale=loss_scale, caught=caught)
    RECORDS.append(record)
    record.update(loss=loss.detach().clone(), count=count.clone(), metrics=metrics)
    return loss, count, metrics


def finalize_training(self):
    finalize(self)
    torch.save(RECORDS, FOLDER / f"losses{dist.get_rank()}.pt")


KDTrainer.loss_func = record_loss
BaseMegatronTrainer.finalize_training = finalize_training
