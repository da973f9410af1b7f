"""Dense losses by Triton kernels: what `dense.dense_losses` does in chunks, in two or three passes over all tokens.

    pass 1   peak and mass of both sides per token          -> one gather over the ranks
    pass 2   sums of the divergence's terms                 -> one sum over the ranks
    pass 3   the gradient, written once in the student's precision

The gradient needs the sum of the slopes over the vocabulary first. For forward_kl it is -1 and for reverse_kl it is
gathered in pass 1, so passes 2 and 3 are one: 2 reads of each side and 1 write, the least there is for a softmax that
is not kept. jsd, skew_kl, skew_rkl and tvd take 3 reads of each side and 1 write: in bf16, 14 bytes per column instead
of 10. Without a gradient all take 2 reads of each side. Every pass streams far more than a GPU's L2 cache holds, so
that nothing is said about what to keep there. Extra memory: less than 1 KB per token.

T tokens, v this rank's columns that both sides have. `triton` is imported when the first loss is computed.
"""

import math
import os
from functools import cache
from importlib.util import find_spec

import torch
from torch import Tensor

from swift_kd_plugin.losses.assemble import dense_parts
from swift_kd_plugin.losses.chunked import LossRows
from swift_kd_plugin.losses.label_ce import STUDENT_CE, TEACHER_CE
from swift_kd_plugin.losses.request import Request
from swift_kd_plugin.losses.softmax import find_columns, local_label_logit, logsumexp

KERNEL_DIVERGENCES = ("forward_kl", "reverse_kl", "jsd", "skew_kl", "skew_rkl", "tvd")
SUM_OF_SLOPES_IN_PASS_1 = ("forward_kl", "reverse_kl")
SKEWED = {"skew_kl": "forward_kl", "skew_rkl": "reverse_kl"}  # and what they are for lambda 0
DTYPES = (torch.bfloat16, torch.float16, torch.float32)
LARGEST_BLOCK = 4096
COLUMNS_PER_WARP = 256  # 8 per thread: 16 bytes of bf16 in one load
LOG2_OF_E = math.log2(math.e)


def kernels_apply(request: Request, student: Tensor, teacher: Tensor) -> bool:
    """Whether the kernels know this request; the same on all ranks, which must take part in the same collectives.

    CPU tensors are taken if TRITON_INTERPRET=1, which Triton itself reads: its interpreter then runs the kernels.
    """
    if not (student.is_cuda or os.environ.get("TRITON_INTERPRET") == "1") or not _have_triton():
        return False
    columns_move = request.student.group is not None and request.student.widths != request.teacher.widths
    return (
        request.kernels
        and request.divergence in KERNEL_DIVERGENCES
        and request.clip is None
        and not columns_move
        and all(side.dtype in DTYPES and side.stride(1) == 1 for side in (student, teacher))
    )


@cache
def _have_triton() -> bool:
    return find_spec("triton") is not None


def kernel_losses(request: Request, student: Tensor, teacher: Tensor, gradient: Tensor | None) -> LossRows:
    """`dense.dense_losses` for a request that `kernels_apply` to."""
    rows = LossRows(request, student)
    if len(rows.loss):
        with torch.cuda.device_of(student):
            rows.put(slice(None), _Losses(request, student, teacher, gradient).values())
    return rows


class _Losses:
    """One request over all its T tokens. What is kept per token is float64 [T], but for what the kernels take."""

    def __init__(self, request: Request, student: Tensor, teacher: Tensor, gradient: Tensor | None):
        from swift_kd_plugin.losses import triton_kernels

        self.kernels = triton_kernels
        self.request, self.student, self.teacher, self.gradient = request, student, teacher, gradient
        self.kind, self.beta, self.scale = _kernel_terms(request)
        self.shard = request.student.cut(request.teacher.vocab)
        self.rows = [_rows(student, request.student_rows), _rows(teacher, request.teacher_rows)]
        self.tokens = len(self.rows[0])
        self.tempered = request.temperature != 1.0
        self.removes = request.student.vocab != request.teacher.vocab
        self.ce = request.ce_weights is not None
        if self.ce:
            column, here = find_columns(request.labels, request.student)
            self.label = torch.where(here, column, -1).to(torch.int32)
            self.ce_weights = torch.where(request.labels >= 0, request.ce_weights, 0.0).double()
        self.labelled = request.statistics and request.labels is not None

    def values(self) -> dict[str, Tensor]:
        """What each token's loss is made of; writes the gradient on the way."""
        found = self._normalise()
        lse, gathered = self._join(found)
        label_logit = self._label_logit()
        scalars = self._scalars(found, lse)
        at_once = self.gradient is not None and self.kind in SUM_OF_SLOPES_IN_PASS_1
        if at_once:
            scalars["total"] = self._total(gathered, lse)
        partial = self._partial(self._measure(scalars, total=True, write=at_once), found, lse)
        partial["label_logit"] = label_logit
        sums = dict(zip(partial, self.shard.sum(torch.stack(list(partial.values()))), strict=True))
        if self.gradient is not None and not at_once:
            self._measure(scalars | {"total": sums["slope"]}, total=False, write=True)
        return dense_parts(self.request, slice(None), sums["value"], sums, lse, gathered)

    def _normalise(self) -> dict[str, Tensor]:
        """This rank's `NORMALISERS`; those that this request does not need are 0."""
        names, request = self.kernels.NORMALISERS, self.request
        found = self.student.new_zeros(len(names), self.tokens, dtype=torch.float32)
        self._launch(
            self.kernels.normalise, *self._sides(), found, self.tokens,
            self.shard.width, request.student.width, request.teacher.width, LOG2_OF_E / request.temperature,
            CE_APART=(self.ce or self.labelled) and self.tempered, PLAIN_P=self.labelled and self.tempered,
            RATIO=self.gradient is not None and self.kind == "reverse_kl",
            FAVOURITE=request.statistics, RESTS=self.removes,
        )  # fmt: skip
        return dict(zip(names, found.double(), strict=True))

    def _join(self, found: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """logsumexp over all ranks of everything that needs one, and all ranks' [ranks, T] of what was gathered."""
        local = {side: self._lse(found, f"peak_{side}", f"mass_{side}") for side in "pq"}
        if self.removes:
            local["removed_student_mass"] = self._lse(found, "rest_peak_q", "rest_mass_q")
            local["removed_teacher_mass"] = self._lse(found, "rest_peak_p", "rest_mass_p")
        if self.ce or (self.labelled and self.tempered):
            local["ce"] = self._plain_lse(found, "q", "ce_mass" if self.tempered else "mass_q", "rest_ce_mass")
        if self.labelled and self.tempered:
            local[TEACHER_CE] = self._plain_lse(found, "p", "plain_mass_p", "rest_plain_mass_p")
        names = list(local)
        if self.labelled:
            local |= self._label_logits()
        if self.request.statistics:
            local |= {name: found[name] for name in ("peak_p", "peak_q", "q_at_peak_p")}
        if self.kind == "reverse_kl":
            mean = (found["ratio"] / found["mass_q"] + found["offset"]) / self.request.temperature
            local["mean_ratio"] = torch.where(found["mass_q"] == 0, 0.0, mean)
        everyone = self.shard.gather(torch.stack(list(local.values())))
        gathered = dict(zip(local, everyone.unbind(1), strict=True))
        return {name: logsumexp(gathered[name]) for name in names}, gathered

    def _plain_lse(self, found: dict[str, Tensor], side: str, mass: str, rest_mass: str) -> Tensor:
        """logsumexp of all of a side's logits at temperature 1 over this rank's columns."""
        plain = found[f"peak_{side}"] + found[mass].log()
        if not self.removes:
            return plain
        return torch.logaddexp(plain, found[f"rest_peak_{side}"] + found[rest_mass].log())

    def _label_logits(self) -> dict[str, Tensor]:
        """This rank's part of both sides' logits of the label; read before a gradient may take their place."""
        request, (student_rows, teacher_rows) = self.request, self.rows
        return {
            f"label_{STUDENT_CE}": local_label_logit(self.student, request.student, request.labels, student_rows),
            f"label_{TEACHER_CE}": local_label_logit(self.teacher, request.teacher, request.labels, teacher_rows),
        }

    def _lse(self, found: dict[str, Tensor], peak: str, mass: str) -> Tensor:
        """logsumexp over this rank's columns; -inf where it has none."""
        return found[peak] / self.request.temperature + found[mass].log()

    def _scalars(self, found: dict[str, Tensor], lse: dict[str, Tensor]) -> dict[str, Tensor]:
        scalars = {name: found[name] for name in ("peak_q", "peak_p")}
        for side in "pq":
            factor = torch.exp(found[f"peak_{side}"] / self.request.temperature - lse[side])
            scalars[f"factor_{side}"] = torch.where(found[f"mass_{side}"] == 0, 0.0, factor)
        shift = lse["p"] - lse["q"]
        # What rounding leaves over is taken off too: large logits give large logsumexps.
        scalars |= {"shift": shift, "shift_rest": shift - shift.float().double()}
        if self.ce:
            peak = torch.maximum(found["peak_q"], found["rest_peak_q"]) if self.removes else found["peak_q"]
            scalars |= {"ce_peak": peak, "ce_factor": torch.exp(peak - lse["ce"]), "ce_weight": self.ce_weights}
        return scalars

    def _total(self, gathered: dict[str, Tensor], lse: dict[str, Tensor]) -> Tensor:
        """The sum of the slopes over all columns, from what pass 1 has gathered."""
        if self.kind == "forward_kl":
            return torch.full_like(lse["q"], -1.0)
        share = torch.exp(gathered["q"] - lse["q"])
        return (share * gathered["mean_ratio"]).sum(0) - (lse["q"] - lse["p"])

    def _measure(self, scalars: dict[str, Tensor], total: bool, write: bool) -> dict[str, Tensor]:
        """Runs the kernel `measure`: this rank's `SUMS` if `total` (else 0), and the gradient if `write`."""
        request, missing = self.request, torch.zeros_like(scalars["shift"])
        packed = torch.stack([scalars.get(name, missing) for name in self.kernels.SCALARS]).float()
        sums = packed.new_zeros(len(self.kernels.SUMS), self.tokens)
        gradient = self.student if self.gradient is None else self.gradient
        self._launch(
            self.kernels.measure, *self._sides(), gradient, gradient.stride(0),
            packed, self.label if self.ce else self.rows[0], sums, self.tokens,
            self.shard.width, request.student.width, gradient.shape[1],
            LOG2_OF_E / request.temperature, 1 / request.temperature,
            self.beta, 1 - self.beta, self.scale, request.weight / request.temperature,
            KIND=self.kind, SUM=total, STATISTICS=total and request.statistics,
            SUM_SLOPE=total and not write and self.gradient is not None,
            WRITE=write, CE=write and self.ce, CE_APART=self.tempered or self.removes,
        )  # fmt: skip
        return dict(zip(self.kernels.SUMS, sums.double(), strict=True))

    def _partial(self, sums: dict[str, Tensor], found: dict[str, Tensor], lse: dict[str, Tensor]) -> dict[str, Tensor]:
        """The sums of `measure` with both mean logits no longer relative to this rank's peaks."""
        if not self.request.statistics:
            return {name: sums[name] for name in ("value", "slope")}
        for side in "pq":
            share = torch.exp(self._lse(found, f"peak_{side}", f"mass_{side}") - lse[side])
            sums[f"mean_{side}"] += share * found[f"peak_{side}"]
            sums[f"mean_{side}"] /= self.request.temperature
        return sums

    def _label_logit(self) -> Tensor:
        """This rank's part of the label's logit for the loss; 0 without a cross-entropy in it."""
        if not self.ce:
            return torch.zeros(self.tokens, dtype=torch.float64, device=self.student.device)
        return local_label_logit(self.student, self.request.student, self.request.labels, self.rows[0])

    def _sides(self) -> tuple:
        student_rows, teacher_rows = self.rows
        return self.student, student_rows, self.student.stride(0), self.teacher, teacher_rows, self.teacher.stride(0)

    def _launch(self, kernel, *args, **constants) -> None:
        block = min(LARGEST_BLOCK, max(4 * COLUMNS_PER_WARP, 1 << (self.student.shape[1] - 1).bit_length()))
        warps = block // COLUMNS_PER_WARP
        kernel[(self.tokens,)](*args, **constants, BLOCK=block, num_warps=warps, enable_fp_fusion=False)


def _rows(logits: Tensor, rows: Tensor | None) -> Tensor:
    return torch.arange(len(logits), device=logits.device) if rows is None else rows.long()


def _kernel_terms(request: Request) -> tuple[str, float, float]:
    """What the kernels call the divergence, the teacher's part in the mixture, and what jsd is multiplied with."""
    kind, params = request.divergence, request.params
    if kind == "jsd" and 0 < params["beta"] < 1:
        beta = params["beta"]
        return kind, beta, 1 / (beta * (1 - beta)) if params["scaled"] else 1.0
    if kind == "jsd":
        return ("reverse_kl" if params["beta"] else "forward_kl"), 0.0, 1.0
    if kind in SKEWED and params["lam"] == 0:
        return SKEWED[kind], 0.0, 1.0
    if kind in SKEWED:
        return kind, float(params["lam"] if kind == "skew_kl" else 1 - params["lam"]), 1.0
    return kind, 0.0, 1.0
