"""`--kd_divergence stock`: ms-swift's own loss, with its trainer's faults mended and the teacher's views."""

import torch

from swift_kd_plugin.errors import KDError
from swift_kd_plugin.host.rollout.vllm_writers import shut_down
from swift_kd_plugin.host.samples.sample import KDSample
from swift_kd_plugin.host.samples.think_tokens import refuse_stock_loss
from swift_kd_plugin.host.train.base_trainer import BaseTrainer


class StockLossTrainer(BaseTrainer, loss="stock"):
    """Loss, rollout and teacher are ms-swift's; what they would silently get wrong is refused."""

    def train(self, train_dataset, val_dataset) -> None:
        super().train(train_dataset, val_dataset)
        shut_down(getattr(self, "engine", None))

    def _encode_samples(self, samples: list[KDSample]) -> dict[str, torch.Tensor]:
        refuse_stock_loss(samples, self.use_teacher_api)
        student, teacher = self._encode_views(samples)
        if teacher is not None and self.args.context_parallel_size > 1:
            raise KDError(
                "A teacher view (teacher_messages, teacher_prompt) with --context_parallel_size above 1 is not "
                "supported by ms-swift's own loss: each rank would pair response tokens of different positions; use "
                "TP, PP or DP, or another --kd_divergence."
            )
        self._match_views(samples, student, teacher)
        return self._collate_views(student, teacher)
