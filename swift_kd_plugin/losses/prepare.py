"""Which chunked loss a teacher's form takes: the one place that asks."""

from torch import Tensor

from swift_kd_plugin.losses.chunked import BlockwiseLoss
from swift_kd_plugin.losses.dense import dense_losses
from swift_kd_plugin.losses.lm_head import LMHead
from swift_kd_plugin.losses.request import LossOptions, Teacher, TopK, make_request
from swift_kd_plugin.losses.topk import topk_losses


def prepare_loss(
    student: Tensor | LMHead,
    teacher: Teacher,
    options: LossOptions,
    *,
    inplace: bool = False,
) -> tuple:
    """What `autograd.run_loss` takes: the checked loss, the student, and the tensors or head of the teacher.

    Args:
        inplace: write the gradient into the student's logits; a head has none to write into.

    Raises:
        ValueError: as `make_request`.
    """
    topk = isinstance(teacher, TopK)
    inplace = inplace and not isinstance(student, LMHead)
    request = make_request(student, teacher, options)
    task = BlockwiseLoss(topk_losses if topk else dense_losses, request, inplace)
    return task, student, *(teacher.tensors if topk else (teacher,))
