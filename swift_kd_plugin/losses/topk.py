"""Losses against a teacher that tells its K most probable tokens only.

T tokens, C tokens of a chunk, v this rank's columns of the student, K entries of the teacher, B = K + 1 buckets: the
entries and one more that holds the probability of all other ids, on both sides.
Per chunk one gather of the ranks' normalisers and one sum of the student's K logits; the rest is the same on all ranks.
"""

import torch
from torch import Tensor

from swift_kd_plugin.losses.assemble import MeasuredChunk, parts_of
from swift_kd_plugin.losses.chunked import LossRows, Window, losses_by_chunks, slices, working_dtype
from swift_kd_plugin.losses.distribution_stats import entropy_sums
from swift_kd_plugin.losses.distributions import Pair
from swift_kd_plugin.losses.label_ce import STUDENT_CE, TEACHER_CE, label_ce, listed_ce
from swift_kd_plugin.losses.lm_head import LMHead
from swift_kd_plugin.losses.request import Request, block_tokens, chunk_tokens
from swift_kd_plugin.losses.shards import VocabShard
from swift_kd_plugin.losses.softmax import CrossEntropy, SoftmaxSide, find_columns, local_label_logit, logsumexp


@torch.no_grad()
def teacher_topk(
    logits: Tensor | LMHead, k: int, shard: VocabShard, temperature: float = 1.0
) -> tuple[Tensor, Tensor, Tensor]:
    """The k most probable tokens over all ranks: log-probabilities in fp32 or finer [T, k], global ids [T, k], and the
    shift [T] with which `temperature * log-probabilities + shift` are those at temperature 1.

    Args:
        logits: [T, v] of this rank, or a head that makes them, block by block.
        temperature: divides the logits before the log-softmax over the whole vocabulary.
    """
    count, total, width = min(k, shard.vocab), len(logits), max(shard.widths)
    log_probs = torch.empty(total, count, dtype=working_dtype(logits), device=logits.device)
    ids = torch.empty(total, count, dtype=torch.long, device=logits.device)
    shift = log_probs.new_empty(total)
    size = min(total, block_tokens(width, logits.device)) if isinstance(logits, LMHead) else total
    window = Window(logits, None, size)
    for block in slices(total, size):
        shown = window.show(block)[0]
        for chunk in slices(len(shown), chunk_tokens(width, logits.device)):
            part = slice(block.start + chunk.start, block.start + chunk.stop)
            log_probs[part], ids[part], shift[part] = _largest(shown[chunk], count, shard, temperature)
    return log_probs, ids, shift


def _largest(logits: Tensor, count: int, shard: VocabShard, temperature: float) -> tuple[Tensor, Tensor, Tensor]:
    """`teacher_topk` of a chunk, float64 [C, count], ids [C, count] and float64 [C]."""
    side = SoftmaxSide(logits[:, : shard.width], temperature, working_dtype(logits))
    candidates = side.logits.topk(min(count, shard.width), dim=-1)
    values = side.logits.new_full((len(side.logits), count), -torch.inf)
    columns = candidates.indices.new_zeros(values.shape)
    values[:, : candidates.values.shape[1]] = candidates.values
    columns[:, : candidates.values.shape[1]] = candidates.indices + shard.start
    # One gather: ids below 2**53 are exact in float64.
    lses = torch.stack([side.local_lse(), side.plain_lse(temperature)], 1)
    local = torch.cat([values.double(), columns.double(), lses], 1)
    everyone = shard.gather(local)
    best = everyone[:, :, :count].transpose(0, 1).flatten(1).topk(count, dim=-1)
    ids = everyone[:, :, count:-2].transpose(0, 1).flatten(1).gather(1, best.indices).long()
    tempered, plain = logsumexp(everyone[:, :, -2]), logsumexp(everyone[:, :, -1])
    return best.values - tempered[:, None], ids, temperature * tempered - plain


def topk_losses(request: Request, student: Tensor, log_probs: Tensor, ids: Tensor, *more: Tensor | None) -> LossRows:
    """Fills `gradient` (this rank's [T, v], or None) and returns what `request` asks for, per token.

    Args:
        student: [T, v] logits of this rank; may be the same memory as `gradient`.
        log_probs: [T, K] the teacher's log-probabilities over its whole vocabulary; -inf marks a missing entry.
        ids: [T, K] their global token ids, each at most once per token.
        more: the teacher's shift [T] if it has one (see `TopK`), and `gradient`.
    """
    *shift, gradient = more
    return losses_by_chunks(_Chunk, request, student, [log_probs, ids, *shift], gradient)


class _Chunk:
    def __init__(self, request: Request, student: Tensor, log_probs: Tensor, ids: Tensor, *more: Tensor | slice):
        (*shift, tokens), temperature = more, request.teacher_temperature
        # The teacher's log-probabilities at temperature 1, float64 [C, K]; None where nobody told.
        self.plain_p = temperature * log_probs.double() + shift[0][:, None] if shift else None
        self.request, self.tokens, self.dtype = request, tokens, working_dtype(student)
        self.shard = request.student.cut(request.teacher.vocab)
        # A teacher that was tempered before it lost its tail is met by a student that is; otherwise both are tempered
        # after, as distributions over buckets.
        self.early = request.temperature if request.teacher_temperature == request.temperature else 1.0
        self.late = request.temperature / self.early
        self._read_teacher(log_probs, ids)
        column, here = find_columns(ids, self.shard)
        self.here = self.present & here
        self.column = torch.where(self.here, column, 0)
        logits = SoftmaxSide.scaled(student[:, : self.shard.width], self.early, self.dtype)
        self.entries = self._pick(logits)
        listed = torch.where(self.here, -torch.inf, 0.0).to(logits.dtype)
        self.rest = SoftmaxSide(
            logits.scatter_add(1, self.column, listed) if self.shard.width else logits, 1.0, self.dtype
        )
        self.ce = None
        if request.ce_weights is not None:
            labels, weights = request.labels[tokens], request.ce_weights[tokens]
            self.ce = CrossEntropy(student, labels, weights, request.student, self.dtype)
        self.label_logit = self.plain = None
        if request.statistics and request.labels is not None:
            self.label_logit = local_label_logit(student, request.student, request.labels[tokens])
            if self.ce is None and (self.early != 1.0 or self.shard.vocab != request.student.vocab):
                self.plain = SoftmaxSide(student[:, : request.student.width], 1.0, self.dtype)

    def _read_teacher(self, log_probs: Tensor, ids: Tensor) -> None:
        """The teacher over the ids that both sides have, float64: log-probabilities [C, K], tail [C], removed [C]."""
        finite_mask = torch.isfinite(log_probs)
        self.present = finite_mask & (ids < self.shard.vocab)
        exact = log_probs.double().masked_fill(~finite_mask, -torch.inf)
        self.exact, self.ids = exact, ids
        self.removed = exact.masked_fill(self.present, -torch.inf).exp().sum(-1)
        # Log-probabilities in fp32 add up to one no closer than this.
        rounding = torch.finfo(log_probs.dtype).eps / 2
        tail = (1 - exact.exp().sum(-1)).clamp_min(rounding)
        nothing_left = self.present.sum(-1) == self.shard.vocab
        self.log_tail = tail.log().masked_fill(nothing_left, -torch.inf)
        log_mass = torch.log1p(-self.removed.clamp_max(1 - rounding))
        self.log_p = exact.masked_fill(~self.present, -torch.inf) - log_mass[:, None]
        self.log_tail = self.log_tail - log_mass

    def _pick(self, logits: Tensor) -> Tensor:
        """The student's logits at the teacher's ids where this rank holds them, else 0; float64 [C, K]."""
        if self.shard.width == 0:
            return torch.zeros(self.column.shape, dtype=torch.float64, device=logits.device)
        return torch.where(self.here, logits.gather(1, self.column), 0.0).double()

    def values(self) -> dict[str, Tensor]:
        """What each token's loss is made of, all float64 [C]."""
        lse, sums = self._reduce()
        log_q = torch.cat([self.entries.masked_fill(~self.present, -torch.inf), lse["rest"][:, None]], 1)
        log_p = torch.cat([self.log_p, self.log_tail[:, None]], 1)
        if self.request.tail == "renormalise":
            log_q, log_p = log_q[:, :-1], log_p[:, :-1]
        log_q, log_p = (_log_softmax(_log_softmax(x) / self.late) for x in (log_q, log_p))
        self.q_buckets = log_q.exp()
        count = -1 if self.request.tail == "ignore" else None
        self.pair = _pair(log_p[:, :count], log_q[:, :count], complete=count is None)
        self.measured = MeasuredChunk(self.request, self.pair)
        self.ce_lse = lse.get("ce")
        divergence = self.measured.take(self.measured.local_sums())
        parts = parts_of(self.request, self.tokens, divergence, lse, sums[:, -1])
        return parts | self._statistics(lse, sums[:, 0]) if self.request.statistics else parts

    def _reduce(self) -> tuple[dict[str, Tensor], Tensor]:
        """Normalisers over all ranks, and the sums over ranks; fills in the student's K logits and tail."""
        sides = {"rest": self.rest} | ({"ce": self.ce.side} if self.ce else {})
        sides |= {} if self.plain is None else {STUDENT_CE: self.plain}
        local = {name: side.local_lse() for name, side in sides.items()} | {"peak": self.rest.peak.double()}
        local |= {} if self.label_logit is None else {"label": self.label_logit}
        everyone = self.shard.gather(torch.stack(list(local.values())))
        gathered = dict(zip(local, everyone.unbind(1), strict=True))
        lse = {name: logsumexp(gathered[name]) for name in sides}
        self.rest_peak, self.lse_rest = gathered["peak"].amax(0), lse["rest"]
        self.label_logits = gathered.get("label")
        extra = [self._mean_of_rest()]
        if self.ce:
            extra.append(self.ce.label_logit())
        sums = self.shard.sum(torch.cat([self.entries, torch.stack(extra, 1)], 1))
        self.entries = sums[:, : -len(extra)]
        return lse, sums[:, -len(extra) :]

    def _mean_of_rest(self) -> Tensor:
        """This rank's part of the mean logit under the student's distribution over the ids not listed [C]."""
        if not self.request.statistics:
            return torch.zeros_like(self.lse_rest)
        return self.rest.mean_logit(self.lse_rest)

    def _statistics(self, lse: dict[str, Tensor], rest_mean: Tensor) -> dict[str, Tensor]:
        sums = entropy_sums(self.pair, self.pair.log_p, self.pair.log_q)
        listed = self.entries.masked_fill(~self.present, -torch.inf)
        log_total = torch.logaddexp(listed.logsumexp(-1), lse["rest"])
        shares = (listed - log_total[:, None]).exp()
        tail = (lse["rest"] - log_total).exp()
        mean = (shares * self.entries).sum(-1) + tail * rest_mean
        favourite = self.log_p.argmax(-1, keepdim=True)
        best = torch.maximum(listed.amax(-1), self.rest_peak)
        return {
            "forward_kl": sums["forward_kl"],
            "reverse_kl": sums["reverse_kl"],
            "teacher_entropy": -sums["mean_p"],
            "student_entropy": log_total - mean,
            "top1_agreement": (listed.gather(1, favourite)[:, 0] >= best).double(),
            "teacher_tail_mass": self.log_tail.exp(),
            "student_tail_mass": tail,
            "removed_teacher_mass": self.removed,
        } | self._label_ces(lse, log_total)

    def _label_ces(self, lse: dict[str, Tensor], log_total: Tensor) -> dict[str, Tensor]:
        """The student's cross-entropy with the labels, and the teacher's where it can be told [C]."""
        if self.label_logits is None:
            return {}
        labels, vocab = self.request.labels[self.tokens], self.request.student.vocab
        whole = lse.get("ce", lse.get(STUDENT_CE, log_total))
        found = {STUDENT_CE: label_ce(labels, vocab, whole, self.label_logits)}
        plain = self.exact if self.request.teacher_temperature == 1.0 else self.plain_p
        if plain is not None:
            found[TEACHER_CE] = listed_ce(labels, plain, self.ids)
        return found

    def gradient(self) -> Tensor:
        """This rank's gradient of the chunk's losses in the student's logits [C, v]."""
        slope, total = self.measured.gradient()
        scale = self.request.weight / self.request.temperature
        buckets = self.q_buckets * -total[:, None]
        buckets[:, : slope.shape[1]] += slope
        buckets *= scale
        tail = torch.zeros_like(total) if self.request.tail == "renormalise" else buckets[:, -1]
        gradient = self.rest.probabilities(self.lse_rest).mul_(tail.to(self.dtype)[:, None])
        if self.shard.width:
            listed = torch.where(self.here, buckets[:, : self.here.shape[1]], 0.0)
            gradient.scatter_add_(1, self.column, listed.to(self.dtype))
        return gradient if self.ce is None else self.ce.add_gradient(self.ce_lse, gradient)


def _log_softmax(logits: Tensor) -> Tensor:
    """log_softmax that stays -inf in a row without any entry: a renormalised teacher that tells nothing of a token."""
    return logits.log_softmax(-1).masked_fill(torch.isneginf(logits).all(-1, keepdim=True), -torch.inf)


def _pair(log_p: Tensor, log_q: Tensor, complete: bool) -> Pair:
    """Both sides over the same buckets; an entry that is missing has probability 0 on both and adds nothing."""
    missing = torch.isneginf(log_p) & torch.isneginf(log_q)
    zero = log_p.new_zeros(len(log_p))
    shard = VocabShard((log_p.shape[1],), 0, log_p.shape[1])
    logits_p, logits_q = log_p.masked_fill(missing, 0.0), log_q.masked_fill(missing, 0.0)
    return Pair(log_p.exp(), log_q.exp(), logits_p, logits_q, zero, zero, shard, complete)
