"""`kd_loss` in a Trainer of transformers (TRL's are its subclasses): `python -m examples.python.hf_trainer`

The same student and teacher as of `plain_pytorch.py`, with the Trainer's own accumulation, clipping and schedule.
"""

import argparse
from functools import partial
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, Trainer, TrainingArguments

from examples.python.views import MODEL, collate, read_pairs
from swift_kd_plugin.losses import kd_loss


class DistillationTrainer(Trainer):
    """A Trainer whose loss is `kd_loss` with these options.

    Args:
        teacher: the model that is learned from; it is not trained.
        options: of `kd_loss`.
    """

    def __init__(self, *args: Any, teacher: PreTrainedModel, options: dict[str, Any], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.teacher = teacher.to(self.args.device).eval()
        self.options = options

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor | tuple[Tensor, Any]:
        with torch.no_grad():
            teacher = self.teacher(inputs["teacher_input_ids"], inputs["teacher_attention_mask"])
        outputs = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"])
        loss = kd_loss(
            outputs.logits,
            teacher.logits,
            inputs["labels"],
            teacher_labels=inputs["teacher_labels"],
            num_items_in_batch=num_items_in_batch,
            **self.options,
        )
        if self.args.average_tokens_across_devices and num_items_in_batch is not None:
            loss = loss * self.accelerator.num_processes  # their gradients are averaged, and the number is that of all
        return (loss, outputs) if return_outputs else loss


def train(steps: int, folder: str, batch_size: int = 16, accumulation: int = 2) -> tuple[list[float], PreTrainedModel]:
    """The loss of each step, and the trained student."""
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    student, teacher = (AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32) for _ in range(2))
    trainer = DistillationTrainer(
        model=student,
        teacher=teacher,
        options={"divergence": "jsd", "beta": 0.1, "scaled": True, "ce_alpha": 0.1},
        args=TrainingArguments(
            output_dir=folder,
            max_steps=steps,
            per_device_train_batch_size=batch_size // accumulation,
            gradient_accumulation_steps=accumulation,
            learning_rate=1e-3,
            logging_steps=1,
            remove_unused_columns=False,
            report_to="none",
            save_strategy="no",
            seed=0,
        ),
        train_dataset=read_pairs(),
        data_collator=partial(collate, tokenizer),
    )
    trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry], student


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=30)
    with TemporaryDirectory() as output:
        train(parser.parse_args().steps, output)
