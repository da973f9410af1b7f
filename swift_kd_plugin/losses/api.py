"""The public losses: logits of student and teacher in, one differentiable number per token out."""

from torch import Tensor
from torch.distributed import ProcessGroup

from swift_kd_plugin.losses.autograd import run
from swift_kd_plugin.losses.dense import dense_losses
from swift_kd_plugin.losses.divergences import check_params
from swift_kd_plugin.losses.lm_head import LMHead
from swift_kd_plugin.losses.request import Request, block_tokens, chunk_tokens
from swift_kd_plugin.losses.shards import VocabShard, shards_of
from swift_kd_plugin.losses.task import BlockwiseLoss
from swift_kd_plugin.losses.topk import TAILS, topk_losses


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
    request = dense_request(
        student_logits, teacher_logits, divergence, temperature, group, student_vocab, teacher_vocab, chunk_size, params
    )
    return run(BlockwiseLoss(dense_losses, request, inplace_grad), student_logits, teacher_logits)


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
        teacher_ids: [T, K] global token ids, each at most once per token.
        temperature: of the loss, for both sides.
        teacher_temperature: what the teacher's logits were divided by. Equal to `temperature`: the student's are too,
            and then both are put in buckets. Otherwise it must be 1, and the buckets are tempered.
        tail: "bucket"; "ignore" sums over the listed ids alone (no divergence: it can be negative); "renormalise"
            makes both sides add up to one over the listed ids (blind to all others, as stock ms-swift is).
        group, student_vocab, teacher_vocab, chunk_size, inplace_grad, params: as for `token_divergence`.

    Returns:
        The divergence per token [T], fp32 (float64 for float64 logits), differentiable in `student_logits`.

    Raises:
        ValueError: as `token_divergence`, or an unknown `tail`.
    """
    request = topk_request(
        student_logits, teacher_log_probs, teacher_ids, divergence, temperature, group, student_vocab, teacher_vocab,
        chunk_size, params, tail=tail, teacher_temperature=teacher_temperature,
    )  # fmt: skip
    return run(BlockwiseLoss(topk_losses, request, inplace_grad), student_logits, teacher_log_probs, teacher_ids)


def topk_request(
    student, log_probs, ids, divergence, temperature, group, student_vocab, teacher_vocab, chunk_size, params, **more
) -> Request:
    """Checks what a user passed and turns it into a request. `more` are further fields of Request."""
    if len(student.shape) != 2 or log_probs.dim() != 2 or log_probs.shape != ids.shape:
        raise ValueError(
            f"Logits are [tokens, vocabulary] and log-probabilities and ids [tokens, K]; the shapes are "
            f"{tuple(student.shape)}, {tuple(log_probs.shape)} and {tuple(ids.shape)}."
        )
    if more.get("student_rows") is None and len(student) != len(log_probs):
        raise ValueError(f"The student has logits for {len(student)} tokens and the teacher for {len(log_probs)}.")
    if more["tail"] not in TAILS:
        raise ValueError(f"There is no tail {more['tail']!r}; choose one of {', '.join(TAILS)}.")
    if more["teacher_temperature"] not in (1.0, temperature):
        raise ValueError(
            f"teacher_temperature is {more['teacher_temperature']}; it must be 1 or the loss's, {temperature}."
        )
    clip, params = check_loss(divergence, temperature, params)
    shards = shards_of(student, None, group, student_vocab, teacher_vocab)
    sizes = chunk_sizes(chunk_size, shards, student)
    return Request(divergence, params, temperature, *shards, clip=clip, **sizes, **more)


def dense_request(
    student, teacher, divergence, temperature, group, student_vocab, teacher_vocab, chunk_size, params, **more
) -> Request:
    """Checks what a user passed and turns it into a request. `more` are further fields of Request."""
    if len(student.shape) != 2 or len(teacher.shape) != 2:
        raise ValueError(
            f"Logits are [tokens, vocabulary]; the student's have shape {tuple(student.shape)} and the teacher's "
            f"{tuple(teacher.shape)}."
        )
    if more.get("student_rows") is None and len(student) != len(teacher):
        raise ValueError(f"The student has logits for {len(student)} tokens and the teacher for {len(teacher)}.")
    clip, params = check_loss(divergence, temperature, params)
    shards = shards_of(student, teacher.shape[1], group, student_vocab, teacher_vocab)
    if sum(shards[0].widths) != sum(shards[1].widths) and None in (student_vocab, teacher_vocab):
        raise ValueError(
            f"The student's vocabulary has {sum(shards[0].widths)} columns and the teacher's {sum(shards[1].widths)}; "
            "pass student_vocab and teacher_vocab, the numbers of their real ids."
        )
    sizes = chunk_sizes(chunk_size, shards, student, teacher)
    return Request(divergence, params, temperature, *shards, clip=clip, **sizes, **more)


def chunk_sizes(
    chunk_size: int | None, shards: tuple[VocabShard, VocabShard], *sides: Tensor | LMHead
) -> dict[str, int]:
    """`chunk`, and `block` where a side is a head, of a request.

    They are the same on all ranks whatever their widths: each chunk is a round of collectives. A given size is the
    block's if there is one, which is then worked on in chunks of the usual size.
    """
    if chunk_size is not None and chunk_size < 1:
        raise ValueError(f"chunk_size must be at least 1 token, and it is {chunk_size}.")
    device, widths = sides[0].device, shards[0].widths
    usual = chunk_tokens(max(widths), device)
    if not any(isinstance(side, LMHead) for side in sides):
        return {"chunk": chunk_size or usual}
    block = chunk_size or block_tokens(max(*widths, *shards[1].widths, 1), device)
    return {"chunk": min(usual, block), "block": block}


def check_loss(divergence: str, temperature: float, params: dict) -> tuple[float | None, dict]:
    """The clip, taken out of the parameters, and the divergence's own parameters, complete and in range."""
    params = dict(params)
    clip = params.pop("clip", None)
    params = check_params(divergence, params)
    if not temperature > 0:
        raise ValueError(f"The temperature must be above 0, and it is {temperature}.")
    if clip is not None and (clip <= 0 or divergence == "adaptive_kl"):
        raise ValueError(
            f"clip is {clip} for {divergence}; it must be above 0, and adaptive_kl, which is no sum over the "
            "vocabulary, cannot be clipped."
        )
    return clip, params
