"""Hidden states of student and teacher in, one differentiable number per token out; no logits [T, V] anywhere."""

from torch import Tensor
from torch.distributed import ProcessGroup

from swift_kd_plugin.losses.autograd import run_loss
from swift_kd_plugin.losses.divergences import check_keywords
from swift_kd_plugin.losses.lm_head import LMHead
from swift_kd_plugin.losses.prepare import prepare_loss
from swift_kd_plugin.losses.request import LossOptions


def fused_linear_divergence(
    student_hidden: Tensor,
    student_weight: Tensor,
    teacher_hidden: Tensor,
    teacher_weight: Tensor,
    *,
    group: ProcessGroup | None = None,
    divergence: str = "forward_kl",
    temperature: float = 1.0,
    student_vocab: int | None = None,
    teacher_vocab: int | None = None,
    chunk_size: int | None = None,
    **params: float,
) -> Tensor:
    """The divergence between teacher P and student Q at every token, from what goes into their output layers.

    The same as

        token_divergence(student_hidden @ student_weight.T, teacher_hidden @ teacher_weight.T, ...)

    but for memory: a block of tokens has both sides' logits, its losses and its gradient before the next begins. The
    gradients in hidden states and weight are made on the way, for tokens that all count alike; backward multiplies
    them by what comes from above. Where that differs from token to token (or backward is called again) they are made
    anew, at the cost of another forward.

    Extra memory: the two gradients, that of the weight in fp32 (float64 for float64), two blocks of logits and what
    `token_divergence` takes for a chunk. Collectives: those of `token_divergence`, and one sum of the gradient of the
    hidden states.

    Args:
        student_hidden: [T, H], the same on all ranks of `group`.
        student_weight: [v_student, H], this rank's rows. The logits have its precision and are worked on in fp32
            (float64 stays); so has the gradient in them. If Megatron's DDP has given the weight a `main_grad`, the
            gradient is added there in its full precision.
        teacher_hidden: [T, H_teacher]; not differentiated.
        teacher_weight: [v_teacher, H_teacher], this rank's rows; not differentiated.
        chunk_size: tokens of a block; None chooses by device and width.
        group, divergence, temperature, student_vocab, teacher_vocab, params: as for `token_divergence`.

    Returns:
        The divergence per token [T], fp32 (float64 for float64 weights), differentiable in `student_hidden`, of which
        every rank gets the whole gradient, and in `student_weight`.

    Raises:
        ValueError: as `token_divergence`, or hidden states that do not fit the weight.
    """
    check_keywords(fused_linear_divergence, divergence, params)
    student, teacher = LMHead((student_hidden,), (student_weight,)), LMHead((teacher_hidden,), (teacher_weight,))
    options = LossOptions(
        divergence=divergence,
        params=params,
        temperature=temperature,
        group=group,
        student_vocab=student_vocab,
        teacher_vocab=teacher_vocab,
        chunk_size=chunk_size,
    )
    return run_loss(*prepare_loss(student, teacher, options))
