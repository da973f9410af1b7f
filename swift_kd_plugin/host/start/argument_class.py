"""Joins the kd_* flags with ms-swift's argument class and checks what can be checked before anything is loaded."""

import os
import re
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path

from swift.utils import get_logger, is_master

from swift_kd_plugin.arguments import KDArguments
from swift_kd_plugin.data.row_report import Report
from swift_kd_plugin.errors import KDError
from swift_kd_plugin.host.rows.named_datasets import check_names, log_reports, register_named_datasets
from swift_kd_plugin.host.rows.row_loader import Reading, rows_read_here
from swift_kd_plugin.host.start.feature_checks import check_features
from swift_kd_plugin.host.start.launch_checks import check_weights_flags
from swift_kd_plugin.host.start.model_checks import (
    check_length,
    check_models,
    check_row_count,
    check_sampling,
    check_supported,
    check_tokenizers,
    is_plain_folder,
)
from swift_kd_plugin.host.start.resume_warnings import warn_of_fresh_start, warn_of_idle_steps, warn_of_other_rows
from swift_kd_plugin.host.start.same_teacher import warn_of_same_teacher
from swift_kd_plugin.host.start.step_counts import set_step_counts
from swift_kd_plugin.host.train.run_record import begin_run

# Columns that ms-swift's trainer reads beside those of a row.
FURTHER_COLUMNS = ("channel",)
GOLD = "gold"  # shown in completions.jsonl
PACKING = (
    "--packing true packs no rows in distillation: a step has --global_batch_size rows, and each micro-batch is laid "
    "out without padding, as by --padding_free true, the default."
)
logger = get_logger()
# In the names of metrics.
GREATER_IS_BETTER = ("agreement", "overlap")


def extend_arguments(stock: type) -> type:
    """Returns a dataclass with the fields of KDArguments and of `stock` (MegatronRLHFArguments), under stock's name."""

    @dataclass
    class MegatronRLHFArguments(KDArguments, stock):
        def __post_init__(self):
            self._given = {field.name: getattr(self, field.name) for field in fields(self) if field.init}
            check_models(self)
            if self.rlhf_type == "gkd":
                check_supported(self)
                check_sampling(self)
                if self.greater_is_better is None and self.metric_for_best_model:
                    # Stock takes every metric for one of these whose name has no "loss".
                    self.greater_is_better = any(word in self.metric_for_best_model for word in GREATER_IS_BETTER)
            check_length(self)
            check_weights_flags(self)
            check_tokenizers(self)
            if self.model and is_plain_folder(self.model):
                # Otherwise ms-swift asks a hub for the newest version of a folder that no hub knows (20 s offline).
                self.check_model = False
            if self.kd_datasets:
                self._register_datasets()
            try:
                super().__post_init__()
            except (ValueError, AssertionError, NotImplementedError) as error:
                if isinstance(error, KDError) or os.environ.get("SWIFT_KD_TRACEBACK") == "1":
                    raise
                raise KDError(_as_sentence(error)) from error
            if self.rlhf_type == "gkd":
                if self.packing and is_master():
                    logger.warning(PACKING)
                from swift_kd_plugin.host.start.built_models import check_built_models  # needs Megatron

                check_built_models(self)
                self.kd_feature_pairs, self.kd_feature_sizes = self._choose_features()

        def _choose_features(self):
            teacher = self.teacher_model_dir if self.teacher_model else None
            chosen = check_features(self, self.model_dir, teacher)
            if chosen is None and (self.kd_feature_weight or self.kd_feature_weight_final):
                raise KDError(
                    "--kd_feature_weight needs to know the number of layers and the hidden size of both models, which "
                    "their config.json does not say; drop it."
                )
            if chosen and self.kd_teacher_cache_mode == "fill":
                # In the student's place stands the teacher.
                pairs, (_, width) = chosen
                return [(of_teacher, of_teacher) for _, of_teacher in pairs], (width, width)
            return chosen or (None, None)

        def _init_output_dir(self):
            from swift.utils import init_process_group

            from swift_kd_plugin.host.start.same_arguments import collect, compare

            init_process_group(backend=self.ddp_backend, timeout=self.ddp_timeout)
            compare(collect(self.__dict__.pop("_given"), os.environ))
            super()._init_output_dir()
            if self.rlhf_type == "gkd":
                begin_run(Path(self.output_dir), is_master())

        def init_iters(self, train_dataset, val_dataset):
            if self.rlhf_type == "gkd":
                set_step_counts(self, super().init_iters, train_dataset, val_dataset)
            else:
                super().init_iters(train_dataset, val_dataset)
            check_row_count(self, train_dataset)
            if is_master():
                warn_of_idle_steps(self)
                warn_of_fresh_start(self)

        def get_dataset_kwargs(self):
            kwargs = super().get_dataset_kwargs()
            if self.rlhf_type == "gkd" and self.kd_bad_rows == "error":
                kwargs["strict"] = True
            return kwargs

        def load_dataset(self):
            if self.rlhf_type != "gkd":
                return super().load_dataset()
            reading = self._reading
            with rows_read_here([*self.dataset, *self.val_dataset], reading):
                datasets = super().load_dataset()
            log_reports(reading.reports, self.output_dir)
            if is_master():
                warn_of_same_teacher(self, datasets[0])
                warn_of_other_rows(self)
            return datasets

        def _register_datasets(self):
            register_named_datasets(self.kd_datasets, self._reading)
            check_names(self.kd_datasets, [*self.dataset, *self.val_dataset])

        @property
        def row_reports(self) -> dict[str, Report]:
            """What became of the rows of each dataset."""
            return self._reading.reports

        @cached_property
        def _reading(self) -> Reading:
            wanted = (self.kd_ce_column, self.teacher_tag_key, *FURTHER_COLUMNS, GOLD if self.log_completions else None)
            keep = tuple(column for column in wanted if column not in (None, "dataset"))
            trains = None if _somebody_writes(self) else self.loss_scale
            return Reading(keep, all_columns=not self.remove_unused_columns, trains=trains)

    MegatronRLHFArguments.__module__ = stock.__module__
    MegatronRLHFArguments.__qualname__ = stock.__qualname__
    return MegatronRLHFArguments


def _somebody_writes(args) -> bool:
    """Whether the student or the teacher writes responses, so that a row needs none."""
    student = (args.lmbda > 0 or args.kd_lmbda_final) and (args.use_vllm or args.kd_student_engine)
    return bool(student or (args.seq_kd and args.kd_seq_kd_prob))


def _as_sentence(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    # Where ms-swift lists all that it knows (hundreds of model types), the list hides the mistake.
    text = re.sub(r"\[('[^']*', ){20,}'[^']*'\]", "what ms-swift supports", text)
    if text.startswith("per_device_generation_batch_size (0)"):
        text = "ms-swift wants a --global_batch_size of at least the number of ranks; raise it."
    return f"{text} (SWIFT_KD_TRACEBACK=1 shows where)"
