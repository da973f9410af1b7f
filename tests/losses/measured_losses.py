"""Losses with cross-entropy and statistics: as the package makes them, and as their definitions say."""

import torch

from swift_kd_plugin.losses.autograd import run_loss
from swift_kd_plugin.losses.prepare import prepare_loss
from swift_kd_plugin.losses.request import LossOptions, TopK
from tests.losses import reference
from tests.losses.random_logits import F64, random_logits

WEIGHT, TEMPERATURE = 1.4, 1.7


def labels_and_weights(tokens, vocab):
    """A label per token, some of them none, and what its cross-entropy counts."""
    labels = torch.arange(tokens) * 7 % vocab
    labels[2::5] = -100
    return labels, random_logits(tokens, seed=8).abs()


def dense(student, teacher, student_vocab, teacher_vocab, group=None, chunk_size=None, inplace=False, **rows):
    """The loss per token, and what it is made of."""
    return _measure(student, teacher, student_vocab, teacher_vocab, group, chunk_size, inplace, **rows)


def sparse(
    student,
    log_probs,
    ids,
    student_vocab,
    teacher_vocab,
    tail="bucket",
    group=None,
    chunk_size=None,
    teacher_temperature=1.0,
    shift=None,
    **rows,
):
    teacher = TopK(log_probs, ids, teacher_temperature, shift)
    return _measure(student, teacher, student_vocab, teacher_vocab, group, chunk_size, tail=tail, **rows)


def _measure(student, teacher, student_vocab, teacher_vocab, group, chunk_size, inplace=False, **more):
    count = len(more["student_rows"]) if "student_rows" in more else len(student)
    labels, weights = labels_and_weights(count, student_vocab)
    options = {
        "divergence": "jsd",
        "temperature": TEMPERATURE,
        "group": group,
        "student_vocab": student_vocab,
        "teacher_vocab": teacher_vocab,
        "chunk_size": chunk_size,
        "weight": WEIGHT,
        "labels": labels,
        "ce_weights": weights,
        "statistics": True,
    }
    options = LossOptions(**options | more)
    task, *sides = prepare_loss(student, teacher, options, inplace=inplace)
    return run_loss(task, *sides), task.parts


def naive_loss(divergence, student, student_vocab):
    """WEIGHT * divergence + weights * cross-entropy, and the cross-entropy alone."""
    labels, weights = labels_and_weights(len(student), student_vocab)
    ce = reference.cross_entropy(student, labels, student_vocab)
    return WEIGHT * divergence + weights * ce, ce.detach()


def naive_statistics(student, teacher, student_vocab, teacher_vocab) -> dict[str, torch.Tensor]:
    """Over the ids that both sides have; what the others hold is removed."""
    both = min(student_vocab, teacher_vocab)
    q_all = (student[:, :student_vocab] / TEMPERATURE).softmax(-1)
    p_all = (teacher[:, :teacher_vocab] / TEMPERATURE).softmax(-1)
    q, p = (x[:, :both] / x[:, :both].sum(-1, keepdim=True) for x in (q_all, p_all))
    found = {
        "forward_kl": (p * (p / q).log()).sum(-1),
        "reverse_kl": (q * (q / p).log()).sum(-1),
        "teacher_entropy": -(p * p.log()).sum(-1),
        "student_entropy": -(q * q.log()).sum(-1),
        "top1_agreement": (p.argmax(-1) == q.argmax(-1)).to(F64),
        "student_ce": naive_label_ce(student, student_vocab, student_vocab),
        "teacher_ce": naive_label_ce(teacher, teacher_vocab, student_vocab),
    }
    if student_vocab != teacher_vocab:
        found["removed_student_mass"] = q_all[:, both:].sum(-1)
        found["removed_teacher_mass"] = p_all[:, both:].sum(-1)
    return found


def naive_label_ce(logits, vocab, student_vocab):
    """At temperature 1 over all ids of a side; infinite for a label that it does not have."""
    labels = labels_and_weights(len(logits), student_vocab)[0]
    log_probs = logits[:, :vocab].double().log_softmax(-1)
    return torch.stack(
        [
            -row[label] if 0 <= label < vocab else row.new_tensor(torch.inf)
            for row, label in zip(log_probs, labels, strict=True)
        ]
    )


def naive_listed_ce(log_probs, ids, student_vocab):
    """Exact where the label is listed; else no entry can be more probable than the last listed and the rest."""
    labels = labels_and_weights(len(log_probs), student_vocab)[0].tolist()
    found = []
    for row, row_ids, label in zip(log_probs.double(), ids.tolist(), labels, strict=True):
        known = row[row_ids.index(label)] if label in row_ids else min(row.min(), (1 - row.exp().sum()).log())
        found.append(-known if label >= 0 else row.new_tensor(torch.inf))
    return torch.stack(found)


def naive_sparse_statistics(student, log_probs, ids, vocab, teacher_temperature) -> dict[str, torch.Tensor]:
    """Of K entries and a bucket for all other ids below `vocab`, the number of ids that both sides have."""
    early = TEMPERATURE if teacher_temperature == TEMPERATURE else 1.0
    q_all = (student[:, :vocab] / early).softmax(-1)
    rows = []
    for q_row, row_log_probs, row_ids in zip(q_all, log_probs, ids, strict=True):
        known = row_ids < vocab
        removed = row_log_probs[~known].exp().sum()
        p = torch.cat([row_log_probs[known].exp(), 1 - row_log_probs.exp().sum()[None]]) / (1 - removed)
        q = q_row[row_ids[known]]
        q = torch.cat([q, 1 - q.sum()[None]])
        late_p, late_q = (x ** (early / TEMPERATURE) / (x ** (early / TEMPERATURE)).sum() for x in (p, q))
        favourite = row_ids[known][p[:-1].argmax()] if known.any() else -1
        rows.append(
            {
                "forward_kl": (late_p * (late_p / late_q).log()).sum(),
                "reverse_kl": (late_q * (late_q / late_p).log()).sum(),
                "teacher_entropy": -(late_p * late_p.log()).sum(),
                "student_entropy": -(q_row * q_row.log()).sum(),
                "top1_agreement": (q_row.argmax() == favourite).to(F64),
                "teacher_tail_mass": p[-1],
                "student_tail_mass": q[-1],
                "removed_teacher_mass": removed,
            }
        )
    return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}
