"""Who writes each response, and in which mode: drawn from the seed and the prompt, so that no layout changes it."""

import hashlib
import json
from collections.abc import Collection, Hashable, Sequence
from dataclasses import dataclass
from typing import Literal

from swift_kd_plugin.losses.schedules import Schedule

WriterName = Literal["student", "teacher", "dataset"]


def uniform(seed: int, purpose: str, *key: Hashable) -> float:
    """A number in [0, 1) that depends on its arguments alone: not on the rank, the order or the run."""
    text = json.dumps([seed, purpose, *key], ensure_ascii=False, default=repr)
    number = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return (int.from_bytes(number, "big") >> 11) / 2**53


def who_writes(drawn: WriterName, writers: Collection[str], asks: bool) -> WriterName:
    """Who writes in a run that has these writers; `asks`: the row has no response."""
    if drawn in writers:
        return drawn
    if asks and writers:
        return "student" if "student" in writers else "teacher"
    return "dataset"


@dataclass(frozen=True)
class WriterMix:
    """The shares that are asked for.

    Args:
        lmbda: probability that the student writes, over training.
        teacher: probability that the teacher writes where the student does not.
        thinking: probability that a written response is asked for in thinking mode; None leaves the row's own mode.
        whole_cycles: one draw for all responses of a generation cycle.
    """

    seed: int
    lmbda: Schedule
    teacher: float = 0.0
    thinking: float | None = None
    whole_cycles: bool = False

    def source(self, key: Sequence[Hashable], cycle: int, progress: float) -> WriterName:
        """Who writes.

        Args:
            key: the row and how often it was seen before.
            cycle: number of the generation cycle.
            progress: the share of training that is done.
        """
        of = ("cycle", cycle) if self.whole_cycles else tuple(key)
        if uniform(self.seed, "student", *of) < self.lmbda.at(progress):
            return "student"
        return "teacher" if uniform(self.seed, "teacher", *of) < self.teacher else "dataset"

    def thinks(self, key: Sequence[Hashable]) -> bool | None:
        """Whether a written response is asked for in thinking mode; None: as the row says."""
        return None if self.thinking is None else uniform(self.seed, "thinking", *key) < self.thinking
