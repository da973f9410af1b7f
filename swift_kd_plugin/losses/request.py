"""What a caller asks of a loss over T tokens, and the checked request that the chunked losses work on.

T tokens, K entries of a top-k teacher, v this rank's columns of the vocabulary.
"""

from dataclasses import dataclass, field, fields, replace

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from swift_kd_plugin.errors import suggest
from swift_kd_plugin.losses.divergences import DIVERGENCES, check_params
from swift_kd_plugin.losses.lm_head import LMHead, flatten_hint
from swift_kd_plugin.losses.shards import VocabShard, shards_of

TAILS = ("bucket", "ignore", "renormalise")
CPU_CHUNK_ELEMENTS = 2**17
GPU_CHUNK_ELEMENTS = 2**25
CPU_BLOCK_ELEMENTS = 2**25
GPU_BLOCK_ELEMENTS = 2**28


@dataclass(frozen=True)
class TopK:
    """A teacher's K most probable tokens: log-probabilities and global ids [T, K], taken at `temperature`.

    Args:
        shift: with which `temperature * log_probs + shift` are those at temperature 1 [T]; None where it is not known.
    """

    log_probs: Tensor
    ids: Tensor
    temperature: float = 1.0
    shift: Tensor | None = None

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return (self.log_probs, self.ids) if self.shift is None else (self.log_probs, self.ids, self.shift)


Teacher = Tensor | LMHead | TopK


@dataclass(frozen=True, kw_only=True)
class LossOptions:
    """A loss over T tokens: `weight * D + ce_weights * CE` per token.

    Args:
        divergence, params, temperature: D and what P and Q are divided by before the softmax; `params` may have `clip`.
        group: tensor-parallel group or None.
        student_vocab, teacher_vocab: global numbers of real ids; None counts all columns.
        chunk_size: tokens worked on at once; None chooses by device and width.
        weight: what D is multiplied with in the loss.
        labels: next token ids [T], needed with `ce_weights`.
        ce_weights: what each token's cross-entropy is multiplied with [T], or None for no cross-entropy.
        student_rows, teacher_rows: which rows of the logits are the T tokens [T]; None means all of them in order.
        tail: what becomes of the ids that a top-k teacher does not list.
        statistics: whether to measure both KLs, entropies, agreement and removed mass as well.
        kernels: whether Triton kernels may do the work where they know how.
    """

    divergence: str
    params: dict = field(default_factory=dict)
    temperature: float = 1.0
    group: ProcessGroup | None = None
    student_vocab: int | None = None
    teacher_vocab: int | None = None
    chunk_size: int | None = None
    weight: float = 1.0
    labels: Tensor | None = None
    ce_weights: Tensor | None = None
    student_rows: Tensor | None = None
    teacher_rows: Tensor | None = None
    tail: str = "bucket"
    statistics: bool = False
    kernels: bool = True


@dataclass(frozen=True, kw_only=True)
class Request(LossOptions):
    """Options that were checked against both sides.

    Args:
        params: complete, without `clip`.
        student, teacher: who holds which columns; of a top-k teacher only the number of ids.
        clip: largest contribution of one vocabulary entry to D, or None.
        teacher_temperature: temperature at which a top-k teacher's log-probabilities were taken.
        chunk: tokens that are worked on at once.
        block: tokens whose logits are there at once, where a head makes them; None means all.
    """

    student: VocabShard
    teacher: VocabShard
    clip: float | None
    teacher_temperature: float = 1.0
    chunk: int
    block: int | None = None

    def part(self, tokens: slice, student_rows: Tensor | None, teacher_rows: Tensor | None) -> "Request":
        """The same of some of the tokens, which lie in these rows of what there is of them."""
        labels, ce_weights = (None if all_of is None else all_of[tokens] for all_of in (self.labels, self.ce_weights))
        rows = {"student_rows": student_rows, "teacher_rows": teacher_rows}
        return replace(self, labels=labels, ce_weights=ce_weights, **rows)


def make_request(student: Tensor | LMHead, teacher: Teacher, options: LossOptions) -> Request:
    """Checks what a user passed. All ranks of the group must call it: they tell each other their widths.

    Raises:
        ValueError: shapes, names or numbers that do not fit.
    """
    topk = isinstance(teacher, TopK)
    (_check_topk if topk else _check_dense)(student, teacher, options)
    count = len(teacher.ids if topk else teacher)
    if options.student_rows is None and len(student) != count:
        raise ValueError(f"The student has logits for {len(student)} tokens and the teacher for {count}.")
    clip, params = _check_params(options)
    vocabs = options.student_vocab, options.teacher_vocab
    shards = shards_of(student, None if topk else teacher.shape[1], options.group, *vocabs)
    columns = [sum(shard.widths) for shard in shards]
    if not topk and columns[0] != columns[1] and None in vocabs:
        raise ValueError(
            f"The student's vocabulary has {columns[0]} columns and the teacher's {columns[1]}; "
            "pass student_vocab and teacher_vocab, the numbers of their real ids."
        )
    values = {one.name: getattr(options, one.name) for one in fields(LossOptions)} | {"params": params}
    sizes = _chunk_sizes(options.chunk_size, shards, student, teacher)
    tempered = {"teacher_temperature": teacher.temperature} if topk else {}
    return Request(**values, student=shards[0], teacher=shards[1], clip=clip, **sizes, **tempered)


def _check_dense(student: Tensor | LMHead, teacher: Tensor | LMHead, options: LossOptions) -> None:
    if len(student.shape) != 2 or len(teacher.shape) != 2:
        raise ValueError(
            f"Logits are [tokens, vocabulary]; the student's have shape {tuple(student.shape)} and the teacher's "
            f"{tuple(teacher.shape)}{flatten_hint([student.shape, teacher.shape])}."
        )


def _check_topk(student: Tensor | LMHead, teacher: TopK, options: LossOptions) -> None:
    if len(student.shape) != 2 or teacher.log_probs.dim() != 2 or teacher.log_probs.shape != teacher.ids.shape:
        raise ValueError(
            f"Logits are [tokens, vocabulary] and log-probabilities and ids [tokens, K]; the shapes are "
            f"{tuple(student.shape)}, {tuple(teacher.log_probs.shape)} and {tuple(teacher.ids.shape)}"
            f"{flatten_hint([student.shape, teacher.log_probs.shape])}."
        )
    if options.tail not in TAILS:
        raise ValueError(
            f"There is no tail {options.tail!r}{suggest(options.tail, TAILS)}; choose one of {', '.join(TAILS)}."
        )
    if teacher.temperature not in (1.0, options.temperature):
        raise ValueError(
            f"teacher_temperature is {teacher.temperature}; it must be 1 or the loss's, {options.temperature}."
        )


def _check_params(options: LossOptions) -> tuple[float | None, dict]:
    """The clip, taken out of the parameters, and the divergence's own parameters, complete and in range."""
    params = dict(options.params)
    clip = params.pop("clip", None)
    params = check_params(options.divergence, params)
    if not options.temperature > 0:
        raise ValueError(f"The temperature must be above 0, and it is {options.temperature}.")
    if clip is not None and DIVERGENCES[options.divergence].mix is not None:
        raise ValueError(f"{options.divergence}, which is no sum over the vocabulary, cannot be clipped.")
    if clip is not None and clip <= 0:
        raise ValueError(f"clip is {clip} for {options.divergence}; it must be above 0.")
    return clip, params


def _chunk_sizes(
    chunk_size: int | None, shards: tuple[VocabShard, VocabShard], *sides: Tensor | LMHead | TopK
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


def chunk_tokens(width: int, device: torch.device) -> int:
    """Tokens per chunk: a thread's part stays in its cache on a CPU, a GPU's kernels are long enough."""
    if device.type == "cpu":
        threads = torch.get_num_threads()
        return max(threads, threads * CPU_CHUNK_ELEMENTS // max(width, 1))
    return max(1, GPU_CHUNK_ELEMENTS // max(width, 1))


def block_tokens(width: int, device: torch.device) -> int:
    """Tokens whose logits a head makes at once: enough to keep a matrix product busy, few enough to hold.

    Each block reads and writes the head's gradient once, which a GPU feels with fewer than about a thousand tokens.
    """
    elements = CPU_BLOCK_ELEMENTS if device.type == "cpu" else GPU_BLOCK_ELEMENTS
    return max(1, elements // max(width, 1))
