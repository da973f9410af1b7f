"""From a micro-batch's logits, or what they would be made of, to the loss that Megatron sums and the metrics."""

import torch
from torch import Tensor

from swift_kd_plugin.host.samples.host_trainer import HostTrainer
from swift_kd_plugin.host.samples.responses import IGNORED, Responses
from swift_kd_plugin.host.teacher.hidden_states import sequence_first
from swift_kd_plugin.host.teacher.parallel_groups import context_group, tensor_group
from swift_kd_plugin.host.train.training_metrics import make_metrics
from swift_kd_plugin.losses.lm_head import LMHead
from swift_kd_plugin.losses.objective import Settings
from swift_kd_plugin.losses.objective_loss import Tokens, objective_loss
from swift_kd_plugin.losses.overlap import topk_overlap
from swift_kd_plugin.losses.shards import shards_of
from swift_kd_plugin.teacher.teacher_outputs import TeacherOutputs

OVERLAP_TOKENS = 128
OVERLAP_K = 8


def choose_tokens(labels: Tensor, responses: Responses, loss_scale: Tensor | None, fused: bool) -> Tokens:
    """The tokens of a micro-batch that are trained on; the teacher's rows are theirs, in the same order.

    Args:
        labels: next token ids [b, s], IGNORED where there is nothing to learn.
        fused: the student's rows are those of its hidden states [s, b, H], not of its logits [b, s, v].
    """
    rows = (labels.flatten() != IGNORED).nonzero()[:, 0]
    response = responses.index.flatten()[rows]
    scale = None if loss_scale is None else loss_scale.flatten()[rows]
    student_rows = sequence_first(rows, *labels.shape) if fused else rows
    teacher_rows = torch.arange(len(rows), device=rows.device)
    return Tokens(labels.flatten()[rows], student_rows, teacher_rows, response, responses.ce[response], scale)


def kd_loss(
    trainer: HostTrainer,
    settings: Settings,
    student: Tensor | LMHead,
    outputs: TeacherOutputs,
    tokens: Tokens,
    responses: Responses,
) -> tuple[Tensor, dict[str, Tensor]]:
    """The summed loss of the tokens, differentiable in what the student's logits are made of, and this rank's metrics.

    Args:
        student: logits [N, v] of this rank, whose memory takes the gradient, or what they would be made of.
        outputs: the teacher's rows for `tokens`.
    """
    assert torch.equal(outputs.token_ids, tokens.labels), "the teacher's rows belong to other tokens"
    vocabularies = trainer.kd.vocabularies.of(student, outputs.columns)
    overlap = {}
    if trainer.args.kd_metrics:
        of_all = not trainer.training
        overlap = _overlap(student, outputs, tokens, vocabularies, of_all)
    loss, parts = objective_loss(
        settings,
        student,
        outputs.as_teacher(),
        tokens,
        group=tensor_group(),
        sequence_group=context_group(),
        student_vocab=vocabularies[0],
        teacher_vocab=vocabularies[1],
        statistics=trainer.args.kd_metrics,
        inplace_grad=True,
        kernels=trainer.args.kd_kernels,
    )
    of_token = {"source": responses.source[tokens.sample], "thinking": responses.thinking[tokens.sample]}
    metrics = make_metrics(trainer.kd.metric_names, parts, tokens.ce, **of_token, device=tokens.labels.device)
    return loss, metrics | overlap


@torch.no_grad()
def _overlap(
    student: Tensor | LMHead,
    outputs: TeacherOutputs,
    tokens: Tokens,
    vocabularies: tuple[int, int | None],
    of_all: bool,
) -> dict[str, Tensor]:
    """The share of the teacher's K most probable tokens that are among the student's, on evenly spread tokens.

    Args:
        of_all: on all tokens, so that it does not depend on how they lie in micro-batches.
    """
    step = 1 if of_all else max(1, -(-len(tokens.student_rows) // OVERLAP_TOKENS))
    parts = (rows[::step].split(OVERLAP_TOKENS) for rows in (tokens.student_rows, tokens.teacher_rows))
    shares = []
    for student_rows, teacher_rows in zip(*parts, strict=True):
        students = student[student_rows]
        shard, of_teacher = shards_of(students, outputs.columns, tensor_group(), *vocabularies)
        ids = outputs.best_ids(teacher_rows, OVERLAP_K, of_teacher)
        shares.append(topk_overlap(students, ids, shard))
    shares = torch.cat(shares)
    return {"topk_overlap": torch.stack([shares.sum(), shares.new_tensor(len(shares))]).float()}
