"""KDTrainer: ms-swift's Megatron GKD trainer with our losses, a full teacher view, and checks where stock is silent."""

import time
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import torch
from megatron.core import mpu
from megatron.core.rerun_state_machine import RerunDataIterator
from megatron.core.utils import get_attr_wrapped_model
from swift.megatron.utils import get_padding_to
from swift.utils import get_logger, is_master, to_device
from torch.distributed.checkpoint.api import CheckpointException

from swift_kd_plugin.errors import KDError
from swift_kd_plugin.host.rollout.completions import keep_prompts
from swift_kd_plugin.host.rollout.rng_states import keep_random_states
from swift_kd_plugin.host.rollout.rollout_hooks import RolloutHooks
from swift_kd_plugin.host.rows.unfilled_batch import explain_rows_left_out
from swift_kd_plugin.host.samples.encode_views import encode_views
from swift_kd_plugin.host.samples.match_views import match_views
from swift_kd_plugin.host.samples.responses import describe_responses, leave_out, weigh_positions
from swift_kd_plugin.host.samples.sample import KDSample
from swift_kd_plugin.host.samples.think_tokens import refuse_stock_loss
from swift_kd_plugin.host.teacher.hidden_states import stop_before_lm_head
from swift_kd_plugin.host.teacher.local_teacher import offload_all_but_lm_head, score_locally, without_interleaving
from swift_kd_plugin.host.teacher.teacher_adapters import merge_adapters
from swift_kd_plugin.host.teacher.teacher_server import score_remotely
from swift_kd_plugin.host.teacher.vocabulary import check_same_tokens, read_vocabularies
from swift_kd_plugin.host.train import checkpoint_manifest
from swift_kd_plugin.host.train.lora_settings import apply_lora_settings
from swift_kd_plugin.host.train.loss import choose_tokens, kd_loss
from swift_kd_plugin.host.train.loss_inputs import choose_loss_inputs
from swift_kd_plugin.host.train.memory_report import MemoryReport
from swift_kd_plugin.host.train.merged_export import ADAPTER, MergedExport
from swift_kd_plugin.host.train.objective_flags import make_objective
from swift_kd_plugin.host.train.training_metrics import (
    check_removed_mass,
    describe_rollout,
    drop_lonely_groups,
    metric_names,
)

logger = get_logger()


class KDTrainer(RolloutHooks):
    """Trains like `MegatronGKDTrainer` with the losses of `swift_kd_plugin.losses`, which `--kd_divergence stock`
    leaves to ms-swift; samples may carry a whole teacher view (`teacher_messages`)."""

    sample_cls = KDSample

    def __init__(self, args, template, **kwargs):
        self.stock_loss = args.kd_divergence == "stock"
        super().__init__(args, template, **kwargs)
        apply_lora_settings(self.unwrapped_models, args.use_rslora, args.lora_dropout)
        self.train_seconds = 0.0
        self.memory_report = MemoryReport(payload_on_host=args.kd_teacher_payload_device == "cpu")
        if self.stock_loss:
            return
        if self._is_self_distillation and len(self.unwrapped_models) > 1:
            raise KDError(
                "Interleaved pipeline stages need a teacher of their own (another --teacher_model than --model, or a "
                "--teacher_model_server); for self-distillation leave --virtual_pipeline_model_parallel_size out."
            )
        self.objective = make_objective(args)
        self.vocabularies = read_vocabularies(self)
        if self.teacher_models:
            check_same_tokens(template.tokenizer, args.teacher_model_dir)
        self.fused, self.teacher_kind = choose_loss_inputs(self)
        self.metric_names = metric_names(self.gkd_logits_topk is not None, args.kd_metrics)
        logger.info(f"Loss per token: {self.objective}; token policy: {self.objective.policy.name}")

    @torch.no_grad()
    def _load_checkpoint(self) -> None:
        # Megatron copies into float32 parameters in place, which autograd refuses.
        super()._load_checkpoint()

    def train(self, train_dataset, val_dataset) -> None:
        if not self.stock_loss:
            self.memory_report.at_start(self)
        super().train(train_dataset, val_dataset)

    def _init_resample_data_iterator(self, train_dataset):
        # Stock seeds all random states anew here; in a resumed run they have just been loaded from the checkpoint.
        with keep_random_states() if self.state.iteration else nullcontext():
            return super()._init_resample_data_iterator(train_dataset)

    def resample_encode_failed_inputs(self, inputs: list[dict], max_resample_rounds: int = 10) -> list[dict]:
        try:
            return super().resample_encode_failed_inputs(inputs, max_resample_rounds)
        except (RuntimeError, StopIteration) as error:
            raise explain_rows_left_out(self.template, inputs) from error

    def _load_teacher_model(self) -> None:
        offload, self.offload_teacher_model = self.offload_teacher_model, False
        with without_interleaving(self.args):
            super()._load_teacher_model()
        if self.teacher_models:
            merge_adapters(self)
        self.offload_teacher_model = offload
        if offload:
            self._offload_teacher_models()

    def _offload_teacher_models(self) -> None:
        if self.stock_loss:
            super()._offload_teacher_models()
        elif self.teacher_models:
            stays = offload_all_but_lm_head(self.teacher_models, head_stays=self.gkd_logits_topk is None)
            logger.info_once(
                f"Between its forwards {stays / 2**20:.1f} MiB of the teacher stay on the device: its head."
            )

    def _replace_data_iterator(self, data_iterator):
        if not isinstance(data_iterator, list):
            return super()._replace_data_iterator(data_iterator)
        # One iterator per interleaved stage: each stage takes the same batches and changes its own copies.
        batches = list(super()._replace_data_iterator(data_iterator[0]).iterable)
        return [RerunDataIterator(iter([dict(batch) for batch in batches])) for _ in data_iterator]

    def _encode_samples(self, samples: list[KDSample]) -> dict[str, torch.Tensor]:
        template, dropped = self.template, []
        if self.stock_loss:
            refuse_stock_loss(samples, self.use_teacher_api)
        with self._template_context(template):
            student, teacher = encode_views(samples, template)
        keep_prompts(self, samples, student)
        if teacher is not None:
            self._check_teacher_view()
            dropped = match_views(samples, student, teacher, template, self.args.kd_on_mismatch)
            leave_out(samples, teacher)
        leave_out(samples, student)
        if self.args.kd_token_policy == "position":
            weigh_positions(student, self.args.kd_position_final)
        sent = {}
        if self.use_teacher_api and not self.stock_loss:
            sent = {"samples": samples, "teacher_views": [dict(view) for view in teacher or student]}
        batch = self._collate(student)
        batch["teacher_model_inputs"] = batch.copy() if teacher is None else self._collate(teacher)
        if not self.stock_loss:
            responses = describe_responses(samples, student, batch["labels"].cpu(), self.args.kd_ce_column, dropped)
            batch["responses"] = responses.to(self.device).on_this_rank(self.args, batch)
        return batch | sent

    def _collate(self, views: list[dict]) -> dict[str, torch.Tensor]:
        return to_device(self.template.data_collator(list(views), padding_to=get_padding_to(self.args)), self.device)

    def _check_teacher_view(self) -> None:
        if self.stock_loss and self.args.context_parallel_size > 1:
            raise KDError(
                "A teacher view (teacher_messages, teacher_prompt) with --context_parallel_size above 1 is not "
                "supported by ms-swift's own loss: each rank would pair response tokens of different positions; use "
                "TP, PP or DP, or another --kd_divergence."
            )

    def _build_teacher_requests(self, samples: list[KDSample]) -> list:
        # Ours are made of token ids, once the samples are encoded.
        return super()._build_teacher_requests(samples) if self.stock_loss else []

    def temperature_of_step(self, ahead: int) -> float:
        """The loss's temperature `ahead` train steps from now."""
        return self.objective.at(self._progress(ahead)).temperature

    def _progress(self, ahead: int = 0) -> float:
        return (self.state.iteration + ahead) / max(self.args.train_iters - 1, 1)

    def _compute_teacher_logits(self, encoded_batches, vp_stage=None) -> None:
        if self.use_teacher_api and not self.stock_loss:
            score_remotely(self, encoded_batches)
            return
        super()._compute_teacher_logits(encoded_batches, vp_stage)
        if self._is_self_distillation and not self.unwrapped_models[0].training:
            # Stock scores its own student only in train steps and finds no teacher when it evaluates.
            self._compute_teacher_logits_local(encoded_batches, vp_stage)

    def _compute_teacher_logits_local(self, encoded_batches, vp_stage=None) -> None:
        if self.stock_loss:
            super()._compute_teacher_logits_local(encoded_batches, vp_stage)
        else:
            score_locally(self, encoded_batches, vp_stage)

    def forward_step(self, data_iterator, model):
        if self.stock_loss:
            return super().forward_step(data_iterator, model)
        unwrapped_model = get_attr_wrapped_model(model, "get_input_tensor", return_model_obj=True)
        data = next(data_iterator)
        responses, signal = data.pop("responses"), data.pop("signal")
        for name in ("data_source", "teacher_model_inputs"):
            data.pop(name, None)
        data = self._prepare_batch(data, unwrapped_model.vp_stage)
        labels, loss_scale = data.pop("labels", None), data.pop("loss_scale", None)
        input_tensor = unwrapped_model.get_input_tensor()
        if input_tensor is not None:
            unwrapped_model.set_input_tensor(input_tensor)
        with stop_before_lm_head(unwrapped_model) if self.fused else nullcontext() as caught:
            output = model(**data)
        of_batch = {"labels": labels, "signal": signal, "responses": responses, "loss_scale": loss_scale}
        return output, partial(self.loss_func, caught=caught, **of_batch)

    def loss_func(self, output_tensor, *, labels, signal=None, responses=None, loss_scale=None, caught=None, **stock):
        """The summed loss of a micro-batch, its number of tokens, and its metrics over all data and context ranks."""
        if self.stock_loss:
            return super().loss_func(output_tensor, labels=labels, **stock)
        tokens = choose_tokens(labels, responses, loss_scale, self.fused)
        student = caught.head if self.fused else output_tensor.flatten(0, 1)
        settings = self.objective.at(self._progress())
        loss, metrics = kd_loss(self, settings, student, signal.load(self.device), tokens, responses)
        count = torch.tensor(len(tokens.labels), dtype=torch.int, device=loss.device)
        if self.args.kd_on_mismatch == "drop":
            dropped = responses.dropped.float()
            metrics["dropped_share"] = torch.stack([dropped.sum(), dropped.new_tensor(len(dropped))])
        if self.writers:
            metrics |= describe_rollout(responses)
        group = mpu.get_data_parallel_group(with_context_parallel=True)
        metrics = self._all_reduce_metric(metrics, torch.distributed.ReduceOp.SUM, group=group)
        if (self._step - 1) % self.steps_per_generation == 0:
            self._flush_log_completions()
        return loss, count, metrics

    def train_step(self, train_data_iterator):
        start = time.perf_counter()
        result = super().train_step(train_data_iterator)
        self.train_seconds += time.perf_counter() - start
        if self.state.iteration == self._start_iteration and not self.stock_loss:
            self.memory_report.after_first_step(self)
        return result

    def _log_callback(self, logs, n_steps) -> None:
        if "loss" in logs and self.unwrapped_models[0].training and not self.stock_loss:
            logs["tokens_per_second"] = float(logs["loss"][1]) / self.train_seconds
            logs |= self.objective.moving(self._progress(-1))  # the step just made has been counted
            if self.writers:
                logs["generation_seconds"] = self.generation_seconds / n_steps
                logs |= {"lmbda": self.mix.lmbda.at(self._progress(-1))} if self.mix.lmbda.moves else {}
            self.train_seconds = self.generation_seconds = 0.0
        check_removed_mass(logs, self.args.kd_allow_removed_mass)
        drop_lonely_groups(logs)
        super()._log_callback(logs, n_steps)

    def save_checkpoint(self) -> None:
        folder = Path(self.args.output_dir, f"checkpoint-{self.state.iteration}")
        last_good = None if self.args.async_save else self.state.last_model_checkpoint
        owns = is_master() and not self.args.async_save
        began = False
        try:
            if owns:
                aside = checkpoint_manifest.begin(folder)
                began = True
                if aside:
                    logger.info(f"What stood in {folder} is now in {aside}.")
            torch.distributed.barrier()
            super().save_checkpoint()
            torch.distributed.barrier()
            if owns:
                checkpoint_manifest.finish(folder)
        except (Exception, CheckpointException) as error:
            raise checkpoint_manifest.describe_failed_save(error, folder, last_good, began) from error

    def merge_lora_adapters(self, adapter_name: str = ADAPTER) -> None:
        self.merged_export = MergedExport(self.bridge, self.unwrapped_models)

    def unmerge_lora_adapters(self) -> None:
        self.merged_export.close()

    def _sorted_checkpoints(self, output_dir: str) -> list[str]:
        # Stock takes every folder whose name begins so, and would remove a `checkpoint-best` of the user.
        return [
            path
            for path in super()._sorted_checkpoints(output_dir)
            if checkpoint_manifest.step_of(Path(path)) is not None
        ]
