"""What the loss is computed from, the student's hidden states or its logits: decided once and said in the log."""

from swift.utils import get_logger

from swift_kd_plugin.host.samples.host_trainer import HostTrainer
from swift_kd_plugin.host.teacher.hidden_states import reason_for_logits

logger = get_logger()


def loss_is_fused(trainer: HostTrainer) -> bool:
    """Whether the loss starts from hidden states and output weight, so that no logits of a micro-batch are held. The
    same on all ranks, which must all call it."""
    reason = reason_for_logits(trainer.unwrapped_models)
    if reason is None and not trainer.args.kd_fused_loss:
        reason = "--kd_fused_loss is false"
    taken = "hidden states" if reason is None else f"logits, not its hidden states: {reason}"
    if trainer.args.kd_teacher_cache_mode != "fill":  # there is no loss
        logger.info(f"The loss takes the student's {taken}.")
    return reason is None
