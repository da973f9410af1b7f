"""How far the favourites of both sides are the same."""

from torch import Tensor

from swift_kd_plugin.losses.lm_head import LMHead
from swift_kd_plugin.losses.shards import VocabShard
from swift_kd_plugin.losses.topk import teacher_topk


def topk_overlap(student: Tensor | LMHead, teacher_ids: Tensor, shard: VocabShard) -> Tensor:
    """The share of the teacher's K most probable ids that are among the student's K most probable [T].

    Args:
        student: [T, v] logits of this rank, or its head.
        teacher_ids: [T, K] global ids.
        shard: who holds which columns of the student.
    """
    student_ids = teacher_topk(student, teacher_ids.shape[1], shard)[1]
    return (teacher_ids[:, :, None] == student_ids[:, None, :]).any(-1).float().mean(-1)
