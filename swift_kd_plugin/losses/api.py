"""The public losses: logits of student and teacher in, one differentiable number per token out."""

from torch import Tensor
from torch.distributed import ProcessGroup

from swift_kd_plugin.losses.autograd import run_loss
from swift_kd_plugin.losses.divergences import check_keywords
from swift_kd_plugin.losses.entries import check_entries
from swift_kd_plugin.losses.prepare import prepare_loss
from swift_kd_plugin.losses.request import LossOptions, TopK


def token_divergence(
    student_logits: Tensor,
    teacher_logits: Tensor,
    *,
    divergence: str = "forward_kl",
    temperature: float = 1.0,
    group: ProcessGroup | None = None,
    student_vocab: int | None = None,
    teacher_vocab: int | None = None,
    chunk_size: int | None = None,
    inplace_grad: bool = False,
    **params: float,
) -> Tensor:
    """The divergence between teacher P and student Q at every token, both softmax(logits / temperature).

    For `forward_kl`, without a group and with equal vocabularies, the same as

        p = (teacher_logits / temperature).log_softmax(-1)
        q = (student_logits / temperature).log_softmax(-1)
        (p.exp() * (p - q)).sum(-1)

    Ids that only one side has are left out of both before the softmax. Collectives per chunk: one gather of the ranks'
    normalisers and one sum; unequal shards need one exchange more, `adaptive_kl` one gather more. Extra memory: the
    gradient (none with `inplace_grad`) and a few chunks.

    Args:
        student_logits: [T, v_student], this rank's columns, any float type; worked on in fp32 (float64 stays).
        teacher_logits: [T, v_teacher], this rank's columns; not differentiated.
        divergence: a name in `DIVERGENCES`, where formulas and papers are.
        temperature: divides both sides' logits.
        group: tensor-parallel process group over whose ranks the columns are spread in order, or None.
        student_vocab, teacher_vocab: global numbers of ids without padding; needed where the two sides differ.
        chunk_size: tokens worked on at once; None chooses by device and width.
        inplace_grad: write the gradient into the memory of `student_logits`, whose values are lost.
        params: of the divergence: jsd `beta`, `scaled`; skew_kl and skew_rkl `lam`; adaptive_kl `head_mass`,
            `fixed_weights`; alpha_beta `a`, `b`. `clip` bounds what one vocabulary entry can add (not adaptive_kl).

    Returns:
        The divergence per token [T], fp32 (float64 for float64 logits), differentiable in `student_logits`.

    Raises:
        ValueError: unknown names, parameters out of range, shapes that do not fit, vocabularies that need their sizes.
    """
    check_keywords(token_divergence, divergence, params)
    options = LossOptions(
        divergence=divergence,
        params=params,
        temperature=temperature,
        group=group,
        student_vocab=student_vocab,
        teacher_vocab=teacher_vocab,
        chunk_size=chunk_size,
    )
    return run_loss(*prepare_loss(student_logits, teacher_logits, options, inplace=inplace_grad))


def topk_divergence(
    student_logits: Tensor,
    teacher_log_probs: Tensor,
    teacher_ids: Tensor,
    *,
    divergence: str = "forward_kl",
    temperature: float = 1.0,
    teacher_temperature: float = 1.0,
    tail: str = "bucket",
    group: ProcessGroup | None = None,
    student_vocab: int | None = None,
    teacher_vocab: int | None = None,
    chunk_size: int | None = None,
    inplace_grad: bool = False,
    **params: float,
) -> Tensor:
    """The divergence to a teacher that tells its K most probable tokens: `token_divergence` over K + 1 buckets.

    All ids that are not listed make one bucket, log(1 - sum of the listed), on both sides. With K = vocabulary this is
    `token_divergence`; with fewer it is never larger (for the f-divergences of the family).

    Args:
        student_logits: [T, v], this rank's columns.
        teacher_log_probs: [T, K] log-probabilities over the teacher's whole vocabulary; -inf marks a missing entry.
        teacher_ids: [T, K] global token ids, each at most once per token; where an entry is missing, any number.
        temperature: of the loss, for both sides.
        teacher_temperature: what the teacher's logits were divided by. Equal to `temperature`: the student's are too,
            and then both are put in buckets. Otherwise it must be 1, and the buckets are tempered.
        tail: "bucket"; "ignore" sums over the listed ids alone (no divergence: it can be negative); "renormalise"
            makes both sides add up to one over the listed ids (blind to all others, as stock ms-swift is).
        group, student_vocab, teacher_vocab, chunk_size, inplace_grad, params: as for `token_divergence`.

    Returns:
        The divergence per token [T], fp32 (float64 for float64 logits), differentiable in `student_logits`.

    Raises:
        ValueError: as `token_divergence`; an unknown `tail`; entries that are no log-probabilities (they add up to more
            than 1) or no ids of the teacher's vocabulary. Their check takes one synchronisation of a GPU.
    """
    check_keywords(topk_divergence, divergence, params)
    options = LossOptions(
        divergence=divergence,
        params=params,
        temperature=temperature,
        group=group,
        student_vocab=student_vocab,
        teacher_vocab=teacher_vocab,
        chunk_size=chunk_size,
        tail=tail,
    )
    teacher = TopK(teacher_log_probs, teacher_ids, teacher_temperature)
    task, *sides = prepare_loss(student_logits, teacher, options, inplace=inplace_grad)
    check_entries(teacher_log_probs, teacher_ids, task.request.teacher.vocab)
    return run_loss(task, *sides)
