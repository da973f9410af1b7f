"""What the loss is computed from, hidden states or logits: decided once and said in the log."""

from swift.utils import get_logger

from swift_kd_plugin.host.samples.host_trainer import HostTrainer
from swift_kd_plugin.host.teacher.hidden_states import why_not_linear

logger = get_logger()


def choose_loss_inputs(trainer: HostTrainer) -> tuple[bool, str]:
    """Whether the student's logits are never held whole, and which kind of signal is kept of the teacher.

    Returns:
        fused: the loss starts from the student's hidden states and output weight.
        kind: that of `swift_kd_plugin.teacher.teacher_outputs.TeacherOutputs`.
    """
    reason = _first_reason(trainer.unwrapped_models)
    fused = trainer.args.kd_fused_loss and reason is None
    if reason:
        logger.info(f"The loss takes the student's logits, not its hidden states: {reason}.")
    if trainer.gkd_logits_topk is not None:
        return fused, "topk"
    reason = _first_reason(trainer.teacher_models or trainer.unwrapped_models)
    if reason:
        logger.info(f"The teacher's logits are kept, not its hidden states: {reason}.")
    return fused, "hidden" if reason is None else "logits"


def _first_reason(models) -> str | None:
    return next(filter(None, map(why_not_linear, models)), None)
