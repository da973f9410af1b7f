"""What a caller asks of a chunked loss, and the rows of numbers it gets back."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from swift_kd_plugin.losses.distributions import Pair, Terms
from swift_kd_plugin.losses.divergences import DIVERGENCES
from swift_kd_plugin.losses.lm_head import LMHead
from swift_kd_plugin.losses.shards import VocabShard

CPU_CHUNK_ELEMENTS = 2**17
GPU_CHUNK_ELEMENTS = 2**25
CPU_BLOCK_ELEMENTS = 2**25
GPU_BLOCK_ELEMENTS = 2**28


@dataclass(frozen=True)
class Request:
    """A loss over T tokens: `weight * D + ce_weights * CE` per token.

    Args:
        divergence, params, temperature: D and what P and Q are divided by before the softmax.
        student, teacher: who holds which columns; of a top-k teacher only the number of ids.
        weight: what D is multiplied with in the loss.
        labels: next token ids [T], needed with `ce_weights`.
        ce_weights: what each token's cross-entropy is multiplied with [T], or None for no cross-entropy.
        clip: largest contribution of one vocabulary entry to D, or None.
        student_rows, teacher_rows: which rows of the logits are the T tokens [T]; None means all of them in order.
        tail: what becomes of the ids that a top-k teacher does not list.
        teacher_temperature: temperature at which a top-k teacher's log-probabilities were taken.
        statistics: whether to measure both KLs, entropies, agreement and removed mass as well.
        kernels: whether Triton kernels may do the work where they know how.
        chunk: tokens that are worked on at once.
        block: tokens whose logits are there at once, where a head makes them; None means all.
    """

    divergence: str
    params: dict
    temperature: float
    student: VocabShard
    teacher: VocabShard
    weight: float = 1.0
    labels: Tensor | None = None
    ce_weights: Tensor | None = None
    clip: float | None = None
    student_rows: Tensor | None = None
    teacher_rows: Tensor | None = None
    tail: str = "bucket"
    teacher_temperature: float = 1.0
    statistics: bool = False
    kernels: bool = True
    chunk: int = 1
    block: int | None = None

    def chunks(self, student: Tensor) -> Iterator[slice]:
        return slices(len(student if self.student_rows is None else self.student_rows), self.chunk)

    def blocks(self, total: int) -> Iterator[slice]:
        return slices(total, self.block or total)

    def part(self, tokens: slice, student_rows: Tensor | None, teacher_rows: Tensor | None) -> "Request":
        """The same of some of the tokens, which lie in these rows of what there is of them."""
        labels, ce_weights = (None if all_of is None else all_of[tokens] for all_of in (self.labels, self.ce_weights))
        rows = {"student_rows": student_rows, "teacher_rows": teacher_rows}
        return replace(self, labels=labels, ce_weights=ce_weights, **rows)


class LossRows:
    """Per token: the mixed `loss` [T] and its `parts` [T] each, all in the working precision."""

    def __init__(self, request: Request, student: Tensor | LMHead):
        rows = student if request.student_rows is None else request.student_rows
        self.loss = torch.zeros(len(rows), dtype=working_dtype(student), device=student.device)
        self.parts: dict[str, Tensor] = {}

    def put(self, tokens: slice, loss: Tensor, parts: dict[str, Tensor]) -> None:
        self.loss[tokens] = loss.to(self.loss.dtype)
        for name, values in parts.items():
            row = self.parts.setdefault(name, torch.zeros_like(self.loss))
            row[tokens] = values.to(row.dtype)


def slices(total: int, size: int) -> Iterator[slice]:
    """[0, total) in pieces of `size`, of which the last may be shorter."""
    for start in range(0, total, max(size, 1)):
        yield slice(start, min(start + size, total))


def working_dtype(logits: Tensor | LMHead) -> torch.dtype:
    """fp32 for half precisions and fp32, float64 for float64."""
    return torch.float64 if logits.dtype == torch.float64 else torch.float32


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


def rows_of(logits: Tensor, rows: Tensor | None, tokens: slice) -> Tensor:
    """The chunk's rows of `logits`: a view, or a copy where rows are picked."""
    return logits[tokens] if rows is None else logits.index_select(0, rows[tokens])


def write_rows(gradient: Tensor, rows: Tensor | None, tokens: slice, values: Tensor) -> None:
    """Writes a chunk's gradient, rounding it to the buffer's precision; columns beyond `values` become zero."""
    width = values.shape[1]
    if rows is None:
        gradient[tokens, :width] = values.to(gradient.dtype)
        gradient[tokens, width:] = 0
    else:
        if width < gradient.shape[1]:
            values = torch.nn.functional.pad(values, (0, gradient.shape[1] - width))
        gradient.index_copy_(0, rows[tokens], values.to(gradient.dtype))


class MeasuredChunk:
    """A divergence's terms on a chunk, before and after they are summed over the ranks."""

    def __init__(self, request: Request, pair: Pair):
        self.divergence = DIVERGENCES[request.divergence]
        self.pair = pair
        # Clipped entries have no slope, so that the unclipped ones need the part that centring takes off all alike.
        pair.complete = pair.complete and request.clip is None
        self.terms = [_clipped(term, request.clip) for term in self.divergence.terms(pair, **request.params)]

    def local_sums(self) -> dict[str, Tensor]:
        """This rank's sums over its columns, value and slope of each list of terms, float64 [C] each."""
        parts = [part for term in self.terms for part in term]
        return {f"term_{index}": part.sum(-1).double() for index, part in enumerate(parts)}

    def take(self, named: dict[str, Tensor]) -> Tensor:
        """From the sums over all columns the divergence per token, float64 [C]."""
        sums = torch.stack([named[f"term_{index}"] for index in range(2 * len(self.terms))])
        values, self._slopes = sums[0::2], sums[1::2]
        if self.divergence.mix is None:
            self._weights = None
            return values[0]
        value, self._weights = self.divergence.mix(values)
        return value

    def gradient(self) -> tuple[Tensor, Tensor]:
        """The weighted slopes [C, v] and their sum over the vocabulary [C]: the gradient is slope - Q * sum."""
        if self._weights is None:
            return self.terms[0].slope, self._slopes[0]
        weights = self._weights.to(self.pair.q.dtype)[:, :, None]
        slope = self.terms[0].slope * weights[0]
        for weight, term in zip(weights[1:], self.terms[1:], strict=True):
            slope.addcmul_(term.slope, weight)
        return slope, (self._weights * self._slopes).sum(0)


def _clipped(term: Terms, clip: float | None) -> Terms:
    if clip is None:
        return term
    return Terms(term.value.clamp_max(clip), term.slope * (term.value <= clip))
