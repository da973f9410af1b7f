"""From a micro-batch's logits to the loss that Megatron sums and the metrics that ms-swift logs."""

import torch
from megatron.core import mpu
from swift.rlhf_trainers.gkd_loss import TeacherOutput
from torch import Tensor

from swift_kd_plugin.errors import KDError
from swift_kd_plugin.host.metrics import make_metrics
from swift_kd_plugin.host.teacher import tensor_group
from swift_kd_plugin.host.tokens import Responses
from swift_kd_plugin.losses.objective import Settings, Tokens, TopK, objective_loss
from swift_kd_plugin.losses.overlap import topk_overlap

OVERLAP_TOKENS = 128
OVERLAP_K = 8


def choose_tokens(labels: Tensor, teacher: TeacherOutput, responses: Responses, loss_scale: Tensor | None) -> Tokens:
    """The tokens of a micro-batch that are trained on.

    Args:
        labels: next token ids [b, s], -100 where there is nothing to learn.
        teacher: its logits or entries, with labels of its own view.

    Raises:
        KDError: student and teacher see different numbers of response tokens.
    """
    student_rows = (labels.flatten() != -100).nonzero()[:, 0]
    teacher_rows = student_rows
    if teacher.labels is not None:
        teacher_rows = (teacher.labels.flatten() != -100).nonzero()[:, 0]
    if len(student_rows) != len(teacher_rows):
        raise KDError(
            f"The student's view has {len(student_rows)} response tokens in this micro-batch and the teacher's "
            f"{len(teacher_rows)}; both must share the same response."
        )
    if teacher.is_topk_mode:
        # A server leaves out tokens that it did not score.
        scored = torch.isfinite(teacher.topk_logprobs.flatten(0, 1)[teacher_rows]).any(-1)
        student_rows, teacher_rows = student_rows[scored], teacher_rows[scored]
    response = responses.index.flatten()[student_rows]
    scale = None if loss_scale is None else loss_scale.flatten()[student_rows]
    chosen = labels.flatten()[student_rows]
    return Tokens(chosen, student_rows, teacher_rows, response, responses.ce[response], scale)


def kd_loss(
    trainer, settings: Settings, logits: Tensor, teacher: TeacherOutput, tokens: Tokens, responses: Responses
) -> tuple[Tensor, dict[str, Tensor]]:
    """The summed loss of the tokens, differentiable in `logits`, and the metrics of this rank.

    Args:
        logits: the student's [b, s, v] of this rank; their memory takes the gradient.
    """
    student = logits.flatten(0, 1)
    if teacher.is_topk_mode:
        entries = teacher.topk_logprobs.flatten(0, 1), teacher.topk_indices.flatten(0, 1)
        signal = TopK(*entries, getattr(teacher, "temperature", 1.0))
    else:
        signal = teacher.full_logits.flatten(0, 1)
    group = tensor_group()
    vocabularies = trainer.vocabularies.of(student, signal)
    overlap = _overlap(student.detach(), signal, tokens, group, vocabularies) if trainer.args.kd_metrics else {}
    loss, parts = objective_loss(
        settings,
        student,
        signal,
        tokens,
        group=group,
        sequence_group=mpu.get_context_parallel_group() if mpu.get_context_parallel_world_size() > 1 else None,
        student_vocab=vocabularies[0],
        teacher_vocab=vocabularies[1],
        statistics=trainer.args.kd_metrics,
        inplace_grad=True,
        kernels=trainer.args.kd_kernels,
    )
    of_token = {"source": responses.source[tokens.sample], "thinking": responses.thinking[tokens.sample]}
    metrics = make_metrics(trainer.metric_names, parts, tokens.ce, **of_token, device=student.device)
    return loss, metrics | overlap


def _overlap(student: Tensor, signal: Tensor | TopK, tokens: Tokens, group, vocabularies) -> dict[str, Tensor]:
    """The share of the teacher's K most probable tokens that are among the student's, on evenly spread tokens."""
    step = max(1, -(-len(tokens.student_rows) // OVERLAP_TOKENS))
    students = student[tokens.student_rows[::step]]
    if isinstance(signal, TopK):
        shares = topk_overlap(students, signal.ids[tokens.teacher_rows[::step]], None, group, *vocabularies)
    else:
        shares = topk_overlap(students, signal[tokens.teacher_rows[::step]], OVERLAP_K, group, *vocabularies)
    return {"topk_overlap": torch.stack([shares.sum(), shares.new_tensor(len(shares))]).float()}
