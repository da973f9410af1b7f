"""KDTrainer: ms-swift's Megatron GKD trainer with a full teacher view and checks where stock is silent."""

import os
from contextlib import nullcontext

import torch
from swift.megatron.trainers.gkd_trainer import MegatronGKDTrainer
from swift.megatron.utils import get_padding_to
from swift.rlhf_trainers.gkd_helpers import encode_gkd_samples
from swift.utils import get_logger, is_master, to_device

from swift_kd_plugin.errors import KDError
from swift_kd_plugin.host.checkpoint import describe_failed_save
from swift_kd_plugin.host.pairing import check_shared_response
from swift_kd_plugin.host.random_state import keep_random_states
from swift_kd_plugin.host.rollout import close_engine
from swift_kd_plugin.host.sample import KDSample

logger = get_logger()


class KDTrainer(MegatronGKDTrainer):
    """Trains like `MegatronGKDTrainer`; samples may carry a whole teacher view (`teacher_messages`)."""

    sample_cls = KDSample

    def train(self, train_dataset, val_dataset) -> None:
        super().train(train_dataset, val_dataset)
        close_engine(self)

    def _init_resample_data_iterator(self, train_dataset):
        # Stock seeds all random states anew here; in a resumed run they have just been loaded from the checkpoint.
        with keep_random_states() if self.state.iteration else nullcontext():
            return super()._init_resample_data_iterator(train_dataset)

    def _encode_samples(self, samples: list[KDSample]) -> dict[str, torch.Tensor]:
        template, device = self.template, self.device
        with self._template_context(template):
            student, teacher, has_teacher_view = encode_gkd_samples(samples, template)
        if has_teacher_view:
            self._check_teacher_view(samples, student, teacher)
        padding_to = get_padding_to(self.args)
        batch = to_device(template.data_collator(student, padding_to=padding_to), device)
        if has_teacher_view:
            batch["teacher_model_inputs"] = to_device(template.data_collator(teacher, padding_to=padding_to), device)
        else:
            batch["teacher_model_inputs"] = batch.copy()
        return batch

    def _check_teacher_view(self, samples, student, teacher) -> None:
        if self.args.context_parallel_size > 1:
            raise KDError(
                "A teacher view (teacher_messages, teacher_prompt) with --context_parallel_size above 1 is not "
                "supported: each rank would pair response tokens of different positions; use TP, PP or DP."
            )
        for sample, student_view, teacher_view in zip(samples, student, teacher, strict=True):
            check_shared_response(sample, student_view["labels"], teacher_view["labels"], self.template)

    def save_checkpoint(self) -> None:
        folder = os.path.join(self.args.output_dir, f"checkpoint-{self.state.iteration}")
        last_good = self.state.last_model_checkpoint
        try:
            super().save_checkpoint()
        except Exception as error:
            raise describe_failed_save(error, folder, last_good, is_master()) from error
