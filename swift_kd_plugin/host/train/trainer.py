"""KDTrainer: ms-swift's Megatron GKD trainer with the plugin's losses and writers of responses."""

import time
from collections import deque
from contextlib import nullcontext
from functools import partial

import torch
from megatron.core import mpu
from megatron.core.utils import get_attr_wrapped_model
from swift.utils import get_logger

from swift_kd_plugin.errors import KDError
from swift_kd_plugin.host.rollout.choose_writers import choose_writers, student_needs_vllm
from swift_kd_plugin.host.rollout.completions import COLUMNS, CompletionRows, keep_prompts, log_completions
from swift_kd_plugin.host.rollout.write_responses import make_mix, write_responses
from swift_kd_plugin.host.samples.responses import describe_responses, weigh_positions
from swift_kd_plugin.host.samples.sample import KDSample
from swift_kd_plugin.host.teacher.hidden_states import stop_before_lm_head
from swift_kd_plugin.host.teacher.local_teacher import offload_all_but_lm_head
from swift_kd_plugin.host.teacher.teacher_source import choose_source
from swift_kd_plugin.host.teacher.vocabulary import check_same_tokens, read_vocabularies
from swift_kd_plugin.host.train.base_trainer import BaseTrainer
from swift_kd_plugin.host.train.feature_matching import FeatureMatching
from swift_kd_plugin.host.train.loss import choose_tokens, kd_loss
from swift_kd_plugin.host.train.loss_inputs import loss_is_fused
from swift_kd_plugin.host.train.memory_report import MemoryReport
from swift_kd_plugin.host.train.objective_flags import make_objective
from swift_kd_plugin.host.train.teacher_report import warn_of_bad_teacher
from swift_kd_plugin.host.train.training_metrics import (
    check_removed_mass,
    describe_rollout,
    drop_lonely_groups,
    metric_names,
)
from swift_kd_plugin.losses.objective import NEVER

logger = get_logger()


class KDTrainer(BaseTrainer, loss="plugin"):
    """Trains with the losses of `swift_kd_plugin.losses`; the student, the teacher or the dataset writes each response.

    Raises:
        KDError: models, layout and flags do not fit together.
    """

    def __init__(self, args, template, **kwargs):
        self.kd.source = choose_source(args, template)
        super().__init__(args, template, **kwargs)
        self.kd.memory_report = MemoryReport(payload_on_host=args.kd_teacher_payload_device == "cpu")
        if self._is_self_distillation and len(self.unwrapped_models) > 1:
            raise KDError(
                "Interleaved pipeline stages need a teacher of their own (another --teacher_model than --model, or a "
                "--teacher_model_server); for self-distillation leave --virtual_pipeline_model_parallel_size out."
            )
        self.kd.objective = make_objective(args)
        self.kd.vocabularies = read_vocabularies(self)
        if args.teacher_model:
            check_same_tokens(template.tokenizer, args.teacher_model_dir)
        self.kd.fused = loss_is_fused(self)
        self.kd.metric_names = metric_names(self.kd.source.outputs.metric_names, args.kd_metrics)
        if args.kd_teacher_cache_mode != "fill":  # there is no loss
            logger.info(f"Loss per token: {self.kd.objective}; token policy: {self.kd.objective.policy.name}")

    def _setup_teacher(self) -> None:
        # ms-swift's client waits for the servers. This trainer has its own, and in a run that only reads a cache none.
        server, self.args.teacher_model_server = self.args.teacher_model_server, None
        try:
            super()._setup_teacher()
        finally:
            self.args.teacher_model_server = server
        if server:
            self.teacher_model_server, self.use_teacher_api = server, True
            self._is_self_distillation = self._is_dynamic_self_distillation = False
            self._has_teacher = self._has_teacher_explicit = True

    def _prepare_peft_model(self, models):
        peft_models = super()._prepare_peft_model(models)
        if self.args.kd_feature_pairs:
            self.kd.features = FeatureMatching(self.args, models)
        return peft_models

    def _load_checkpoint(self) -> None:
        with self.kd.features.loading(self.args) if self.kd.features else nullcontext():
            super()._load_checkpoint()

    def _init_rollout_engine(self) -> None:
        args = self.args
        values = args.use_vllm, args.lmbda
        # ms-swift starts an engine if use_vllm is true and lmbda is not 0.
        args.use_vllm = student_needs_vllm(self)
        args.lmbda = float(args.use_vllm)
        try:
            super()._init_rollout_engine()
        finally:
            args.use_vllm, args.lmbda = values
        self.kd.mix = make_mix(args)
        self.kd.writers = choose_writers(self)

    def train(self, train_dataset, val_dataset) -> None:
        self.kd.memory_report.at_start(self)
        self.kd.rows = len(train_dataset) if hasattr(train_dataset, "__len__") else None
        try:
            super().train(train_dataset, val_dataset)
        finally:
            self.kd.source.flush()
        self.kd.source.report(self)
        for writer in set(self.kd.writers.values()):
            writer.close()

    def visit(self) -> int:
        """How often the present samples have been seen before; of a stream, which has no length, the step."""
        if not self.training:
            return -1
        done = self.state.iteration * self.args.global_batch_size
        return self.state.iteration if self.kd.rows is None else done // self.kd.rows

    def cycle(self) -> int:
        """Number of the present generation cycle; -1 in evaluation."""
        return self._step // self.steps_per_generation if self.training else -1

    def temperature_of_step(self, ahead: int) -> float:
        """The loss's temperature `ahead` train steps from now."""
        return self.kd.objective.at(self.progress(ahead)).temperature

    def progress(self, ahead: int = 0) -> float:
        """The share of training that is done `ahead` steps from now; in evaluation all of it, so that what moves over
        training is the same in each."""
        if not self.training:
            return 1.0
        return (self.state.iteration + ahead) / max(self.args.train_iters - 1, 1)

    def _generate_and_score_completions(self, inputs: list[dict]) -> list[dict[str, torch.Tensor]]:
        samples = given = self.to_samples(inputs)
        if self.kd.writers:
            samples = write_responses(self, given)
        size = self.args.micro_batch_size
        assert len(samples) % size == 0
        batches = [self._encode_samples(samples[start : start + size]) for start in range(0, len(samples), size)]
        if self.kd.writers:
            log_completions(self, samples, given)
        self._compute_teacher_logits(batches)
        return batches

    def _encode_samples(self, samples: list[KDSample]) -> dict[str, torch.Tensor]:
        student, teacher = self._encode_views(samples)
        keep_prompts(self, samples, student)
        dropped = self._match_views(samples, student, teacher)
        if self.args.kd_token_policy == "position":
            weigh_positions(student, self.args.kd_position_final)
        needed = self.kd.source.needs(samples, teacher or student)
        batch = self._collate_views(student, teacher)
        responses = describe_responses(samples, student, batch["labels"].cpu(), self.args.kd_ce_column, dropped)
        batch["responses"] = responses.to(self.device).on_this_rank(self.args, batch)
        return batch | needed

    def save_checkpoint(self) -> None:
        super().save_checkpoint()
        self.kd.source.flush()

    def _load_teacher_model(self) -> None:
        if self.kd.source.reads_only:
            self._teacher_is_loaded()
        else:
            super()._load_teacher_model()

    def _teacher_is_loaded(self) -> None:
        self.kd.source.decide(self)

    def _offload_teacher_models(self) -> None:
        if self.teacher_models:
            head_stays = self.kd.source.outputs.needs_lm_head
            stays = offload_all_but_lm_head(self.teacher_models, head_stays)
            logger.info_once(
                f"Between its forwards {stays / 2**20:.1f} MiB of the teacher stay on the device: its head."
            )

    def _compute_teacher_logits(self, encoded_batches, vp_stage=None) -> None:
        if self.kd.source.runs_model:
            super()._compute_teacher_logits(encoded_batches, vp_stage)
        else:
            self.kd.source.score(self, encoded_batches)

    def _compute_teacher_logits_local(self, encoded_batches, vp_stage=None) -> None:
        if self.kd.source.runs_model:
            self.kd.source.score(self, encoded_batches, vp_stage)

    def forward_step(self, data_iterator, model):
        unwrapped_model = get_attr_wrapped_model(model, "get_input_tensor", return_model_obj=True)
        data = next(data_iterator)
        responses, outputs = data.pop("responses"), data.pop("teacher_outputs")
        for name in ("data_source", "teacher_model_inputs"):
            data.pop(name, None)
        features, matching = self.kd.features, nullcontext()
        if features:
            matching = features.of(features.read(self.args, data, responses, self.progress()))
        data = self._prepare_batch(data, unwrapped_model.vp_stage)
        labels, loss_scale = data.pop("labels", None), data.pop("loss_scale", None)
        input_tensor = unwrapped_model.get_input_tensor()
        if input_tensor is not None:
            unwrapped_model.set_input_tensor(input_tensor)
        with matching, stop_before_lm_head(unwrapped_model) if self.kd.fused else nullcontext() as caught:
            output = model(**data)
        of_batch = {"labels": labels, "teacher_outputs": outputs, "responses": responses, "loss_scale": loss_scale}
        return output, partial(self.loss_func, caught=caught, **of_batch)

    def loss_func(self, output_tensor, *, labels, teacher_outputs, responses, loss_scale, caught):
        """The summed loss of a micro-batch, its number of tokens, and its metrics over all data and context ranks."""
        tokens = choose_tokens(labels, responses, loss_scale, self.kd.fused)
        student = caught.head if self.kd.fused else output_tensor.flatten(0, 1)
        settings = self.kd.objective.at(self.progress())
        loss, metrics = kd_loss(self, settings, student, teacher_outputs.load(self.device), tokens, responses)
        count = torch.tensor(len(tokens.labels), dtype=torch.int, device=loss.device)
        if self.args.kd_on_mismatch == "drop":
            dropped = (responses.dropped & responses.counted).float()
            metrics["dropped_share"] = torch.stack([dropped.sum(), responses.counted.float().sum()])
        if self.kd.writers:
            metrics |= describe_rollout(responses)
        group = mpu.get_data_parallel_group(with_context_parallel=True)
        metrics = self._all_reduce_metric(metrics, torch.distributed.ReduceOp.SUM, group=group)
        if (self._step - 1) % self.steps_per_generation == 0:
            self._flush_log_completions()
        return loss, count, metrics

    def train_step(self, train_data_iterator):
        start = time.perf_counter()
        metrics, *result = super().train_step(train_data_iterator)
        if self.kd.features:
            metrics += self.kd.features.collect()
        self.kd.train_seconds += time.perf_counter() - start
        if self.state.iteration == self._start_iteration:
            self.kd.memory_report.after_first_step(self)
        return metrics, *result

    def _log_callback(self, logs, n_steps) -> None:
        if "loss" in logs and self.training:
            tokens = float(logs["loss"][1])
            logs["tokens_per_second"] = tokens / self.kd.train_seconds
            self.kd.tokens += tokens
            self.kd.seconds += self.kd.train_seconds
            logs |= self.kd.objective.moving(self.progress(-1))  # the step just made has been counted
            if self.kd.features and self.kd.features.weight.moves:
                logs["feature_weight"] = self.kd.features.weight.at(self.progress(-1))
            if self.kd.writers:
                logs["generation_seconds"] = self.kd.generation_seconds / n_steps
                logs |= {"lmbda": self.kd.mix.lmbda.at(self.progress(-1))} if self.kd.mix.lmbda.moves else {}
            self.kd.train_seconds = self.kd.generation_seconds = 0.0
            if self.state.iteration == 1:
                warn_of_bad_teacher(logs, self.kd.vocabularies.student, self.kd.objective.ce_alpha != NEVER)
        check_removed_mass(logs, self.args.kd_allow_removed_mass)
        drop_lonely_groups(logs)
        super()._log_callback(logs, n_steps)

    def _prepare_logging(self) -> None:
        super()._prepare_logging()
        self._logs |= {name: deque() for name in COLUMNS}
        self.jsonl_writer = CompletionRows(self.jsonl_writer)

    def _build_log_table(self) -> dict[str, list]:
        table = super()._build_log_table()
        return table | {name: list(column) for name, column in self._logs.items() if name not in table}
