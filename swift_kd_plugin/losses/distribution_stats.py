"""What is measured of a pair of distributions besides the loss, per token."""

from torch import Tensor

from swift_kd_plugin.losses.distributions import Pair
from swift_kd_plugin.losses.softmax import SoftmaxSide


def entropy_sums(pair: Pair, logits_p: Tensor, logits_q: Tensor) -> dict[str, Tensor]:
    """This rank's part of both KLs and of both mean logits, float64 [C] each."""
    return {
        "forward_kl": (pair.p * pair.log_ratio).sum(-1).double(),
        "reverse_kl": -(pair.q * pair.log_ratio).sum(-1).double(),
        "mean_p": (pair.p * logits_p).sum(-1).double(),
        "mean_q": (pair.q * logits_q).sum(-1).double(),
    }


def finish_entropies(sums: dict[str, Tensor], lse_p: Tensor, lse_q: Tensor) -> dict[str, Tensor]:
    return {
        "forward_kl": sums["forward_kl"],
        "reverse_kl": sums["reverse_kl"],
        "teacher_entropy": lse_p - sums["mean_p"],
        "student_entropy": lse_q - sums["mean_q"],
    }


def peaks(p: SoftmaxSide, q: SoftmaxSide) -> dict[str, Tensor]:
    """The largest logit of either side on this rank, and the student's logit where the teacher's is largest [C]."""
    if p.logits.shape[1] == 0:
        return {"peak_p": p.peak.double(), "peak_q": q.peak.double(), "q_at_peak_p": q.peak.double()}
    favourite = p.logits.argmax(-1, keepdim=True)
    at_favourite = q.logits.gather(1, favourite)[:, 0]
    return {"peak_p": p.peak.double(), "peak_q": q.peak.double(), "q_at_peak_p": at_favourite.double()}


def top1_agreement(gathered: dict[str, Tensor]) -> Tensor:
    """1.0 where both sides' most probable token is the same, else 0.0: [ranks, C] -> [C]."""
    owner = gathered["peak_p"].argmax(0, keepdim=True)
    at_favourite = gathered["q_at_peak_p"].gather(0, owner)[0]
    return (at_favourite == gathered["peak_q"].amax(0)).double()
