"""What the ranks that keep a teacher cache owe each other, and what they say of it together."""

import torch
from swift.utils import get_logger
from torch import distributed as dist

from swift_kd_plugin.host.samples.host_trainer import HostTrainer
from swift_kd_plugin.host.teacher.cache_choice import FLAG
from swift_kd_plugin.host.teacher.parallel_groups import any_of
from swift_kd_plugin.teacher.teacher_cache import TeacherCache

logger = get_logger()


def wrote_for_others(caches: list[TeacherCache], missed: list[bytes], group) -> bool:
    """Writes what waits in memory where another rank of the group misses it; all of them call it. Whether one did.

    Another epoch brings a sample to another replica, whose writer has not seen it.
    """
    of_all: list = [None] * dist.get_world_size(group)
    dist.all_gather_object(of_all, missed, group=group)
    wanted = [cache for cache in caches if any(key in cache.pending for keys in of_all for key in keys)]
    for cache in wanted:
        cache.flush()
    return any_of(bool(wanted), group, torch.cuda.current_device())


def say_use(trainer: HostTrainer, read: int, scored: int) -> None:
    """Says how many samples were read and scored, of all ranks, which all call it."""
    counts = torch.tensor([read, scored], device=trainer.device)
    dist.all_reduce(counts)
    place = trainer.args.kd_teacher_cache
    logger.info(f"{FLAG} {place}: {counts[0]:,} samples were read, {counts[1]:,} scored.")
