"""What a teacher's inner layers say of response tokens: caught in its forward, kept where the student's layer is."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from megatron.core import mpu
from torch import Tensor, nn
from torch import distributed as dist

from swift_kd_plugin.host.samples.host_trainer import HostTrainer
from swift_kd_plugin.host.samples.responses import numbers_on_this_rank
from swift_kd_plugin.host.teacher.hidden_states import language_model, sequence_first, whole
from swift_kd_plugin.host.teacher.parallel_groups import context_group, tensor_group
from swift_kd_plugin.teacher.teacher_outputs import FeatureRows, StoredOutputs

Pairs = list[tuple[int, int]]
LayerRows = dict[int, FeatureRows]  # by the number of the teacher's layer


def layers_of(models: Iterable[nn.Module]) -> dict[int, nn.Module]:
    """The decoder layers on this rank by their number in the whole model, from 1."""
    return {layer.layer_number: layer for model in models for layer in language_model(model).decoder.layers}


@dataclass(frozen=True)
class Caught:
    """What a forward leaves of some layers.

    Args:
        numbers: which response token of the micro-batch each row belongs to [n].
        rows: [n, H] by the layer's number.
    """

    numbers: Tensor
    rows: dict[int, Tensor] = field(default_factory=dict)


class TeacherFeatures:
    """The layers of a map on their way from the teacher's pipeline stages to the student's.

    Args:
        pairs: numbers of the student's and the teacher's layers.
        trainer: with student and teacher in place. All ranks must make one.
    """

    def __init__(self, pairs: Pairs, trainer: HostTrainer):
        self.pairs = pairs
        self._config = trainer.teacher_config if trainer.teacher_models else trainer.config
        group = mpu.get_pipeline_model_parallel_group()
        layers = tuple(set(layers_of(models)) for models in (trainer.unwrapped_models, _teacher_of(trainer)))
        stages: list[tuple[set[int], set[int]] | None] = [None] * dist.get_world_size(group)
        dist.all_gather_object(stages, layers, group=group)
        self.stages = [tuple(_stage_of(stages, side, pair[side]) for side in (0, 1)) for pair in pairs]
        self._here = dist.get_rank(group)
        self._pinned = trainer.args.kd_teacher_payload_device == "cpu"

    @property
    def bytes_per_token(self) -> int:
        """What this rank keeps of a response token until it is trained on or sent on, over tensor-parallel ranks."""
        kept = sum(self._here in stages for stages in self.stages)
        return kept * self._config.hidden_size * self._config.params_dtype.itemsize

    @contextmanager
    def caught(self, args, model: nn.Module, inputs: dict) -> Iterator[Caught]:
        """Within it a forward of `model` leaves what its layers put out for the tokens that lie on this context rank.

        Args:
            inputs: the collated micro-batch, before it is cut.
        """
        numbers = numbers_on_this_rank(args, inputs)
        places = (numbers.flatten() >= 0).nonzero()[:, 0]
        rows, found = sequence_first(places, *numbers.shape), Caught(numbers.flatten()[places])

        def keep(layer: nn.Module, _, output: tuple) -> None:
            hidden = whole(output[0], layer.config.sequence_parallel).flatten(0, 1)
            found.rows[layer.layer_number] = hidden[rows]

        layers = layers_of([model])
        wanted = {of_teacher for _, of_teacher in self.pairs} & layers.keys()
        handles = [layers[number].register_forward_hook(keep) for number in wanted]
        try:
            yield found
        finally:
            for handle in handles:
                handle.remove()

    def take(self, caught: Caught, wanted: Tensor) -> LayerRows:
        """What the layers on this stage say of some response tokens.

        Args:
            wanted: their numbers, in the order of the rows to be.
        """
        taken = {}
        for _, of_teacher in self.pairs:
            if of_teacher in caught.rows:
                rows = FeatureRows((caught.rows[of_teacher],), caught.numbers)
                taken[of_teacher] = rows.exchange(caught.numbers, wanted, context_group())
        return taken

    def store(self, rows: LayerRows) -> dict[int, StoredOutputs]:
        """By index of their pair."""
        return store_features(self.pairs, rows, self._pinned)

    def hand_over(self, batches: list[dict]) -> None:
        """Sends the rows of each pair to the stage of the student's layer, when all micro-batches have been scored.

        All stages of a pipeline go through the same list, of which each entry is one message: none can wait for a
        stage that waits for it.
        """
        group = mpu.get_pipeline_model_parallel_group()
        moved = [(index, *stages) for index, stages in enumerate(self.stages) if stages[0] != stages[1]]
        for batch in batches:
            numbers = batch["responses"].number.flatten()
            wanted = numbers[numbers >= 0]
            for index, to, source in moved:
                if self._here == source:
                    block = batch["teacher_features"].pop(index).outputs.rows[0].to(wanted.device)
                    if block.numel():
                        dist.send(block, dist.get_global_rank(group, to), group=group)
                elif self._here == to:
                    batch["teacher_features"][index] = self._receive(wanted, dist.get_global_rank(group, source), group)

    def _receive(self, wanted: Tensor, source: int, group) -> StoredOutputs:
        of_row = {"dtype": self._config.params_dtype, "device": wanted.device}
        rows = torch.empty(len(wanted), self._config.hidden_size, **of_row)
        stored = FeatureRows((rows,), wanted).store(tensor_group(), pinned=False)
        if stored.outputs.rows[0].numel():
            dist.recv(stored.outputs.rows[0], source, group=group)
        return stored.pinned() if self._pinned else stored


def store_features(pairs: Pairs, rows: LayerRows, pinned: bool) -> dict[int, StoredOutputs]:
    """What there are rows of, by index of its pair."""
    return {
        index: rows[of_teacher].store(tensor_group(), pinned)
        for index, (_, of_teacher) in enumerate(pairs)
        if of_teacher in rows
    }


def _teacher_of(trainer: HostTrainer) -> list[nn.Module]:
    return trainer.teacher_models or trainer.unwrapped_models


def _stage_of(stages: list, side: int, layer: int) -> int:
    return next(stage for stage, layers in enumerate(stages) if layer in layers[side])
