"""How far the favourites of both sides are the same."""

from torch import Tensor
from torch.distributed import ProcessGroup

from swift_kd_plugin.losses.lm_head import LMHead
from swift_kd_plugin.losses.shards import shards_of
from swift_kd_plugin.losses.topk import teacher_topk


def topk_overlap(
    student: Tensor | LMHead,
    teacher: Tensor | LMHead,
    k: int | None,
    group: ProcessGroup | None,
    student_vocab: int | None,
    teacher_vocab: int | None,
) -> Tensor:
    """The share of the teacher's k most probable ids that are among the student's k most probable [T].

    Args:
        student: [T, v] logits of this rank, or its head.
        teacher: [T, v_teacher] logits of this rank, or its head, or with k None its ids [T, K].
    """
    width = None if k is None else teacher.shape[1]
    shard, other = shards_of(student, width, group, student_vocab, teacher_vocab)
    ids = teacher if k is None else teacher_topk(teacher, k, other)[1]
    mine = teacher_topk(student, ids.shape[1], shard)[1]
    return (ids[:, :, None] == mine[:, None, :]).any(-1).float().mean(-1)
