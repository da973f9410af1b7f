"""Weights of messages in the loss: `loss_scale` and `loss` of a turn count under every --loss_scale, its end included.

ms-swift drops a message's loss_scale where its strategy knows 0 and 1 only, lets it take the place of the strategy (so
that an empty think block is trained), and trains the end of a last answer whose loss is off.
"""

from collections.abc import Iterable, Sequence
from copy import copy
from functools import partial
from typing import Any

from swift.loss_scale.base import LossScale
from swift.template import ContextType

from swift_kd_plugin.data.rows import Message
from swift_kd_plugin.errors import KDError
from swift_kd_plugin.host.samples.response_labels import IGNORED, loss_scale_of
from swift_kd_plugin.host.samples.sample import KDSample

Encoded = dict[str, Any]


def has_weights(messages: Iterable[Message]) -> bool:
    """Whether a turn is weighted, or switched off, by itself."""
    return any(_is_off(turn.get("loss")) or turn.get("loss_scale") is not None for turn in messages)


def _is_off(loss: bool | None) -> bool:
    return loss is not None and not loss


def encode_weighted(row: dict[str, Any], template) -> Encoded:
    """`template.encode` of a row whose turns have weights: each trained token counts what its strategy says times them.

    `loss: true` trains a turn that the strategy would leave out; the end of a turn has the turn's weight.
    """
    weighted = copy(template)
    weighted._loss_scale_cache = {
        template._loss_scale: MessageWeights(template.loss_scale, template.template_meta.chat_sep)
    }
    weighted.is_binary_loss_scale = False
    weighted._add_dynamic_eos = partial(_add_ends, template._add_dynamic_eos)
    view = weighted.encode(row, return_length=True)
    scale = view["loss_scale"] = [float(weight) for weight in view["loss_scale"]]
    if scale == loss_scale_of({"labels": view["labels"]}):
        del view["loss_scale"]  # what is trained counts 1
    return view


def refuse_weights_of_jinja(sample: KDSample, template) -> None:
    """Raises KDError where the model's own chat template writes the row: it marks no turns."""
    if template.template_backend != "swift":
        raise KDError(
            f"{sample.name} has a turn with a weight (loss, loss_scale or weight), which --template_backend "
            f"{template.template_backend} cannot tell apart from the others; use swift, or leave the key out."
        )


class Weight(float):
    """A token's weight, which knows its turn's part of it."""

    of_turn = 1.0

    @classmethod
    def of(cls, strategy: float, turn: float) -> "Weight":
        weight = cls(strategy * turn)
        weight.of_turn = turn
        return weight


class MessageWeights(LossScale):
    """A strategy of ms-swift, times the weights of the turns.

    Args:
        ends: what the template puts behind a turn before the last, which `all` trains with it.
    """

    is_binary = False

    def __init__(self, strategy: LossScale, ends: Sequence[Any] | None):
        super().__init__(strategy.base_strategy)
        self.strategy, self.ends = strategy, ends or ()
        self.last, self.in_turn = 1.0, False

    def get_loss_scale(self, context: str, **kwargs: Any) -> tuple[list[str], list[float]]:
        return self.strategy.get_loss_scale(context, **kwargs)

    def _inner_call(self, context, context_type, query, loss, loss_scale, is_last_round):
        contexts, weights = super()._inner_call(context, context_type, query, loss, None, is_last_round)
        factor = 1.0
        if context_type == ContextType.RESPONSE:
            factor = self.last = 0.0 if _is_off(loss) else 1.0 if loss_scale is None else float(loss_scale)
            self.in_turn = True
        elif context_type == ContextType.SUFFIX or (self.in_turn and context in self.ends):
            factor = self.last
        else:
            self.in_turn = False
        return contexts, [Weight.of(weight, factor) for weight in weights]


def _add_ends(add, input_ids: list[int], labels: list[int], scale: list[float] | None, suffix: list[int]) -> None:
    """ms-swift's ends of trained turns before the last, which it weighs with 1."""
    before = list(labels)
    add(input_ids, labels, scale, suffix)
    for position, label in enumerate(labels):
        if scale and label != IGNORED and before[position] == IGNORED:
            of_turn = getattr(scale[position - 1], "of_turn", 1.0)
            scale[position] = Weight.of(1.0, of_turn)
