"""Rows that the template cannot encode or that are longer than --max_length: named before they meet a step.

ms-swift encodes a row when its step is made, and puts another one in the place of one that fails.
"""

from collections.abc import Iterator, Sequence
from copy import copy, deepcopy
from dataclasses import dataclass
from functools import cached_property

import torch.utils.data
from datasets import Dataset
from swift.utils import get_logger
from torch import distributed as dist
from torch.utils.data import DataLoader
from tqdm import tqdm

from swift_kd_plugin.data.columns import MEDIA_COLUMNS
from swift_kd_plugin.data.media_errors import say_why
from swift_kd_plugin.data.row_report import ROW_EXAMPLES, Report, no_row_left
from swift_kd_plugin.data.rows import Filler, Place, Row, RowError
from swift_kd_plugin.errors import KDError

TOO_LONG = "longer than --max_length"
# From as many rows on processes help to encode them.
ROWS_FOR_WORKERS = 2000
# More than any template puts around a turn.
TURN_TOKENS = 64
# Takes a row's place in a micro-batch before a row of the dataset can.
ANY_ROW = {"messages": [{"role": "user", "content": "1"}, {"role": "assistant", "content": "1"}]}
logger = get_logger()


@dataclass(frozen=True)
class Verdict:
    """What a row is as tokens.

    Args:
        length: of the student's view; None where it cannot be encoded.
        error: why it cannot.
    """

    length: int | None
    error: RowError | None = None


class Judge:
    """Encodes rows as they are, to see whether it works.

    Args:
        template: ms-swift's; it is not changed.
    """

    def __init__(self, template):
        self.template = copy(template)
        self.template.max_length = None

    def __call__(self, row: Row) -> Verdict:
        try:
            return Verdict(len(self.template.encode(deepcopy(dict(row)))["input_ids"]))
        except Exception as error:  # of any kind, as each template and each reader of media has its own
            return Verdict(
                None, RowError("cannot be encoded", f"the template cannot encode it ({say_why(error, row)})")
            )

    def surely_fits(self, row: Row, limit: int | None) -> bool:
        """Whether a row is plain enough to be encoded without fail, and short even if each byte were a token."""
        turns = row["messages"]
        first = 1 if turns and turns[0]["role"] == "system" else 0
        roles = ["system"] * first + ["user", "assistant"] * len(turns)
        if any(row.get(name) for name in (*MEDIA_COLUMNS, "objects", "tools")) or len(turns) == first:
            return False
        for turn, role in zip(turns, roles, strict=False):
            if turn["role"] != role or not isinstance(turn["content"], str):
                return False
            if any(value is not None for key, value in turn.items() if key not in ("role", "content")):
                return False
        size = sum(len(turn["content"].encode("utf-8", "surrogatepass")) for turn in turns)
        return self.frame is not None and (limit is None or size + self.frame + TURN_TOKENS * len(turns) <= limit)

    @cached_property
    def frame(self) -> int | None:
        """What the template puts in front of a first turn, and more."""
        turns = [{"role": role, "content": ""} for role in ("system", "user", "assistant")]
        lengths = [self({"messages": turns[first:]}).length for first in (0, 1)]
        return None if None in lengths else max(lengths)


def has_media(row: Row) -> bool:
    """Its encoding takes long, so that it is judged when its step is made."""
    return any(row.get(name) for name in MEDIA_COLUMNS)


@dataclass(frozen=True)
class LengthRule:
    """What becomes of rows that cannot be encoded, and of long ones.

    Args:
        max_length: in tokens; None where there is no limit.
        strategy: --truncation_strategy. Only `delete` does anything: no response is cut in distillation.
        strict: a row that cannot be encoded ends the run (--kd_bad_rows error).
    """

    max_length: int | None
    strategy: str
    strict: bool

    @classmethod
    def of(cls, args) -> "LengthRule":
        return cls(args.max_length, args.truncation_strategy, args.kd_bad_rows == "error")

    def too_long(self, verdict: Verdict) -> bool:
        return None not in (self.max_length, verdict.length) and verdict.length > self.max_length

    def problem(self, verdict: Verdict) -> RowError | None:
        """Why a row is left out."""
        if verdict.error or self.strategy != "delete" or not self.too_long(verdict):
            return verdict.error
        return RowError(TOO_LONG, f"it has {verdict.length:,} tokens, more than --max_length {self.max_length:,}")

    def leave_out(self, report: Report, row: Row, error: RowError) -> None:
        """Counts a row; raises KDError where it ends the run."""
        place = place_of(row)
        if self.strict and error.kind != TOO_LONG:
            raise KDError(
                f"{place} cannot be used: {error}; mend the row, or pass --kd_bad_rows drop to leave such rows out."
            )
        report.leave_out(error, place)

    def whole(self, rows: str, longest: int) -> str:
        """The sentence for long rows that are used as they are."""
        return (
            f"{rows} longer than --max_length {self.max_length} (up to {longest:,} tokens) and used whole: "
            f"distillation cuts no row, --truncation_strategy {self.strategy} does nothing; `delete` leaves them out."
        )


def place_of(row: Row) -> Place:
    return Place(row.get("kd_source") or "the dataset", row.get("kd_row") or 0, row.get("kd_id"))


def check_datasets(args, template, datasets: Sequence[Dataset | None]) -> tuple[Sequence[Dataset | None], dict]:
    """Training and validation rows without those that are left out, and the reports on these by flag.

    A stream is judged when it is read. All ranks must call it together.
    """
    kept, reports, rule = [], {}, LengthRule.of(args)
    for flag, dataset in zip(("--dataset", "--val_dataset"), datasets, strict=True):
        if isinstance(dataset, Dataset) and len(dataset):
            dataset, report = _check(flag, dataset, template, rule, args.dataloader_num_workers)
            reports |= {flag: report} if report.left_out else {}
        kept.append(dataset)
    return kept, reports


def _check(flag: str, dataset: Dataset, template, rule: LengthRule, workers: int) -> tuple[Dataset, Report]:
    verdicts, report, count = dict(_striking(flag, dataset, Judge(template), rule, workers)), Report(), len(dataset)
    problems = {number: error for number in sorted(verdicts) if (error := rule.problem(verdicts[number]))}
    lengths = [verdict.length for verdict in verdicts.values() if verdict.length is not None]
    if len(problems) == count == len(lengths):
        raise KDError(
            f"--max_length {rule.max_length}: none of the {count:,} rows of {flag} fits into it, the shortest has "
            f"{min(lengths):,} tokens; raise it."
        )
    rows = [(dataset[number], error) for number, error in problems.items()]
    for row, error in sorted(rows, key=lambda pair: (place_of(pair[0]).source, place_of(pair[0]).row)):
        rule.leave_out(report, row, error)
    if lengths and rule.strategy != "delete":
        logger.warning(rule.whole(f"{len(lengths):,} of {count:,} rows of {flag} are", max(lengths)))
    if len(problems) == count:
        raise no_row_left(flag, report)
    if problems:
        dataset = dataset.select([number for number in range(count) if number not in problems])
    return dataset, report


def _striking(
    flag: str, dataset: Dataset, judge: Judge, rule: LengthRule, workers: int
) -> Iterator[tuple[int, Verdict]]:
    """Number and verdict of the rows that are long or cannot be encoded, of which each rank looks for a part."""
    many = dist.is_initialized() and dist.get_world_size() > 1
    rank, ranks = (dist.get_rank(), dist.get_world_size()) if many else (0, 1)
    rows = _Judged(dataset, judge, rule.max_length, range(rank, len(dataset), ranks))
    loader = DataLoader(rows, 64, num_workers=workers if len(rows) >= ROWS_FOR_WORKERS else 0, collate_fn=list)
    off = True if rank else None  # None: where it is a terminal
    shown = tqdm(loader, f"rank 0: rows of {flag} as tokens", unit_scale=64, unit="row", delay=2, disable=off)
    judged = ((number, verdict) for batch in shown for number, verdict in batch if verdict)
    of_ranks = [[(number, verdict) for number, verdict in judged if verdict.error or rule.too_long(verdict)]]
    if many:
        found, of_ranks = of_ranks[0], [None] * ranks
        dist.all_gather_object(of_ranks, found)
    for part in of_ranks:
        yield from part


class RowFilter:
    """Judges rows as they come, and remembers those that it left out."""

    def __init__(self, template, rule: LengthRule):
        self.judge, self.rule = Judge(template), rule
        self.left_out: dict[Place, RowError] = {}
        self.last: Row | None = None

    def keeps(self, row: Row, verdict: Verdict | None = None) -> bool:
        """Whether a row is used; raises KDError where it ends the run."""
        verdict = verdict or self.judge(row)
        error = self.rule.problem(verdict)
        if error is None:
            if self.rule.too_long(verdict):
                logger.warning_once(self.rule.whole("Rows are", verdict.length), hash_id=TOO_LONG)
            return True
        self.rule.leave_out(Report(), row, error)
        place = place_of(row)
        if place not in self.left_out and len(self.left_out) < ROW_EXAMPLES:
            logger.warning(f"{place} is left out: {error}.")
        self.left_out[place] = error
        return False

    def fill(self, rows: list[Row]) -> list[Row]:
        """Rows of a micro-batch, with a filler in the place of each with media that is left out."""
        met_before = [place for place in map(place_of, rows) if place in self.left_out]
        kept = [row for row in rows if not has_media(row) or self.keeps(row)]
        self.last = kept[-1] if kept else self.last
        if self.last is None and met_before:
            raise self.nothing_left()
        return kept + [Filler.of(self.last or ANY_ROW) for _ in range(len(rows) - len(kept))]

    def nothing_left(self) -> KDError:
        """The sentence for rows of which each was left out."""
        place, error = next(iter(self.left_out.items()))
        return KDError(f"None of the {len(self.left_out):,} rows that were met can be used ({place}: {error}).")


def log_left_out(rows: RowFilter) -> None:
    """Says at the end which rows were left out when their step was made. All ranks must call it together."""
    of_ranks = [rows.left_out]
    if dist.is_initialized() and dist.get_world_size() > 1:
        of_ranks = [None] * dist.get_world_size()
        dist.all_gather_object(of_ranks, rows.left_out)
    report = Report()
    for place, error in {place: error for part in of_ranks for place, error in part.items()}.items():
        report.leave_out(error, place)
    for line in report.lines():
        logger.info(line)


class _Judged(torch.utils.data.Dataset):
    """Number and verdict of some rows; no verdict on one that is judged later, or where there is no doubt."""

    def __init__(self, dataset: Dataset, judge: Judge, limit: int | None, numbers: range):
        self.dataset, self.judge, self.limit, self.numbers = dataset, judge, limit, numbers

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitems__(self, indices: list[int]) -> list[tuple[int, Verdict | None]]:
        numbers = [self.numbers[index] for index in indices]
        rows = self.dataset.__getitems__(numbers)
        return [(number, self._verdict(row)) for number, row in zip(numbers, rows, strict=True)]

    def _verdict(self, row: Row) -> Verdict | None:
        return None if has_media(row) or self.judge.surely_fits(row, self.limit) else self.judge(row)
