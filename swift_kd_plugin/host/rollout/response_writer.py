"""What every engine that writes responses takes and gives."""

from abc import abstractmethod
from typing import Protocol

from swift_kd_plugin.host.samples.sample import KDSample


class ResponseWriter(Protocol):
    """Writes the responses of one side, or of both where they are one model.

    `split`: the ranks that share their samples (TP x PP x CP) write a part each; False: all of them together.
    """

    split: bool

    @abstractmethod
    def write(self, samples: list[KDSample]) -> list[KDSample]:
        """Answers what stands in front of each sample's response. All ranks call it at once, also one without samples:
        weights are moved, and experts run, by all ranks together.

        Args:
            samples: drafts, which may lose the response that they have.

        Returns:
            New samples in the same order, with the response as last turn, its token ids (with the token that ended it)
            and its finish reason, "stop" or "length" (see `KDSample.answered`).

        Raises:
            KDError: a sample cannot be answered, or the engine cannot go on.
        """

    def held(self) -> tuple[int, str]:
        """Bytes that its engine holds on this rank's device, and what for."""
        return 0, f"{type(self).__name__}, nothing of its own"

    @abstractmethod
    def close(self) -> None:
        """Gives back what the engine holds; it writes no more."""
