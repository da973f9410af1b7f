"""Losses over whole vocabularies: both sides' logits in, value and gradient per token out, chunk by chunk or, where
`triton_dense` knows how, by kernels.

T tokens, C tokens of a chunk, v_student / v_teacher a rank's columns of either side, v the columns that both have.
Per chunk one gather of the ranks' normalisers and one sum of a few stacked scalars per token; a teacher whose columns
lie on other ranks takes one exchange more, `adaptive_kl` one gather more.
"""

import torch
from torch import Tensor

from swift_kd_plugin.losses.assemble import MeasuredChunk, dense_parts
from swift_kd_plugin.losses.chunked import LossRows, losses_by_chunks, working_dtype
from swift_kd_plugin.losses.distribution_stats import entropy_sums, peaks
from swift_kd_plugin.losses.distributions import Pair
from swift_kd_plugin.losses.label_ce import STUDENT_CE, TEACHER_CE
from swift_kd_plugin.losses.request import Request
from swift_kd_plugin.losses.shards import move_columns
from swift_kd_plugin.losses.softmax import CrossEntropy, SoftmaxSide, local_label_logit, logsumexp
from swift_kd_plugin.losses.triton_dense import kernel_losses, kernels_apply

RULED_OUT = -1e30


def dense_losses(request: Request, student: Tensor, teacher: Tensor, gradient: Tensor | None) -> LossRows:
    """Fills `gradient` (this rank's [T, v_student], or None) and returns what `request` asks for, per token.

    Args:
        student: [T, v_student] logits of this rank; may be the same memory as `gradient`.
        teacher: [T, v_teacher] logits of this rank.
    """
    if kernels_apply(request, student, teacher):
        return kernel_losses(request, student, teacher, gradient)
    return losses_by_chunks(_Chunk, request, student, [teacher], gradient)


class _Chunk:
    def __init__(self, request: Request, student: Tensor, teacher: Tensor, tokens: slice):
        self.request, self.tokens, self.dtype, self.rules_out = request, tokens, working_dtype(student), False
        self.shard = request.student.cut(request.teacher.vocab)
        teacher_shard = request.teacher.cut(request.student.vocab)
        self.removed = {
            "removed_student_mass": self._side(student[:, self.shard.width : request.student.width]),
            "removed_teacher_mass": self._side(teacher[:, teacher_shard.width : request.teacher.width]),
        }
        if request.student.vocab == request.teacher.vocab:
            self.removed = {}
        self.label_logits = {}
        if request.statistics and request.labels is not None:
            sides = ((STUDENT_CE, student, request.student), (TEACHER_CE, teacher, request.teacher))
            labels = request.labels[tokens]
            self.label_logits = {f"label_{name}": local_label_logit(*side, labels) for name, *side in sides}
        if request.student.widths != request.teacher.widths:
            teacher = move_columns(teacher, request.teacher, self.shard)
        self.q = self._side(student[:, : self.shard.width])
        self.p = self._side(teacher[:, : self.shard.width])
        self.ce = None
        if request.ce_weights is not None:
            labels, weights = request.labels[tokens], request.ce_weights[tokens]
            self.ce = CrossEntropy(student, labels, weights, request.student, self.dtype)

    def _side(self, logits: Tensor) -> SoftmaxSide:
        logits = logits.to(self.dtype)
        if logits.numel() and torch.isneginf(logits.amin(-1)).any():  # by rows, which takes a third
            # An id that both sides rule out adds nothing; -inf - (-inf) would be no number.
            logits, self.rules_out = logits.clamp_min(RULED_OUT), True
        return SoftmaxSide(logits, self.request.temperature, self.dtype)

    def values(self) -> dict[str, Tensor]:
        """What each token's loss is made of, all float64 [C]."""
        lse, gathered = self._normalise()
        self.pair = Pair(
            self.p.probabilities(lse["p"]), self.q.probabilities(lse["q"]),
            self.p.logits, self.q.logits, lse["p"], lse["q"], self.shard,
        )  # fmt: skip
        self.measured = MeasuredChunk(self.request, self.pair)
        partial = self.measured.local_sums()
        if self.ce:
            self.ce_lse = lse["ce"]
            partial["label_logit"] = self.ce.label_logit()
        if self.request.statistics:
            partial |= entropy_sums(self.pair, self.p.logits, self.q.logits)
        sums = dict(zip(partial, self.shard.sum(torch.stack(list(partial.values()))), strict=True))
        divergence = self.measured.take(sums)
        if self.rules_out:
            # What one side alone rules out may cost without bound.
            divergence.masked_fill_(divergence > -RULED_OUT * 1e-9, torch.inf)
        return dense_parts(self.request, self.tokens, divergence, sums, lse, gathered)

    def _normalise(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """logsumexp over all ranks of everything that needs one, and what each rank gave to it and its peaks."""
        sides = {"p": self.p, "q": self.q, **self.removed} | ({"ce": self.ce.side} if self.ce else {})
        names, local = list(sides), {name: side.local_lse() for name, side in sides.items()}
        if self.request.statistics:
            local |= peaks(self.p, self.q)
        if self.label_logits:
            plain = self._plain_lses()
            names, local = [*sides, *plain], local | plain | self.label_logits
        everyone = self.shard.gather(torch.stack(list(local.values())))
        gathered = dict(zip(local, everyone.unbind(1), strict=True))
        return {name: logsumexp(gathered[name]) for name in names}, gathered

    def _plain_lses(self) -> dict[str, Tensor]:
        """logsumexp over this rank's columns of either side's logits as they are, where no other is that."""
        found = {}
        for name, side, removed in (
            (STUDENT_CE, self.q, self.removed.get("removed_student_mass")),
            (TEACHER_CE, self.p, self.removed.get("removed_teacher_mass")),
        ):
            if self.request.temperature == 1.0 or (name == STUDENT_CE and self.ce):
                continue
            lses = [one.plain_lse(self.request.temperature) for one in (side, removed) if one is not None]
            found[name] = lses[0] if removed is None else torch.logaddexp(*lses)
        return found

    def gradient(self) -> Tensor:
        """This rank's gradient of the chunk's losses in the student's logits [C, v]."""
        slope, total = self.measured.gradient()
        scale = self.request.weight / self.request.temperature
        gradient = torch.addcmul(slope, self.pair.q, -total.to(self.dtype)[:, None]).mul_(scale)
        return gradient if self.ce is None else self.ce.add_gradient(self.ce_lse, gradient)
