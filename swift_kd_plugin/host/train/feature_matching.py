"""The student's side of feature matching: hooks on its layers, projections that are trained with it, the metrics."""

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
from megatron.core import mpu
from megatron.core.transformer.utils import sharded_state_dict_default
from megatron.core.utils import make_viewless_tensor
from swift.utils import get_logger
from torch import Tensor, nn
from torch import distributed as dist

from swift_kd_plugin.errors import KDError
from swift_kd_plugin.host.samples.responses import Responses, cut_for_context_rank
from swift_kd_plugin.host.teacher.hidden_states import language_model, sequence_first
from swift_kd_plugin.host.teacher.teacher_features import layers_of
from swift_kd_plugin.host.train.checkpoint_manifest import projected_pairs, read_saved_args
from swift_kd_plugin.host.train.merged_export import ADAPTER
from swift_kd_plugin.losses.feature_loss import FeatureTask, match_features, measure_features
from swift_kd_plugin.losses.schedules import Schedule
from swift_kd_plugin.teacher.teacher_outputs import StoredOutputs

logger = get_logger()
PROJECTIONS = "kd_features"


class Projections(nn.ModuleDict):
    """Those of a model chunk by pair of layers, as a part of it that is saved."""

    known: set[str] | None = None
    """The pairs that a checkpoint has which is loaded now; None for all."""

    def sharded_state_dict(self, prefix: str = "", sharded_offsets: tuple = (), metadata: dict | None = None) -> dict:
        parts = {}
        for pair, projection in self.items():
            if self.known is None or pair in self.known:
                parts |= sharded_state_dict_default(projection, f"{prefix}{pair}.", sharded_offsets, metadata)
        return parts


class Projection(nn.Module):
    """[W, H], from the student's hidden size to the teacher's: orthogonal at the start, the same on all ranks.

    Its forward gives the weight, for Megatron waits in front of a module's forward for weights that are on their way.
    """

    def __init__(self, config, width: int, seed: int):
        super().__init__()
        draw = torch.Generator().manual_seed(seed)
        weight = nn.init.orthogonal_(torch.empty(width, config.hidden_size), generator=draw)
        self.weight = nn.Parameter(weight.to(config.params_dtype))
        # Each tensor-parallel rank sees its part of the positions: Megatron sums such gradients over the ranks.
        self.weight.sequence_parallel = config.sequence_parallel

    def forward(self) -> Tensor:
        return self.weight

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *args) -> None:
        if f"{prefix}weight" in state_dict:  # else it is none of `Projections.known`
            super()._load_from_state_dict(state_dict, prefix, *args)


@dataclass(frozen=True)
class MicroBatch:
    """The response tokens of a micro-batch that lie in this rank's hidden states.

    Args:
        rows: where they lie in [s, b] order [n].
        order: their place among the rows of the teacher [n]; None where all of them are here.
        weights: what each counts [n].
        stored: the teacher's rows by index of their pair.
    """

    rows: Tensor
    order: Tensor | None
    weights: Tensor
    stored: dict[int, StoredOutputs]


@dataclass(eq=False)
class MatchedLayer:
    """A student layer of this rank.

    Args:
        waiting: micro-batches whose activations are computed again in the backward pass, first in, first out: that is
            the order in which a stage goes backward.
    """

    index: int
    projection: Projection | None
    width: int
    waiting: deque[MicroBatch] = field(default_factory=deque)


class FeatureMatching:
    """Adds the gradients of the feature loss where the student's layers are, and keeps count of the losses.

    Args:
        args: with `kd_feature_pairs` and `kd_feature_sizes`, of student and teacher.
        models: the student's on this rank, adapters in place, before they are wrapped.
    """

    def __init__(self, args, models: list[nn.Module]):
        self.pairs, (_, width) = args.kd_feature_pairs, args.kd_feature_sizes
        self.loss = args.kd_feature_loss
        self.weight = Schedule(args.kd_feature_weight, args.kd_feature_weight_final, args.kd_schedule)
        self.config = models[0].config
        self._models = models
        self._current: MicroBatch | None = None
        self._sums = torch.zeros(len(self.pairs), 3, dtype=torch.float64)
        for model in models:
            self._take_part(args, language_model(model), width)
        pairs = ", ".join(f"{student}:{teacher}" for student, teacher in self.pairs)
        logger.info(f"Hidden states are matched (student:teacher): {pairs}; {self.loss}, weight {self.weight}.")

    def _take_part(self, args, model: nn.Module, width: int) -> None:
        """Hooks on the layers of a model chunk, and its projections as a part of it."""
        layers, projections = layers_of([model]), Projections()
        for index, (student, teacher) in enumerate(self.pairs):
            if student not in layers:
                continue
            projection = None
            if width != self.config.hidden_size:
                projection = projections[f"{student}_{teacher}"] = Projection(self.config, width, args.seed + index)
            matched = MatchedLayer(index, projection, self.config.hidden_size)
            layers[student].register_forward_hook(lambda *call, matched=matched: self._after(matched, *call))
        if projections:
            if args.tuner_type == "lora":
                # By these names ms-swift knows what is saved with adapters, and is in no model without them.
                projections = nn.ModuleDict({"lora_A": nn.ModuleDict({ADAPTER: projections})})
            model.add_module(PROJECTIONS, projections)

    @contextmanager
    def loading(self, args) -> Iterator[None]:
        """Within it a checkpoint is loaded, which may have other projections than this run, or none."""
        parts = [part for model in self._models for part in model.modules() if isinstance(part, Projections)]
        folder = args.mcore_adapter if args.tuner_type == "lora" else args.mcore_model
        if not folder or not any(parts):
            yield
            return
        known = {f"{s}_{t}" for s, t in projected_pairs(read_saved_args(Path(folder)))}
        if fresh := [f"{s}:{t}" for s, t in self.pairs if f"{s}_{t}" not in known]:
            logger.info(f"The projections of {', '.join(fresh)} begin anew: {folder} has none of them.")
        for part in parts:
            part.known = known
        yield
        for part in parts:
            part.known = None

    @contextmanager
    def of(self, micro_batch: MicroBatch) -> Iterator[None]:
        """Within it a forward of the student is that of a micro-batch."""
        self._current = micro_batch
        try:
            yield
        finally:
            self._current = None

    def read(self, args, data: dict, responses: Responses, progress: float) -> MicroBatch:
        """
        Args:
            data: a collated micro-batch before it is cut, from which its `teacher_features` are taken.
        """
        numbers, scale = responses.number, data.get("loss_scale")
        places = (numbers.flatten() >= 0).nonzero()[:, 0]
        weights = torch.ones(places.shape, dtype=torch.float64, device=places.device)
        weights *= self.weight.at(progress) / len(self.pairs)
        if scale is not None:
            scale = cut_for_context_rank(args, data, torch.roll(scale, -1, dims=-1))
            weights = weights * scale.flatten()[places]
        rows, order = sequence_first(places, *numbers.shape), None
        if self.config.sequence_parallel:
            part = numbers.numel() // mpu.get_tensor_model_parallel_world_size()
            order = (rows // part == mpu.get_tensor_model_parallel_rank()).nonzero()[:, 0]
            rows, weights = rows[order] % part, weights[order]
        return MicroBatch(rows, order, weights, data.pop("teacher_features"))

    def _after(self, matched: MatchedLayer, layer: nn.Module, _, output: tuple) -> tuple | None:
        """The forward hook of a layer."""
        batch = self._current
        if not torch.is_grad_enabled():
            if batch is not None and layer.training:
                matched.waiting.append(batch)
            elif batch is not None:
                self._measure(matched, output[0], batch)
            return None
        if batch is None:
            if not matched.waiting:
                return None
            batch = matched.waiting.popleft()
        hidden, projection = output[0], matched.projection and matched.projection()
        if not hidden.requires_grad and projection is None:
            self._measure(matched, hidden, batch)
            return None
        hidden = match_features(hidden, projection, self._task(matched, hidden, batch))
        # A pipeline stage frees what it has sent, which a view would hold.
        return make_viewless_tensor(hidden, requires_grad=True, keep_graph=True), *output[1:]

    def _measure(self, matched: MatchedLayer, hidden: Tensor, batch: MicroBatch) -> None:
        projection = matched.projection and matched.projection()
        measure_features(hidden, projection, self._task(matched, hidden, batch))

    def _task(self, matched: MatchedLayer, hidden: Tensor, batch: MicroBatch) -> FeatureTask:
        if hidden.shape[-1] != matched.width:
            raise KDError(
                f"Layer {self.pairs[matched.index][0]} of --model puts out {hidden.shape[-1]} numbers a token, not its "
                f"hidden size of {matched.width}: features of such models cannot be matched; drop --kd_feature_weight."
            )
        stored = batch.stored[matched.index]

        def teacher() -> Tensor:
            rows = stored.load(hidden.device).rows[0]
            return rows if batch.order is None else rows[batch.order]

        def report(losses: Tensor) -> None:
            sums = torch.stack([losses.sum(), (losses * batch.weights).sum(), losses.new_tensor(len(losses))])
            self._sums = self._sums.to(sums.device)
            self._sums[matched.index] += sums

        return FeatureTask(self.loss, batch.rows, teacher, batch.weights, self._scale, report)

    def _scale(self) -> Tensor | float:
        """What Megatron multiplies the loss by, for fp16."""
        scale = self.config.grad_scale_func
        return 1.0 if scale is None else scale(torch.ones(1, device=torch.cuda.current_device()))

    def collect(self) -> list[dict[str, Tensor]]:
        """[sum, count] per pair since the last call and what they add to the loss, on last stages. For all ranks."""
        sums, self._sums = self._sums.to(torch.cuda.current_device()), torch.zeros_like(self._sums)
        dist.all_reduce(sums)
        if not self.config.sequence_parallel:
            sums /= mpu.get_tensor_model_parallel_world_size()
        if not mpu.is_pipeline_last_stage(ignore_virtual=True):
            return []
        sums = sums.float()
        metrics = {f"feature_{s}_{t}": row[[0, 2]] for (s, t), row in zip(self.pairs, sums, strict=True)}
        return [{"loss": torch.stack([sums[:, 1].sum(), sums.new_tensor(0.0)]), **metrics}]
