"""`--kd_teacher_cache_mode fill`: the teacher scores every row of the dataset once, and there is no student."""

from pathlib import Path

import torch
from megatron.core import mpu
from swift.utils import get_logger, is_master

from swift_kd_plugin.console import CONSOLE
from swift_kd_plugin.errors import KDError
from swift_kd_plugin.host.rows.encoding_check import LengthRule, RowFilter
from swift_kd_plugin.host.rows.validation_rows import FirstRows, ValidationRows
from swift_kd_plugin.host.teacher.output_layer import read_teacher_config
from swift_kd_plugin.host.train.evaluation import micro_batches, validation_rows
from swift_kd_plugin.host.train.run_record import FINISHED, write_summary
from swift_kd_plugin.host.train.trainer import KDTrainer

logger = get_logger()
PROGRESS = 20  # lines of the log


class ScoreTrainer(KDTrainer, loss="none"):
    """In the student's place stands the teacher, or where servers are asked no model at all; nothing is trained, and
    --model gives tokenizer and template alone."""

    training = False

    def prepare_model(self) -> None:
        self._load_teacher_model()
        self.wrapped_models, self.peft_models = self.unwrapped_models, []
        if self.teacher_models:
            self.config = self.teacher_config
        else:
            self.config = read_teacher_config(self.args, self.args.model_info.model_dir)
        self.bridge = self.config.bridge

    def _teacher_is_loaded(self) -> None:
        self.unwrapped_models = self.teacher_models or []
        super()._teacher_is_loaded()

    def get_optimizer_and_scheduler(self) -> tuple[None, None]:
        return None, None

    def _load_checkpoint(self) -> None:
        """There is no student to load."""

    @torch.no_grad()
    def train(self, train_dataset, val_dataset) -> None:
        if not hasattr(train_dataset, "__len__"):
            raise KDError("a teacher cache is filled with rows that have a number; leave --streaming out.")
        self.kd.rows_filter = RowFilter(self.template, LengthRule.of(self.args))
        rows = FirstRows(train_dataset, len(train_dataset))
        replica = mpu.get_data_parallel_rank(), mpu.get_data_parallel_world_size()
        trained = ValidationRows(rows, self.args.global_batch_size, self.args.micro_batch_size, *replica)
        try:
            for part in filter(None, (trained, validation_rows(self, val_dataset))):
                self._score(part)
        finally:
            self.kd.source.flush()
        self.kd.source.report(self)
        if is_master():
            write_summary(Path(self.args.output_dir), {"state": FINISHED, "log": str(CONSOLE.log or "")})

    def _score(self, rows: ValidationRows) -> None:
        size, total = self.args.global_batch_size, len(rows.rows)
        every = -(-total // (size * PROGRESS))
        for step, batches in enumerate(rows.steps(), 1):
            with micro_batches(self.args, len(batches)):
                self._generate_and_score_completions([row for batch in batches for row in batch])
            if step % every == 0:
                logger.info(f"{min(step * size, total):,} of {total:,} rows are scored.")
