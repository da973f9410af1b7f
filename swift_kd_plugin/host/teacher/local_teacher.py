"""The local teacher: its forward, what is kept of it, and where it is when it is not needed."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext

import torch
from megatron.core import mpu
from swift.megatron.utils import forward_step_helper
from swift.utils import empty_cache, gc_collect, get_logger
from torch import Tensor
from transformers.utils import ContextManagers

from swift_kd_plugin.host.samples.host_trainer import HostTrainer
from swift_kd_plugin.host.samples.responses import numbers_on_this_rank
from swift_kd_plugin.host.samples.sample import KDSample
from swift_kd_plugin.host.teacher.hidden_states import (
    language_model,
    reason_for_logits,
    sequence_first,
    stop_before_lm_head,
)
from swift_kd_plugin.host.teacher.parallel_groups import any_of, context_group, tensor_group
from swift_kd_plugin.host.teacher.quantisation_check import mean_kl, say
from swift_kd_plugin.host.teacher.teacher_features import LayerRows, TeacherFeatures
from swift_kd_plugin.losses.shards import shards_of
from swift_kd_plugin.losses.topk import teacher_topk
from swift_kd_plugin.teacher.teacher_outputs import (
    HiddenOutputs,
    LogitsOutputs,
    StoredOutputs,
    TeacherOutputs,
    TopKOutputs,
)

logger = get_logger()
RowsOf = Callable[[int, Tensor], tuple[TeacherOutputs | None, LayerRows]]


def wanted_here(batch: dict) -> Tensor:
    """The numbers of the response tokens of a micro-batch that lie on this rank, in its order."""
    number = batch["responses"].number.flatten()
    return number[number >= 0]


@contextmanager
def without_interleaving(args):
    """A separate teacher runs forward only: it is built and run as if no interleaved pipeline stages were asked for."""
    names = ("virtual_pipeline_model_parallel_size", "pipeline_model_parallel_layout")
    settings = {name: getattr(args, name) for name in names}
    if settings[names[0]] is None:
        yield
        return
    vars(args).update(dict.fromkeys(names))
    mpu.set_virtual_pipeline_model_parallel_world_size(None)
    try:
        yield
    finally:
        vars(args).update(settings)
        mpu.set_virtual_pipeline_model_parallel_world_size(settings[names[0]])


@contextmanager
def as_teachers_kind(args):
    """ms-swift builds a teacher as the student's kind of model."""
    kind = args.megatron_model_meta
    args.megatron_model_meta = args.teacher_megatron_model_meta if args.teacher_model else kind
    try:
        yield
    finally:
        args.megatron_model_meta = kind


class LocalTeacher:
    """A model on these ranks: the separate frozen one, or for self-distillation the student as it is now (its adapters
    off where the same model with LoRA is asked for)."""

    runs_model = True
    reads_only = False
    outputs: type[TeacherOutputs]
    features: TeacherFeatures | None = None

    def decide(self, trainer: HostTrainer) -> None:
        reason = reason_for_logits(trainer.teacher_models or trainer.unwrapped_models)
        self.speaks: type[TeacherOutputs] = HiddenOutputs if reason is None else LogitsOutputs
        self.outputs = self.speaks if trainer.gkd_logits_topk is None else TopKOutputs
        because = f", not its hidden states: {reason}" if self.outputs is LogitsOutputs else ""
        logger.info(f"Of the teacher its {self.outputs.title} are kept{because}.")
        if trainer.args.kd_feature_pairs:
            self.features = TeacherFeatures(trainer.args.kd_feature_pairs, trainer)

    @property
    def feature_bytes(self) -> int:
        return self.features.bytes_per_token if self.features else 0

    def needs(self, samples: list[KDSample], views: list[dict]) -> dict[str, object]:
        return {}

    def score(self, trainer: HostTrainer, batches: list[dict], vp_stage: int | None = None) -> None:
        self.check_bits(trainer, batches, True, vp_stage)
        with self.asked(trainer, dict(enumerate(batches)), vp_stage) as rows_of:
            for index, batch in enumerate(batches):
                outputs, layers = rows_of(index, wanted_here(batch))
                batch["teacher_outputs"] = None if outputs is None else store_outputs(trainer, outputs)
                if self.features:
                    batch["teacher_features"] = self.features.store(layers)
        if self.features:
            self.features.hand_over(batches)

    @contextmanager
    def asked(self, trainer: HostTrainer, batches: dict[int, dict], vp_stage: int | None = None) -> Iterator[RowsOf]:
        with torch.no_grad(), self._model(trainer, vp_stage or 0) as model:

            def rows_of(index: int, wanted: Tensor) -> tuple[TeacherOutputs | None, LayerRows]:
                temperature = trainer.temperature_of_step(index // trainer.args.num_microbatches)
                inputs = inputs_of(batches[index])
                with self.features.caught(trainer.args, model, inputs) if self.features else nullcontext() as caught:
                    outputs = read_outputs(trainer, model, inputs, self.speaks, vp_stage)
                layers = self.features.take(caught, wanted) if self.features else {}
                return outputs and self._take(trainer, *outputs, wanted, temperature), layers

            yield rows_of

    def flush(self) -> None:
        """It keeps nothing."""

    def report(self, trainer: HostTrainer) -> None:
        """It has nothing to say."""

    def check_bits(self, trainer: HostTrainer, batches: list[dict], asks: bool, vp_stage: int | None = None) -> None:
        """Says how far a quantised teacher is from the one of its files, once, before the first rank asks it.

        All ranks call it with each list of micro-batches, those that read theirs from a cache, too: the figure is of
        all ranks, and they must measure it together.

        Args:
            asks: this rank's replica will ask the teacher about one of the micro-batches.
        """
        quantised = trainer.kd.quantised
        if quantised is None or quantised.compared or not any_of(asks, None, trainer.device):
            return
        with torch.no_grad(), self._model(trainer, vp_stage or 0) as model:
            self._compare(trainer, model, batches[0])
        quantised.compared = True

    def _compare(self, trainer: HostTrainer, model, batch: dict) -> None:
        quantised = read_outputs(trainer, model, inputs_of(batch), self.speaks)
        with trainer.kd.quantised.unquantised():
            unquantised = read_outputs(trainer, model, inputs_of(batch), self.speaks)
        sides = [result and result[0].as_teacher() for result in (unquantised, quantised)]
        columns = None if quantised is None else quantised[0].columns
        say(trainer, mean_kl(*sides, trainer.kd.vocabularies.teacher_ids(columns), tensor_group()))

    @contextmanager
    def _model(self, trainer: HostTrainer, vp_stage: int):
        if trainer._is_self_distillation:
            adapters = trainer.peft_models if trainer._teacher_use_disable_adapter else []
            with ContextManagers([peft_model.disable_adapter() for peft_model in adapters]):
                yield trainer.unwrapped_models[vp_stage]
        else:
            with trainer.load_teacher_model_context(), without_interleaving(trainer.args):
                yield trainer.teacher_models[vp_stage]

    def _take(
        self, trainer: HostTrainer, outputs: TeacherOutputs, numbers: Tensor, wanted: Tensor, temperature: float
    ) -> TeacherOutputs:
        """What is said about the response tokens that this rank wants."""
        if self.outputs is TopKOutputs:
            outputs = keep_topk(trainer, outputs, temperature)
        return outputs.exchange(numbers, wanted, context_group())


def inputs_of(batch: dict) -> dict:
    """A micro-batch as the teacher sees it, to be used up."""
    inputs = batch["teacher_model_inputs"].items()
    return {name: value.clone() if isinstance(value, Tensor) else value for name, value in inputs}


def read_outputs(
    trainer: HostTrainer, model, inputs: dict, form: type[TeacherOutputs], vp_stage: int | None = None
) -> tuple[TeacherOutputs, Tensor] | None:
    """One forward, and what it says about each token that has a label.

    Args:
        inputs: a collated micro-batch, which is used up.
        form: `HiddenOutputs` or `LogitsOutputs`.

    Returns:
        The rows that lie on this rank, and which of the micro-batch's labels, in sample order, each is about [n]; None
        before the last pipeline stage.
    """
    numbers = numbers_on_this_rank(trainer.args, inputs).flatten()
    data = trainer._prepare_batch(inputs, vp_stage)
    data.pop("loss_scale", None)
    labels = data.pop("labels", None)
    with stop_before_lm_head(model) if form is HiddenOutputs else nullcontext() as caught:
        logits = forward_step_helper(model, data)
    if logits is None:
        return None
    rows, (batch, length) = (numbers >= 0).nonzero()[:, 0], labels.shape
    token_ids = labels.flatten()[rows]
    if caught is None:
        return LogitsOutputs((logits.flatten(0, 1)[rows],), token_ids), numbers[rows]
    picked = caught.head[sequence_first(rows, batch, length)]
    return HiddenOutputs(picked.inputs, token_ids, picked.weights, caught.remake), numbers[rows]


def keep_topk(trainer: HostTrainer, outputs: TeacherOutputs, temperature: float) -> TopKOutputs:
    """The K most probable tokens of each row, over the whole vocabulary and at the loss's temperature."""
    teacher = outputs.as_teacher()
    shard, _ = shards_of(teacher, None, tensor_group(), trainer.kd.vocabularies.teacher_ids(outputs.columns), None)
    entries = teacher_topk(teacher, trainer.gkd_logits_topk, shard, temperature)
    return TopKOutputs(entries, outputs.token_ids, temperature)


def store_outputs(trainer: HostTrainer, outputs: TeacherOutputs) -> StoredOutputs:
    return outputs.store(tensor_group(), pinned=trainer.args.kd_teacher_payload_device == "cpu")


def offload_all_but_lm_head(models, head_stays: bool) -> int:
    """Moves the teacher to CPU memory.

    Args:
        head_stays: leave the output weight where it is; the loss needs it while the teacher is away.

    Returns:
        The bytes of this rank that stay on the device.
    """
    stays = 0
    for model in models:
        head = {id(parameter) for parameter in output_parameters(model)} if head_stays else set()
        for parameter in model.parameters():
            if id(parameter) in head:
                stays += parameter.numel() * parameter.element_size()
            else:
                parameter.data = parameter.data.to("cpu", non_blocking=True)
    gc_collect()
    empty_cache()
    return stays


def output_parameters(model) -> list[Tensor]:
    """Those of the model's output layer, which may be its embedding's; none on an earlier pipeline stage."""
    model = language_model(model)
    if not model.post_process:
        return []
    if model.share_embeddings_and_output_weights and model.pre_process:
        return [model.embedding.word_embeddings.weight]
    return list(model.output_layer.parameters())
