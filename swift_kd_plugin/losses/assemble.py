"""What a token's loss is made of, put together in one place for dense, top-k and Triton losses. C tokens of a chunk."""

import torch
from torch import Tensor

from swift_kd_plugin.losses.distribution_stats import finish_entropies, top1_agreement
from swift_kd_plugin.losses.distributions import Pair
from swift_kd_plugin.losses.divergences import DIVERGENCES, Terms
from swift_kd_plugin.losses.label_ce import STUDENT_CE, TEACHER_CE, label_ce
from swift_kd_plugin.losses.request import Request
from swift_kd_plugin.losses.softmax import cross_entropy

REMOVED_FROM = {"removed_student_mass": "q", "removed_teacher_mass": "p"}  # and what is kept of the same side


def loss_of(request: Request, tokens: slice, parts: dict[str, Tensor]) -> Tensor:
    """`weight * D + ce_weights * CE` [C]."""
    loss = request.weight * parts["divergence"]
    return loss + request.ce_weights[tokens].double() * parts["ce"] if "ce" in parts else loss


def parts_of(
    request: Request, tokens: slice, divergence: Tensor, lse: dict[str, Tensor], label_logit: Tensor | None
) -> dict[str, Tensor]:
    """The divergence and, where it is asked for, the cross-entropy, float64 [C] each."""
    if request.ce_weights is None:
        return {"divergence": divergence}
    return {"divergence": divergence, "ce": cross_entropy(request.labels[tokens], lse["ce"], label_logit)}


def dense_parts(
    request: Request,
    tokens: slice,
    divergence: Tensor,
    sums: dict[str, Tensor],
    lse: dict[str, Tensor],
    gathered: dict[str, Tensor],
) -> dict[str, Tensor]:
    """All that is measured of whole distributions, float64 [C] each.

    Args:
        sums: over the ranks: `label_logit`, and for the statistics both KLs and mean logits.
        lse: logsumexp over the ranks of `p`, `q`, `ce` and what was removed of either side, and, where the temperature
            is not 1, of each side's logits as they are.
        gathered: what every rank found, [ranks, C] each: the largest logits, and the label's.
    """
    parts = parts_of(request, tokens, divergence, lse, sums.get("label_logit"))
    if request.statistics:
        parts |= finish_entropies(sums, lse["p"], lse["q"])
        parts["top1_agreement"] = top1_agreement(gathered)
        if request.labels is not None:
            parts |= _label_ces(request, tokens, lse, gathered)
    return parts | {name: torch.sigmoid(lse[name] - lse[side]) for name, side in REMOVED_FROM.items() if name in lse}


def _label_ces(
    request: Request, tokens: slice, lse: dict[str, Tensor], gathered: dict[str, Tensor]
) -> dict[str, Tensor]:
    labels, found = request.labels[tokens], {}
    for name, side, shard, removed in (
        (STUDENT_CE, "q", request.student, "removed_student_mass"),
        (TEACHER_CE, "p", request.teacher, "removed_teacher_mass"),
    ):
        whole = lse.get("ce", lse.get(name)) if name == STUDENT_CE else lse.get(name)
        if whole is None:  # at temperature 1 that of the softmax, and of what was left out of it
            whole = torch.logaddexp(lse[side], lse[removed]) if removed in lse else lse[side]
        found[name] = label_ce(labels, shard.vocab, whole, gathered[f"label_{name}"])
    return found


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
