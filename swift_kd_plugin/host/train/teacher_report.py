"""Whether the teacher has anything to teach: said once, after the first step, with the figures of that step."""

import math

from swift.utils import get_logger, is_last_rank

from swift_kd_plugin.losses.label_ce import STUDENT_CE, TEACHER_CE

logger = get_logger()
# Token frequencies alone bring the cross-entropy of natural text to about 0.6 of a uniform guess's (7 of 11.9 nats with
# 152,000 ids); a teacher above half of it makes nothing of the prompt.
OF_UNIFORM = 0.5
NOTHING = 1e-7  # nats: what rounding makes of two equal sides


def warn_of_bad_teacher(logs: dict, vocab: int, learns_labels: bool) -> None:
    """Warns if the teacher says what the student says, or knows no more of the responses than a guess or the student.

    Args:
        logs: [sum, count] by metric of the first step; of responses that the student wrote only the first is asked.
        vocab: the number of token ids.
        learns_labels: the loss has a cross-entropy, from which there is something to learn anyway.
    """
    # The last rank has the figures, also where there are pipeline stages.
    if is_last_rank() and (reason := why_bad(logs, vocab, learns_labels)):
        logger.warning_if(reason, cond=True)


def why_bad(logs: dict, vocab: int, learns_labels: bool) -> str | None:
    """The sentence of `warn_of_bad_teacher`, or None."""
    divergence = _mean(logs, "divergence")
    if divergence is not None and abs(divergence) < NOTHING:
        if learns_labels:
            return None
        return (
            f"Teacher and student say the same at the first step (divergence {divergence:.1e}), so that nothing is "
            "learned; give another --teacher_model, or the teacher a view of its own (teacher_messages)."
        )
    teacher, student = (_mean(logs, f"{name}_dataset", f"{name}_teacher") for name in (TEACHER_CE, STUDENT_CE))
    if teacher is None:
        return None
    figures = f"the teacher's cross-entropy on the responses is {teacher:.2f} nats a token (perplexity {_exp(teacher)})"
    if teacher > OF_UNIFORM * math.log(vocab):
        worse = "more than" if teacher > math.log(vocab) else "more than half of"
        return (
            f"At the first step {figures}, {worse} what guessing among {vocab:,} ids has "
            f"({math.log(vocab):.2f}): it does not know them. Is it the right --teacher_model, with its own template?"
        )
    if teacher >= student:
        return (
            f"At the first step {figures}, and the student's {student:.2f} (perplexity {_exp(student)}): the teacher "
            "knows no more of them than the student. Give it a view of its own (teacher_messages), or another "
            "--teacher_model."
        )
    return None


def _mean(logs: dict, *names: str) -> float | None:
    """Of the tokens that were counted under one of the names; None if there are none."""
    pairs = [logs[name].tolist() for name in names if name in logs]
    total, count = (sum(part) for part in zip(*pairs, strict=True)) if pairs else (0, 0)
    return total / count if count else None


def _exp(nats: float) -> str:
    return f"{math.exp(min(nats, 50)):,.1f}"
