"""How far a quantised teacher is from the one that its files hold, measured once on rows of the dataset."""

import torch
from swift.utils import get_logger
from torch import Tensor
from torch import distributed as dist

from swift_kd_plugin.errors import KDError
from swift_kd_plugin.host.samples.host_trainer import HostTrainer
from swift_kd_plugin.losses.autograd import run_loss
from swift_kd_plugin.losses.lm_head import LMHead
from swift_kd_plugin.losses.prepare import prepare_loss
from swift_kd_plugin.losses.request import LossOptions

logger = get_logger()
# Nats a token. On text that the teacher wrote itself, 0.1 makes 10 % more of its perplexity.
BOUND = 0.1


def mean_kl(unquantised: Tensor | LMHead | None, quantised: Tensor | LMHead | None, vocab: int, group) -> float:
    """KL(unquantised || quantised) a token over all ranks, each of which must call this.

    Args:
        unquantised, quantised: logits [n, v] of the same tokens or what they are made of, and None on ranks without.
        vocab: number of ids without padding.
        group: tensor-parallel group or None.
    """
    total = count = 0
    if quantised is not None:
        options = LossOptions(divergence="forward_kl", group=group, student_vocab=vocab, teacher_vocab=vocab)
        with torch.no_grad():
            values = run_loss(*prepare_loss(quantised, unquantised, options))
        total, count = values.double().sum().item(), len(values)
    ranks: list[tuple[float, int]] = [(0.0, 0)] * dist.get_world_size()
    dist.all_gather_object(ranks, (total, count))
    return sum(total for total, _ in ranks) / max(sum(count for _, count in ranks), 1)


def say(trainer: HostTrainer, kl: float) -> None:
    """Logs the figure. Raises KDError if it is none."""
    bits = f"--kd_teacher_bits {trainer.args.kd_teacher_bits}"
    if not kl == kl:
        raise KDError(f"{bits}: the quantised teacher says nothing but NaN; leave the flag out for this model.")
    text = f"The teacher in {trainer.args.kd_teacher_bits} bits is {kl:.3g} nats a token (KL) from that of its files"
    text = f"{text}, measured on the first micro-batch of each rank"
    if kl > BOUND:
        logger.warning(f"{text}: more than {BOUND:g}. What it teaches is another model's; use more bits, or none.")
    else:
        logger.info(f"{text}.")
