"""A teacher that is the student, and sees what the student sees: known before a weight is loaded."""

import os

from datasets import Dataset
from swift.utils import get_logger

from swift_kd_plugin.data.columns import TEACHER_ONLY

logger = get_logger()
# What begins the student with other weights than the teacher's, or the other way round.
OTHER_WEIGHTS = ("adapters", "mcore_model", "mcore_adapter", "kd_teacher_adapters", "teacher_model_server")
VIEWS = {*TEACHER_ONLY, "teacher_prompt"}


def warn_of_same_teacher(args, rows) -> None:
    """Warns if nothing can be learned because both sides are one model and no row has a view of the teacher's own.

    A cross-entropy in the loss has its labels to learn, beside which such a teacher keeps the student where it is. Of a
    stream nobody knows the columns before the first step, after which `teacher_report` looks at the figures.
    """
    same = args.teacher_model is None or _path(args.teacher_model) == _path(args.model)
    with_labels = any((args.sft_alpha, args.kd_ce_alpha, args.kd_ce_alpha_final))
    if not same or with_labels or any(getattr(args, name, None) for name in OTHER_WEIGHTS):
        return
    if isinstance(rows, Dataset) and not VIEWS & set(rows.column_names):
        logger.warning(
            "The teacher is the student's own model, and no row has a view of the teacher's own, so that the loss is 0 "
            "and nothing is learned; give another --teacher_model, or rows with teacher_messages."
        )


def _path(model: str | None) -> str | None:
    return os.path.realpath(os.path.expanduser(model)) if model and os.path.isdir(os.path.expanduser(model)) else model
