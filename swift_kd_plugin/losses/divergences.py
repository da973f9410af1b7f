"""Each divergence by its value and its gradient, term by term over the vocabulary of one chunk of tokens.

C tokens of a chunk, v this rank's columns (or K + 1 buckets of a top-k teacher). P teacher, Q student.

A divergence D = sum_i d(P_i, Q_i) is given as two tensors [C, v]: the terms d and the weighted slopes Q_i dd/dQ_i.
Summed over the vocabulary they give the value and, since Q is a softmax, the gradient in its logits:

    dD/dz_i = Q_i dd/dQ_i - Q_i sum_j Q_j dd/dQ_j

The table of the divergences is read by the command line too, so that nothing here imports torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from inspect import signature
from typing import TYPE_CHECKING, NamedTuple

from swift_kd_plugin.errors import suggest

if TYPE_CHECKING:
    from torch import Tensor

    from swift_kd_plugin.losses.distributions import Pair


class Terms(NamedTuple):
    """What each entry adds to a divergence, `value` d(P_i, Q_i), and its weighted `slope` Q_i dd/dQ_i, both [C, v]."""

    value: Tensor
    slope: Tensor


def forward_kl(pair: Pair) -> list[Terms]:
    return [Terms(pair.p * pair.log_ratio, -pair.p)]


def reverse_kl(pair: Pair) -> list[Terms]:
    value = (pair.q * pair.log_ratio).neg_()
    # d(Q log Q)/dQ has a constant 1 that centring removes, unless the probabilities do not add up to one.
    return [Terms(value, value if pair.complete else value + pair.q)]


def jsd(pair: Pair, beta: float, scaled: bool) -> list[Terms]:
    if beta in (0.0, 1.0):
        return forward_kl(pair) if beta == 0.0 else reverse_kl(pair)
    gap = pair.relative_gap(beta)
    scale = 1 / (beta * (1 - beta)) if scaled else 1.0
    teacher = _log1p_(gap * (1 - beta), pair.eps)
    student = _log1p_(gap.mul_(-beta), pair.eps).mul_(pair.q).mul_((1 - beta) * scale)
    return [Terms(pair.add_times_p(student, teacher, beta * scale), student)]


def skew_kl(pair: Pair, lam: float) -> list[Terms]:
    if lam == 0.0:
        return forward_kl(pair)
    gap = pair.relative_gap(lam)
    value = _log1p_(gap * (1 - lam), pair.eps).mul_(pair.p)
    if pair.complete:
        # This adds up to zero but for the rounding of both sides' normalisers, which it takes off.
        value.add_(pair.p - pair.q, alpha=lam - 1)
    return [Terms(value, gap.mul_(-lam).add_(1).mul_(pair.p).mul_(lam - 1))]


def skew_rkl(pair: Pair, lam: float) -> list[Terms]:
    if lam == 0.0:
        return reverse_kl(pair)
    gap = pair.relative_gap(1 - lam).mul_(lam - 1)
    share = (gap + 1).mul_(pair.q)
    value = _log1p_(gap, pair.eps).mul_(pair.q)
    slope = value - share.mul_(lam)
    if pair.complete:
        value.add_(pair.p - pair.q, alpha=1 - lam)
    return [Terms(value, slope if pair.complete else slope.add_(pair.q))]


def adaptive_kl(pair: Pair, head_mass: float, fixed_weights: bool) -> list[Terms]:
    """`fixed_weights` treats the gaps of head and tail as constants, as the paper's code does; otherwise the gradient
    is that of the value."""
    from swift_kd_plugin.losses.adaptive import head_of

    inside = head_of(pair.p, pair.shard, head_mass).to(pair.p.dtype)
    gap = pair.p - pair.q
    slope = gap.new_zeros(gap.shape) if fixed_weights else gap.sign().mul_(pair.q).neg_()
    head = Terms(gap.abs_() * inside, slope * inside)
    tail = Terms(gap - head.value, slope - head.slope)
    return [*forward_kl(pair), *reverse_kl(pair), head, tail]


def _mix_adaptive(sums: Tensor) -> tuple[Tensor, Tensor]:
    from swift_kd_plugin.losses.adaptive import mix_adaptive

    return mix_adaptive(sums)


def tvd(pair: Pair) -> list[Terms]:
    gap = pair.p - pair.q
    slope = gap.sign().mul_(pair.q).mul_(-0.5)
    return [Terms(gap.abs_().mul_(0.5), slope)]


def alpha_beta(pair: Pair, a: float, b: float) -> list[Terms]:
    if a == 0.0 or b == 0.0 or a + b == 0.0:
        return [_alpha_beta_limit(pair, a, b)]
    # P^a Q^b - a/s P^s - b/s Q^s is written from the larger of the two sides, so that no power overflows, and with
    # expm1, so that equal sides give exactly zero. `above` is 0 where the student is larger, `below` where it is not.
    s, ratio = a + b, pair.log_ratio
    above, below = ratio.relu(), (-ratio).relu_()
    larger = pair.log_p.maximum(pair.log_q).mul_(s).exp_()
    shrink = (-b * above - a * below).expm1()
    shrink_above, shrink_below = above.mul_(-s).expm1_(), below.mul_(-s).expm1_()
    slope = (shrink - shrink_above).mul_(larger).mul_(-1 / a)
    value = shrink.sub_(shrink_above, alpha=b / s).sub_(shrink_below, alpha=a / s).mul_(larger).mul_(-1 / (a * b))
    return [Terms(value, slope)]


def _alpha_beta_limit(pair: Pair, a: float, b: float) -> Terms:
    ratio = pair.log_ratio
    if a == 0.0 and b == 0.0:
        return Terms(0.5 * ratio**2, -ratio)
    if a == 0.0 or b == 0.0:
        # P^b - Q^b - Q^b log(P^b/Q^b), or P^a log(P^a/Q^a) - P^a + Q^a: from the larger side too.
        power = a + b
        larger = (power * pair.log_p).maximum(power * pair.log_q).exp()
        exponent = power * ratio
        distance = exponent.abs()
        shrink = (-distance).expm1()
        first_larger = (exponent > 0) == (b == 0.0)
        value = (distance + shrink).where(first_larger, -distance * (shrink + 1) - shrink)
        slope = larger * shrink * exponent.sign() / a if b == 0.0 else -(b * pair.log_q).exp() * ratio
        return Terms(value * larger / power**2, slope)
    grown = (a * ratio).expm1()
    return Terms((grown - a * ratio) / a**2, -grown / a)


def _log1p_(x: Tensor, eps: float) -> Tensor:
    """log(1 + x) in place for x >= -1, finite where rounding has brought x to -1: there the term's probability is
    nil."""
    return x.clamp_min_(eps / 2 - 1).log1p_()


@dataclass(frozen=True)
class Parameter:
    """A number or a switch of a divergence, and the flag of the command line that sets it.

    Args:
        name: what the function of the terms calls it.
        default: its value where none is given.
        flag: without its dashes.
        help: what it is; the flag's help puts the names of the divergences before it.
        limits: the smallest and the largest value of a number.
        stock: the flag of ms-swift that sets it where its own is not given, or None.
        scheduled: whether it can move over training, to the value of `final_flag`.
    """

    name: str
    default: float | bool
    flag: str
    help: str
    limits: tuple[float, float] | None = None
    stock: str | None = None
    scheduled: bool = False

    @property
    def final_flag(self) -> str:
        return f"{self.flag}_final"

    @property
    def flags(self) -> list[str]:
        return [self.flag, self.final_flag] if self.scheduled else [self.flag]


@dataclass(frozen=True)
class Divergence:
    """A divergence of the family: how its terms are made, and what a person reads about it.

    `terms(pair, **values)` takes a value of each of `params`. `mix` is None where D is the sum of the terms. Otherwise
    there are several lists of terms, and `mix([sum of each])` gives D and its partial derivative in each sum.
    """

    terms: Callable[..., list[Terms]]
    formula: str
    paper: str
    params: tuple[Parameter, ...] = ()
    mix: Callable[[Tensor], tuple[Tensor, Tensor]] | None = None


SHARE = (0.0, 1.0)
EXPONENT = (-10.0, 10.0)
LAMBDA = Parameter("lam", 0.1, "kd_lambda", "share of the own side in the mixture, 0 to 1.", SHARE)
DIVERGENCES: dict[str, Divergence] = {
    "forward_kl": Divergence(forward_kl, "sum P log(P/Q)", "Hinton et al. 2015, arXiv 1503.02531"),
    "reverse_kl": Divergence(reverse_kl, "sum Q log(Q/P)", "MiniLLM, arXiv 2306.08543"),
    "jsd": Divergence(
        jsd,
        "beta KL(P||M) + (1-beta) KL(Q||M), M = beta P + (1-beta) Q; scaled: divided by beta (1-beta); "
        "beta 0 and 1 are forward and reverse KL",
        "GKD, arXiv 2306.13649",
        (
            Parameter(
                "beta",
                0.5,
                "kd_beta",
                "share of the teacher in the mixture, 0 to 1.",
                SHARE,
                stock="beta",
                scheduled=True,
            ),
            Parameter(
                "scaled",
                False,
                "kd_jsd_scaled",
                "divide by beta (1 - beta), which makes its size continuous to both KLs at beta 0 and 1.",
            ),
        ),
    ),
    "skew_kl": Divergence(skew_kl, "KL(P || lam P + (1-lam) Q)", "DistiLLM, arXiv 2402.03898", (LAMBDA,)),
    "skew_rkl": Divergence(skew_rkl, "KL(Q || (1-lam) P + lam Q)", "DistiLLM, arXiv 2402.03898", (LAMBDA,)),
    "adaptive_kl": Divergence(
        adaptive_kl,
        "(g_h KL(P||Q) + g_t KL(Q||P)) / (g_h + g_t), g = sum |P-Q| over the head and the tail of P",
        "AKL, arXiv 2404.02657",
        (
            Parameter("head_mass", 0.5, "kd_head_mass", "teacher probability that makes up the head, 0 to 1.", SHARE),
            Parameter(
                "fixed_weights",
                False,
                "kd_adaptive_fixed_weights",
                "treat the weights of both KLs as constants, as the paper's code does.",
            ),
        ),
        _mix_adaptive,
    ),
    "tvd": Divergence(tvd, "1/2 sum |P-Q|", "f-distill, ACL 2023, arXiv 2307.15190"),
    "alpha_beta": Divergence(
        alpha_beta,
        "-1/(ab) sum [P^a Q^b - a/(a+b) P^(a+b) - b/(a+b) Q^(a+b)], and its limits",
        "ABKD, arXiv 2503.07067",
        (
            Parameter("a", 0.2, "kd_ab_alpha", "exponent a of the teacher, -10 to 10.", EXPONENT),
            Parameter("b", 0.7, "kd_ab_beta", "exponent b of the student, -10 to 10.", EXPONENT),
        ),
    ),
}
# What ms-swift's own loss is, for every value of its --beta.
DIVERGENCE_OF_STOCK = "jsd"


def parameters() -> dict[Parameter, tuple[str, ...]]:
    """Every parameter, in the order of the table, and the divergences that have it."""
    owners: dict[Parameter, tuple[str, ...]] = {}
    for name, divergence in DIVERGENCES.items():
        for parameter in divergence.params:
            owners[parameter] = (*owners.get(parameter, ()), name)
    return owners


def check_params(name: str, params: dict, arguments: Iterable[str] = ()) -> dict:
    """The divergence's parameters with defaults filled in.

    Args:
        arguments: the other keywords of the function that was called, one of which may have been meant.

    Raises:
        ValueError: an unknown divergence or parameter, or a value out of its range.
    """
    if name not in DIVERGENCES:
        hint = suggest(name, DIVERGENCES)
        raise ValueError(f"There is no divergence {name!r}{hint}; choose one of {', '.join(DIVERGENCES)}.")
    known = {parameter.name: parameter for parameter in DIVERGENCES[name].params}
    for key, value in params.items():
        if key not in known:
            hint = suggest(key, [*known, *arguments]) or _owners_of(key)
            raise ValueError(f"{name} has no parameter {key!r}{hint}; it has: {', '.join(known) or 'none'}.")
        low, high = known[key].limits or (value, value)
        if not low <= value <= high:
            raise ValueError(f"{name} needs {key} between {low:g} and {high:g}, and it is {value}.")
    return {**{key: parameter.default for key, parameter in known.items()}, **params}


def _owners_of(key: str) -> str:
    owners = [name for parameter, names in parameters().items() if parameter.name == key for name in names]
    return f" (of {', '.join(owners)})" if owners else ""


def check_keywords(loss: Callable, name: str, params: dict) -> None:
    """Refuses a keyword that is neither an argument of `loss` nor a parameter of the divergence.

    Raises:
        ValueError: as `check_params`, with what may have been meant.
    """
    own = {key: value for key, value in params.items() if key != "clip"}
    if own:
        arguments = [key for key, value in signature(loss).parameters.items() if value.kind is value.KEYWORD_ONLY]
        check_params(name, own, ["clip", *arguments])
