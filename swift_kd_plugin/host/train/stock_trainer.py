"""`--kd_divergence stock`: ms-swift's own loss, with its trainer's faults mended and the teacher's views."""

import torch
from swift.utils import get_logger

from swift_kd_plugin.errors import KDError
from swift_kd_plugin.host.rollout.vllm_writers import shut_down
from swift_kd_plugin.host.samples.sample import KDSample
from swift_kd_plugin.host.samples.think_tokens import refuse_stock_loss
from swift_kd_plugin.host.train.base_trainer import BaseTrainer

logger = get_logger()


class StockLossTrainer(BaseTrainer, loss="stock"):
    """Loss, rollout and teacher are ms-swift's; what they would silently get wrong is refused."""

    def __init__(self, args, template, **kwargs):
        super().__init__(args, template, **kwargs)
        self._say_padding()

    def _say_padding(self) -> None:
        configs = [self.config, *([self.teacher_config] if self.teacher_models else [])]
        parts = self.args.tensor_model_parallel_size
        if padded := [config.padded_vocab_size for config in configs if config.padded_vocab_size % parts]:
            logger.warning(
                f"--tensor_model_parallel_size {parts} does not divide the vocabulary of {padded[0]:,} ids, and "
                "--kd_divergence stock counts the rows of zeros that pad it as tokens; every other divergence leaves "
                "them out."
            )

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
