"""Training rows of a stream: what fills no batch at its end is not lost, and a resumed run goes on where it was."""

from collections.abc import Iterator

from swift.megatron.trainers.utils import MegatronDataLoaderDispatcher
from swift.utils import get_logger

from swift_kd_plugin.data.rows import Row
from swift_kd_plugin.errors import KDError
from swift_kd_plugin.host.rows.encoding_check import Judge, RowFilter, Verdict, has_media

logger = get_logger()


class JudgedBatch:
    """Collates rows of a stream, each with the verdict on it; without one where that is left for its step."""

    def __init__(self, judge: Judge):
        self.judge = judge

    def __call__(self, rows: list[Row]) -> list[tuple[Row, Verdict | None]]:
        return [(row, None if has_media(row) else self.judge(row)) for row in rows]


class StreamBatches(MegatronDataLoaderDispatcher):
    """A replica's micro-batches of one pass through a stream, which the first replica reads for all.

    Args:
        loader: batches of rows, collated by `JudgedBatch`.
        rows: chooses among them.
        micro_batch_size: of each replica.
        used: rows of the stream that the run has used before, of all its passes; they are read again.
    """

    def __init__(self, loader, rows: RowFilter, micro_batch_size: int, used: int):
        super().__init__(loader)
        self.rows, self.micro_batch_size, self.to_skip = rows, micro_batch_size, used
        self.rest: list[Row] = []
        if used:
            logger.info_once(f"The stream is read again up to row {used:,}, where the checkpoint was written.")

    def __iter__(self) -> Iterator[list[Row]]:
        parts = self._parts() if self.rank == 0 else None
        while True:
            of_all = None if parts is None else next(parts, [None] * self.world_size)
            part = self._scatter_object_list(of_all)
            if part is None:
                return
            yield part

    def _parts(self) -> Iterator[list[list[Row]]]:
        """What the replicas take at once, as often as rows fill it."""
        size, at_once = self.micro_batch_size, self.micro_batch_size * self.world_size
        row = None
        for row in self._used_rows():
            if self.to_skip:
                self.to_skip -= 1
                continue
            self.rest.append(row)
            if len(self.rest) == at_once:
                full, self.rest = self.rest, []
                yield [full[start : start + size] for start in range(0, at_once, size)]
        if row is None:
            raise KDError("The stream of --dataset has no row that can be used.")

    def _used_rows(self) -> Iterator[Row]:
        for batch in self.base_dataloader:
            for row, verdict in batch:
                if verdict is None or self.rows.keeps(row, verdict):
                    yield row
