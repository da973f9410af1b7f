"""What both trainers have: ms-swift's Megatron GKD trainer with its faults mended, and both views as token ids."""

from contextlib import nullcontext
from pathlib import Path
from typing import ClassVar

import torch
from megatron.core import mpu
from megatron.core.rerun_state_machine import RerunDataIterator
from swift.megatron.callbacks.print import PrintCallback
from swift.megatron.trainers.utils import build_streaming_dataloader
from swift.megatron.utils import get_padding_to
from swift.utils import get_logger, is_last_rank, is_master, to_device
from torch.distributed.checkpoint.api import CheckpointException

from swift_kd_plugin.errors import KDError
from swift_kd_plugin.host.rollout.rng_states import keep_random_states
from swift_kd_plugin.host.rollout.rollout_hooks import RolloutHooks
from swift_kd_plugin.host.rows.encoding_check import LengthRule, RowFilter, log_left_out
from swift_kd_plugin.host.rows.row_order import sampler_for
from swift_kd_plugin.host.rows.row_stream import JudgedBatch, StreamBatches
from swift_kd_plugin.host.samples.encode_views import encode_views
from swift_kd_plugin.host.samples.kd_state import KDState
from swift_kd_plugin.host.samples.match_views import match_views
from swift_kd_plugin.host.samples.responses import leave_out
from swift_kd_plugin.host.samples.sample import KDSample
from swift_kd_plugin.host.teacher.local_teacher import as_teachers_kind, without_interleaving
from swift_kd_plugin.host.teacher.quantised_teacher import QuantisedTeacher
from swift_kd_plugin.host.teacher.teacher_adapters import merge_adapters
from swift_kd_plugin.host.train import checkpoint_manifest
from swift_kd_plugin.host.train.evaluation import as_numbers, comparable, sum_metrics, validation_rows
from swift_kd_plugin.host.train.known_best import remember_best
from swift_kd_plugin.host.train.lora_settings import apply_lora_settings
from swift_kd_plugin.host.train.merged_export import ADAPTER, MergedExport
from swift_kd_plugin.host.train.resumed_schedule import schedule_of_flags, warn_if_finished
from swift_kd_plugin.host.train.run_summary import summarise_run
from swift_kd_plugin.host.train.shard_size import shards_up_to
from swift_kd_plugin.host.train.step_lines import StepLines
from swift_kd_plugin.host.train.window_check import check_windows

logger = get_logger()


class BaseTrainer(RolloutHooks):
    """Trains like `MegatronGKDTrainer`; samples may carry a whole teacher view (`teacher_messages`).

    Constructed by this name, as ms-swift does, it is `StockLossTrainer`, `KDTrainer` or `ScoreTrainer`, as the flags
    say. Who extends a trainer extends one of them.
    """

    sample_cls = KDSample

    of_loss: ClassVar[dict[str, type["BaseTrainer"]]] = {}
    """They, by whose loss they train with."""

    def __init_subclass__(cls, loss: str | None = None):
        if loss:
            BaseTrainer.of_loss[loss] = cls

    def __new__(cls, args=None, template=None, **kwargs):
        if cls is BaseTrainer:
            fills = args.kd_teacher_cache_mode == "fill"
            cls = cls.of_loss["none" if fills else "stock" if args.kd_divergence == "stock" else "plugin"]
        elif not issubclass(cls, tuple(cls.of_loss.values())):
            raise KDError(
                f"{cls.__name__} extends ms-swift's MegatronGKDTrainer; let it extend KDTrainer of "
                "swift_kd_plugin.host.train.trainer, or StockLossTrainer of stock_trainer beside it."
            )
        trainer = super().__new__(cls)
        trainer.kd = KDState()
        return trainer

    def __init__(self, args, template, **kwargs):
        super().__init__(args, template, **kwargs)
        apply_lora_settings(self.unwrapped_models, args.use_rslora, args.lora_dropout)
        self.callbacks = [StepLines(self) if type(one) is PrintCallback else one for one in self.callbacks]

    @torch.no_grad()
    def _load_checkpoint(self) -> None:
        # Megatron copies into float32 parameters in place, which autograd refuses.
        with schedule_of_flags(self):
            super()._load_checkpoint()
        warn_if_finished(self)
        remember_best(self)

    def train(self, train_dataset, val_dataset) -> None:
        self.kd.rows_filter = RowFilter(self.template, LengthRule.of(self.args))
        self.kd.validation = validation_rows(self, val_dataset)
        super().train(train_dataset, None)
        log_left_out(self.kd.rows_filter)

    def finalize_training(self) -> None:
        super().finalize_training()
        summarise_run(self)

    def _prepare_dataloader(self, train_dataset, val_dataset=None):
        used = self.state.consumed_train_samples
        if self.args.streaming:
            rows = self.kd.rows_filter
            loader = build_streaming_dataloader(self.args, train_dataset, JudgedBatch(rows.judge)).base_dataloader
            return StreamBatches(loader, rows, self.args.micro_batch_size, used), None
        replica, replicas = mpu.get_data_parallel_rank(), mpu.get_data_parallel_world_size()
        sampler = sampler_for(self.args, train_dataset, used, replica, replicas)
        return self._create_dataloader(train_dataset, sampler), None

    def cyclic_iter(self, iterable, use_origin_cyclic: bool = False):
        # Stock says that epoch 0 starts whenever a run does; rows are one endless stream here.
        used, endless = self.state.consumed_train_samples, not self.args.streaming
        if used and endless and not use_origin_cyclic and iterable is not None:
            epoch, taken = divmod(used, len(iterable.dataset))
            logger.info(f"Training goes on after {used:,} rows, {taken:,} into epoch {epoch}.")
        return super().cyclic_iter(iterable, use_origin_cyclic or endless)

    def evaluate(self, val_data_iterator) -> dict:
        for model in self.wrapped_models:
            model.eval()
        self.call_event("on_eval_begin")
        metrics = sum_metrics(self, self.kd.validation)
        self.on_log(logs=metrics, prefix="eval_")
        self.call_event("on_eval_end")
        return metrics

    def _log_callback(self, logs, n_steps) -> None:
        if self.training:
            super()._log_callback(logs, n_steps)
        else:
            # Stock adds what experts were balanced by in training, and takes it from the next log of training.
            as_numbers(logs)

    def _determine_best_metric(self, metrics) -> bool:
        metrics, problem = comparable(metrics, self.args.metric_for_best_model)
        if problem and problem not in self.kd.said and is_last_rank():
            self.kd.said.add(problem)
            logger.warning_if(problem, cond=True)
        return super()._determine_best_metric(metrics)

    def _init_resample_data_iterator(self, train_dataset):
        # Stock seeds all random states anew here; in a resumed run they have just been loaded from the checkpoint.
        with keep_random_states() if self.state.iteration else nullcontext():
            return super()._init_resample_data_iterator(train_dataset)

    def resample_encode_failed_inputs(self, inputs: list[dict], max_resample_rounds: int = 10) -> list[dict]:
        # Rows of text have been judged before; in the place of one with media that fails stands what counts nothing.
        return self.kd.rows_filter.fill(inputs)

    def _load_teacher_model(self) -> None:
        offload, self.offload_teacher_model = self.offload_teacher_model, False
        with without_interleaving(self.args), as_teachers_kind(self.args):
            if self.args.kd_teacher_bits:
                self.kd.quantised = QuantisedTeacher(self)
            else:
                super()._load_teacher_model()
                if self.teacher_models:
                    merge_adapters(self)
        self._teacher_is_loaded()
        self.offload_teacher_model = offload
        if offload:
            self._offload_teacher_models()

    def _teacher_is_loaded(self) -> None:
        """Called once student and teacher are there, before the teacher may be moved to the CPU."""

    def _replace_data_iterator(self, data_iterator):
        if not isinstance(data_iterator, list):
            return super()._replace_data_iterator(data_iterator)
        # One iterator per interleaved stage: each stage takes the same batches and changes its own copies.
        batches = list(super()._replace_data_iterator(data_iterator[0]).iterable)
        return [RerunDataIterator(iter([dict(batch) for batch in batches])) for _ in data_iterator]

    def _encode_views(self, samples: list[KDSample]) -> tuple[list[dict], list[dict] | None]:
        """The student's views, and the teacher's where one sample of the micro-batch has its own."""
        with self._template_context(self.template):
            student, teacher = encode_views(samples, self.template)
        check_windows(self.args, samples, student, teacher)
        return student, teacher

    def _match_views(self, samples: list[KDSample], student: list[dict], teacher: list[dict] | None) -> list[int]:
        """Holds the response tokens of both views together, in place.

        Returns:
            The indices of the samples that --kd_on_mismatch drops.
        """
        dropped = []
        if teacher is not None:
            args = self.args
            dropped = match_views(samples, student, teacher, self.template, args.kd_on_mismatch, args.loss_scale)
            leave_out(samples, teacher)
        leave_out(samples, student)
        return dropped

    def _collate_views(self, student: list[dict], teacher: list[dict] | None) -> dict[str, torch.Tensor]:
        batch = self._collate(student)
        batch["teacher_model_inputs"] = batch.copy() if teacher is None else self._collate(teacher)
        return batch

    def _collate(self, views: list[dict]) -> dict[str, torch.Tensor]:
        return to_device(self.template.data_collator(list(views), padding_to=get_padding_to(self.args)), self.device)

    def _compute_teacher_logits(self, encoded_batches, vp_stage=None) -> None:
        super()._compute_teacher_logits(encoded_batches, vp_stage)
        if self._is_self_distillation and not self.training:
            # Stock scores its own student only in train steps and finds no teacher when it evaluates.
            self._compute_teacher_logits_local(encoded_batches, vp_stage)

    def save_checkpoint(self) -> None:
        folder = Path(self.args.output_dir, f"checkpoint-{self.state.iteration}")
        last_good = None if self.args.async_save else self.state.last_model_checkpoint
        owns = is_master() and not self.args.async_save
        began = False
        try:
            if is_master() and (aside := checkpoint_manifest.make_room(folder)):
                logger.info(f"What stood in {folder} is now in {aside}.")
            if owns:
                checkpoint_manifest.begin(folder)
                began = True
            torch.distributed.barrier()
            with self._shards():
                super().save_checkpoint()
            torch.distributed.barrier()
            if owns:
                checkpoint_manifest.finish(folder)
        except (Exception, CheckpointException) as error:
            raise checkpoint_manifest.describe_failed_save(error, folder, last_good, began) from error

    def _shards(self):
        mine = self.args.bridge_backend == "mcore-bridge"
        return shards_up_to(self.bridge, self.args.max_shard_size) if mine else nullcontext()

    def merge_lora_adapters(self, adapter_name: str = ADAPTER) -> None:
        self.kd.merged_export = MergedExport(self.bridge, self.unwrapped_models)

    def unmerge_lora_adapters(self) -> None:
        self.kd.merged_export.close()

    def _sorted_checkpoints(self, output_dir: str) -> list[str]:
        # Stock takes every folder whose name begins so, and would remove a `checkpoint-best` of the user.
        return [
            path
            for path in super()._sorted_checkpoints(output_dir)
            if checkpoint_manifest.step_of(Path(path)) is not None
        ]
