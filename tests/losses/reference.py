"""The naive truth: every loss written as its definition says, in float64, with autograd for the gradient.

P is the teacher and Q the student, both given as log-probabilities [T, V]. Nothing here is shared with the package.
"""

import math

import torch


def dense(student, teacher, name, temperature=1.0, student_vocab=None, teacher_vocab=None, clip=None, **params):
    """The divergence per token [T] of whole logits; ids that one side lacks are left out of both."""
    vocab = min(student_vocab or student.shape[1], teacher_vocab or teacher.shape[1])
    log_q = torch.log_softmax(student[:, :vocab].double() / temperature, dim=-1)
    log_p = torch.log_softmax(teacher[:, :vocab].double() / temperature, dim=-1)
    return divergence(name, log_p, log_q, clip, **params)


def topk(
    student, log_probs, ids, name,
    temperature=1.0, teacher_temperature=1.0, tail="bucket", student_vocab=None, teacher_vocab=None, clip=None, **params
):  # fmt: skip
    """The divergence per token [T] to a teacher that lists some ids, one token after the other."""
    vocab = min(student_vocab or student.shape[1], teacher_vocab or student.shape[1])
    losses = []
    for row, row_log_probs, row_ids in zip(student.double(), log_probs.double(), ids, strict=True):
        listed = [(int(i), lp) for i, lp in zip(row_ids, row_log_probs, strict=True) if i < vocab and lp > -torch.inf]
        if not listed and tail != "bucket":
            losses.append(0.0 * row.sum())
            continue
        tempered_first = teacher_temperature == temperature
        log_q = torch.log_softmax(row[:vocab] / (temperature if tempered_first else 1.0), dim=-1)
        p, q = _buckets(listed, row_log_probs, log_q, with_tail=tail != "renormalise")
        if tail == "renormalise":
            p, q = p / p.sum(), q / q.sum()
        if not tempered_first:
            p, q = p ** (1 / temperature), q ** (1 / temperature)
            p, q = p / p.sum(), q / q.sum()
        if tail == "ignore":
            p, q = p[: len(listed)], q[: len(listed)]
        losses.append(divergence(name, p.log()[None], q.log()[None], clip, **params)[0])
    return torch.stack(losses)


def _buckets(listed, row_log_probs, log_q, with_tail):
    """Probabilities of the listed ids, and of all others together where there are any."""
    ids = [i for i, _ in listed]
    others = [i for i in range(len(log_q)) if i not in ids]
    p = torch.stack([lp for _, lp in listed]).exp() if listed else log_q.new_zeros(0)
    removed = row_log_probs.exp().sum() - p.sum()
    rest = 1 - row_log_probs.exp().sum()
    q = log_q[ids].exp()
    if others and with_tail:
        p = torch.cat([p, rest[None]])
        q = torch.cat([q, log_q[others].exp().sum()[None]])
    return p / (1 - removed), q


def divergence(name, log_p, log_q, clip=None, **params):
    """The divergence per token [T]; `clip` is the most that one entry of the vocabulary can add."""
    if name == "adaptive_kl":
        return adaptive_kl(log_p, log_q, **params)
    terms = TERMS[name](log_p, log_q, **params)
    if clip is not None:
        terms = terms.clamp(max=clip)
    return terms.sum(-1)


def forward_kl(log_p, log_q):
    return log_p.exp() * (log_p - log_q)


def reverse_kl(log_p, log_q):
    return log_q.exp() * (log_q - log_p)


def jsd(log_p, log_q, beta=0.5, scaled=False):
    if beta == 0:
        return forward_kl(log_p, log_q)
    if beta == 1:
        return reverse_kl(log_p, log_q)
    log_m = torch.logaddexp(log_p + math.log(beta), log_q + math.log(1 - beta))
    terms = beta * forward_kl(log_p, log_m) + (1 - beta) * forward_kl(log_q, log_m)
    return terms / (beta * (1 - beta)) if scaled else terms


def skew_kl(log_p, log_q, lam=0.1):
    mixture = lam * log_p.exp() + (1 - lam) * log_q.exp()
    return log_p.exp() * (log_p - mixture.log())


def skew_rkl(log_p, log_q, lam=0.1):
    mixture = (1 - lam) * log_p.exp() + lam * log_q.exp()
    return log_q.exp() * (log_q - mixture.log())


def tvd(log_p, log_q):
    return 0.5 * (log_p.exp() - log_q.exp()).abs()


def alpha_beta(log_p, log_q, a=0.2, b=0.7):
    if a == 0 and b == 0:
        return 0.5 * (log_p - log_q) ** 2
    if b == 0:
        pa, qa = (a * log_p).exp(), (a * log_q).exp()
        return (pa * (pa / qa).log() - pa + qa) / a**2
    if a == 0:
        pb, qb = (b * log_p).exp(), (b * log_q).exp()
        return (qb * (qb / pb).log() - qb + pb) / b**2
    if a + b == 0:
        pa, qa = (a * log_p).exp(), (a * log_q).exp()
        return ((qa / pa).log() + pa / qa - 1) / a**2
    joint = (a * log_p + b * log_q).exp()
    alone = a / (a + b) * ((a + b) * log_p).exp() + b / (a + b) * ((a + b) * log_q).exp()
    return -(joint - alone) / (a * b)


def adaptive_kl(log_p, log_q, head_mass=0.5, fixed_weights=False):
    p, q = log_p.exp(), log_q.exp()
    head = head_of(p.detach(), head_mass)
    gap = (p - q).abs()
    if fixed_weights:
        gap = gap.detach()
    g_head, g_tail = (gap * head).sum(-1), (gap * ~head).sum(-1)
    forward, reverse = forward_kl(log_p, log_q).sum(-1), reverse_kl(log_p, log_q).sum(-1)
    return (g_head * forward + g_tail * reverse) / (g_head + g_tail)


def head_of(p, mass):
    """An id is in the head if all ids that are as probable as it or more make up `mass` at most; the top-1 always."""
    head = torch.zeros_like(p, dtype=torch.bool)
    for row, marks in zip(p, head, strict=True):
        ordered = row.sort(descending=True).values
        as_probable = torch.searchsorted(-ordered, -row, right=True)
        marks[:] = (ordered.cumsum(0)[as_probable - 1] <= mass) | (row == ordered[0])
    return head


def cross_entropy(student, labels, student_vocab=None):
    """Cross-entropy [T] at temperature 1 over all ids that the student has; 0 where the label is negative."""
    log_q = torch.log_softmax(student[:, :student_vocab].double(), dim=-1)
    losses = [-row[label] if label >= 0 else 0.0 * row.sum() for row, label in zip(log_q, labels, strict=True)]
    return torch.stack(losses)


TERMS = {
    "forward_kl": forward_kl,
    "reverse_kl": reverse_kl,
    "jsd": jsd,
    "skew_kl": skew_kl,
    "skew_rkl": skew_rkl,
    "tvd": tvd,
    "alpha_beta": alpha_beta,
}
