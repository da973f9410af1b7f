"""The loss of a whole batch of sequences: logits of two causal language models and labels in, one number out.

B sequences, S tokens of the student's and S' of the teacher's, V vocabulary, v this rank's columns, T counted tokens.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from swift_kd_plugin.losses.autograd import run_loss
from swift_kd_plugin.losses.divergences import check_keywords
from swift_kd_plugin.losses.prepare import prepare_loss
from swift_kd_plugin.losses.request import LossOptions

REMOVED_LIMIT = 1e-3  # of the mean probability on ids that the other side does not have


def kd_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor,
    *,
    divergence: str = "forward_kl",
    temperature: float = 1.0,
    ce_alpha: float = 0.0,
    t_squared: bool = True,
    shift: bool = True,
    ignore_index: int = -100,
    num_items_in_batch: int | Tensor | None = None,
    teacher_labels: Tensor | None = None,
    group: ProcessGroup | None = None,
    student_vocab: int | None = None,
    teacher_vocab: int | None = None,
    allow_removed_mass: bool = False,
    chunk_size: int | None = None,
    inplace_grad: bool = False,
    **params: float,
) -> Tensor:
    """ce_alpha * CE + (1 - ce_alpha) * T^2 * D, averaged over the tokens whose label counts.

    For `forward_kl` on labels [B, S], without a group and with equal vocabularies, the same as

        student, teacher, labels = student_logits[:, :-1], teacher_logits[:, :-1], labels[:, 1:]
        counted = labels != -100
        p = (teacher[counted] / temperature).log_softmax(-1)
        q = (student[counted] / temperature).log_softmax(-1)
        d = (p.exp() * (p - q)).sum(-1)
        ce = cross_entropy(student[counted], labels[counted], reduction="none")
        (ce_alpha * ce + (1 - ce_alpha) * temperature**2 * d).sum() / counted.sum()

    Computed chunk by chunk as `token_divergence` is, with its collectives and memory: the gradient in the logits'
    precision (none with `inplace_grad`) and a few chunks; tokens that do not count take none but the gradient's. In
    `compute_loss` of a Trainer of transformers or TRL pass its `num_items_in_batch` on; on several devices, whose
    gradients are averaged, multiply the loss by their number, as `Trainer.compute_loss` does.

    Args:
        student_logits: [B, S, v_student], or [T, v_student] of one sequence; any float type, worked on in fp32
            (float64 stays).
        teacher_logits: [B, S, v_teacher] or [T, v_teacher]; not differentiated.
        labels: [B, S] or [T] token ids; `ignore_index` where a token does not count.
        divergence: a name in `DIVERGENCES`, where formulas and papers are.
        temperature: divides both sides' logits in D; the CE is taken at 1.
        ce_alpha: share of the cross-entropy with the labels, 0 to 1. With 1 this is the loss of transformers' models.
        t_squared: multiply D by the square of the temperature (Hinton et al. 2015), which keeps its gradient's size.
        shift: labels stand at their own tokens, as in transformers, and the logits before them are about them. False:
            each row of logits is about the label that stands at the same place. Give that for tokens of several
            sequences in one [T, v], of which each row must already be beside its next token.
        num_items_in_batch: what the sum over the tokens is divided by, such as the number of counted tokens of all
            micro-batches of a step; None counts those of this call.
        teacher_labels: [B, S'] or [T'], where the teacher reads another prompt: the same counted ids in each sequence,
            at the teacher's own places. None: the teacher's logits belong to `labels`.
        group: tensor-parallel process group over whose ranks the columns are spread in order, or None. Labels are the
            same on all of its ranks.
        student_vocab, teacher_vocab: global numbers of ids without padding; needed where the columns differ.
        allow_removed_mass: go on where over a thousandth of a side's probability lies on ids that the other lacks.
        chunk_size: tokens worked on at once; None chooses by device and width.
        inplace_grad: write the gradient into the memory of `student_logits`, whose values are lost.
        params: of the divergence, and `clip`, as for `token_divergence`.

    Returns:
        The loss, a scalar in fp32 (float64 for float64 logits), differentiable in `student_logits`. Without a counted
        token it is 0, and so is its gradient.

    Raises:
        ValueError: as `token_divergence`; shapes, labels or a `ce_alpha` that do not fit; too much removed probability.
    """
    check_keywords(kd_loss, divergence, params)
    if not 0 <= ce_alpha <= 1:
        raise ValueError(f"ce_alpha is {ce_alpha}; it must lie between 0 and 1.")
    _check_items(num_items_in_batch)
    own = _counted("student_logits", student_logits, labels, shift, ignore_index)
    others = own
    if teacher_labels is not None or teacher_logits.shape[:-1] != labels.shape:
        others = _counted("teacher_logits", teacher_logits, teacher_labels, shift, ignore_index)
        _check_same_tokens(own, others)
    options = LossOptions(
        divergence=divergence,
        params=params,
        temperature=temperature,
        group=group,
        student_vocab=student_vocab,
        teacher_vocab=teacher_vocab,
        chunk_size=chunk_size,
        weight=(1 - ce_alpha) * (temperature**2 if t_squared else 1.0),
        labels=own.labels,
        ce_weights=torch.full_like(own.labels, ce_alpha, dtype=torch.float64) if ce_alpha else None,
        student_rows=own.rows,
        teacher_rows=others.rows,
    )
    student, teacher = student_logits.flatten(0, -2), teacher_logits.flatten(0, -2)
    task, *sides = prepare_loss(student, teacher, options, inplace=inplace_grad)
    _check_ids(own.labels, task.request.student.vocab, ignore_index)
    total = run_loss(task, *sides).sum()
    if not allow_removed_mass:
        _check_removed(task.parts)
    items = len(own.labels) if num_items_in_batch is None else num_items_in_batch
    items = torch.as_tensor(items, device=total.device).to(total.dtype).reshape(())
    return total / items.where(items != 0, torch.ones_like(items))


def _check_items(items: int | Tensor | None) -> None:
    """The value of a tensor is not looked at: that would synchronise a GPU."""
    if isinstance(items, Tensor):
        if items.numel() != 1:
            raise ValueError(f"num_items_in_batch has the shape {tuple(items.shape)}; give one number.")
    elif items is not None and items < 0:
        raise ValueError(f"num_items_in_batch is {items}; it is a number of tokens.")


@dataclass(frozen=True)
class _Counted:
    """The T tokens that count: their ids, their rows in the flattened logits and the sequence of each [T]."""

    labels: Tensor
    rows: Tensor
    sequence: Tensor


def _counted(name: str, logits: Tensor, labels: Tensor | None, shift: bool, ignore_index: int) -> _Counted:
    """The tokens that count, by one synchronisation of a GPU."""
    shape = None if labels is None else tuple(labels.shape)
    if labels is None or logits.dim() not in (2, 3) or logits.shape[:-1] != labels.shape:
        missing = "; teacher_labels say where a teacher with another prompt has the tokens" if labels is None else ""
        raise ValueError(
            f"Logits are [batch, sequence, vocabulary] with labels [batch, sequence], or [tokens, vocabulary] with "
            f"labels [tokens]; {name} have the shape {tuple(logits.shape)} and their labels {shape}{missing}."
        )
    labels = labels.to(logits.device).long().reshape(labels.shape if labels.dim() == 2 else (1, -1))
    sequence, place = (labels[:, int(shift) :] != ignore_index).nonzero(as_tuple=True)
    return _Counted(labels[sequence, place + int(shift)], sequence * labels.shape[1] + place, sequence)


def _check_same_tokens(student: _Counted, teacher: _Counted) -> None:
    sides = (student.labels, student.sequence), (teacher.labels, teacher.sequence)
    if not all(torch.equal(*both) for both in zip(*sides, strict=True)):
        raise ValueError(
            f"labels and teacher_labels must count the same ids in each sequence; they count {len(student.labels)} and "
            f"{len(teacher.labels)} tokens, of which some differ."
        )


def _check_ids(labels: Tensor, vocab: int, ignore_index: int) -> None:
    if not len(labels):
        return
    lowest, highest = torch.stack(labels.aminmax()).tolist()
    if lowest < 0 or highest >= vocab:
        raise ValueError(
            f"labels has the id {lowest if lowest < 0 else highest}, and the student has {vocab} ids, from 0 on; a "
            f"token that does not count has the label {ignore_index} (ignore_index)."
        )


def _check_removed(parts: dict[str, Tensor]) -> None:
    """Measured where the vocabularies differ, which takes one synchronisation of a GPU."""
    for side, other in (("teacher", "student"), ("student", "teacher")):
        masses = parts.get(f"removed_{side}_mass")
        if masses is not None and (mass := masses.mean().item()) > REMOVED_LIMIT:
            raise ValueError(
                f"On average {mass:.2%} of the {side}'s probability lies on ids that the {other} does not have and was "
                "left out of the loss; choose models whose vocabularies fit, or pass allow_removed_mass=True."
            )
