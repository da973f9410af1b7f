"""The objective's loss of a batch of tokens, with cross-entropy, and which tokens count how much."""

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from swift_kd_plugin.losses.autograd import run_loss
from swift_kd_plugin.losses.lm_head import LMHead
from swift_kd_plugin.losses.objective import Settings, TokenPolicy
from swift_kd_plugin.losses.policies import teacher_entropy_weights, top_rho_weights
from swift_kd_plugin.losses.prepare import prepare_loss
from swift_kd_plugin.losses.request import LossOptions, Teacher


@dataclass(frozen=True)
class Tokens:
    """The T tokens that are trained on.

    Args:
        labels: next token ids [T].
        student_rows, teacher_rows: where the tokens lie in the logits of either side [T].
        sample: which response each belongs to [T].
        ce: on which the cross-entropy counts, bool [T].
        scale: the template's loss_scale and the like, or None [T].
    """

    labels: Tensor
    student_rows: Tensor
    teacher_rows: Tensor
    sample: Tensor
    ce: Tensor
    scale: Tensor | None = None


def objective_loss(
    settings: Settings,
    student: Tensor | LMHead,
    teacher: Teacher,
    tokens: Tokens,
    *,
    group: ProcessGroup | None = None,
    sequence_group: ProcessGroup | None = None,
    student_vocab: int | None = None,
    teacher_vocab: int | None = None,
    chunk_size: int | None = None,
    statistics: bool = True,
    inplace_grad: bool = False,
    kernels: bool = True,
) -> tuple[Tensor, dict[str, Tensor]]:
    """The sum of all tokens' losses, not yet divided by their number, and what each is made of.

    A head's logits are made block by block and are never all there: what it takes and gives is that of logits,
    `fused_linear_divergence` says how. The policy "student_top_rho" runs a head twice, first for the entropies alone.

    Args:
        student: [N, v] logits of this rank, or the head that makes them, of which `tokens.student_rows` count.
        teacher: [M, v_teacher] logits of this rank, or its head, or top-k entries [M, K].
        group: tensor-parallel group or None.
        sequence_group: context-parallel group or None, for policies that look at a whole response.
        chunk_size: tokens worked on at once; None chooses by device and width.
        inplace_grad: write the gradient into the memory of the student's logits; a head has none to write into.

    Returns:
        loss: scalar, differentiable in `student`.
        parts: `loss`, `divergence`, `ce`, `weight` and the statistics, per token [T].
    """
    measured = statistics or settings.policy.name in ("teacher_entropy", "student_top_rho")
    with_ce = settings.ce_weight > 0
    options = LossOptions(
        divergence=settings.divergence,
        params=settings.params,
        temperature=settings.temperature,
        group=group,
        student_vocab=student_vocab,
        teacher_vocab=teacher_vocab,
        chunk_size=chunk_size,
        weight=settings.weight,
        labels=tokens.labels,
        ce_weights=settings.ce_weight * tokens.ce.double() if with_ce else None,
        student_rows=tokens.student_rows,
        teacher_rows=tokens.teacher_rows,
        tail=settings.tail,
        statistics=measured,
        kernels=kernels,
    )
    task, *sides = prepare_loss(student, teacher, options, inplace=inplace_grad)
    vocab = min(task.request.student.vocab, task.request.teacher.vocab)
    task.weigh = partial(_weigh, settings.policy, tokens, vocab, sequence_group)
    if isinstance(student, LMHead) and settings.policy.name == "student_top_rho" and torch.is_grad_enabled():
        # Which tokens are chosen shows after the last one, and a head's gradient needs it from the first on.
        with torch.no_grad():
            run_loss(task, *sides)
        chosen = task.weights
        task.weigh = lambda part, _: chosen[part]
    losses = run_loss(task, *sides)
    return losses.sum(), {**task.parts, "weight": task.weights, "loss": losses.detach()}


def _weigh(
    policy: TokenPolicy, tokens: Tokens, vocab: int, group: ProcessGroup | None, part: slice, parts: dict[str, Tensor]
) -> Tensor:
    """What the tokens of `part` count [C], given what was measured of them."""
    weight = torch.ones(part.stop - part.start, device=tokens.labels.device)
    if tokens.scale is not None:
        weight = weight * tokens.scale[part]
    if policy.name == "teacher_entropy" and parts:
        weight = weight * teacher_entropy_weights(parts["teacher_entropy"], vocab)
    if policy.name == "student_top_rho":
        entropy = parts["student_entropy"] if parts else weight[:0]
        weight = weight * top_rho_weights(entropy, tokens.sample[part], policy.rho, group)
    return weight
