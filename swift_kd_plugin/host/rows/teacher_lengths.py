"""The teacher's views beside --max_length, which holds for the student's alone."""

from collections.abc import Sequence

from datasets import Dataset
from swift.utils import get_logger, is_master

from swift_kd_plugin.data.columns import TEACHER_COLUMNS
from swift_kd_plugin.data.rows import Row, response_of
from swift_kd_plugin.data.views import has_teacher_view, teacher_view
from swift_kd_plugin.host.rows.encoding_check import Judge, has_media

# Rows of a data set that are encoded, so that a start takes no longer with many.
LOOKED_AT = 200
logger = get_logger()


def say_long_teacher_views(args, template, datasets: Sequence[Dataset | None]) -> None:
    """Says how many rows are longer than --max_length for the teacher, of rows that lie evenly in each data set."""
    if args.max_length is None or not is_master():
        return
    judge = Judge(template)
    for flag, dataset in zip(("--dataset", "--val_dataset"), datasets, strict=True):
        if not isinstance(dataset, Dataset) or not {*TEACHER_COLUMNS} & {*dataset.features}:
            continue
        rows = [dataset[number] for number in range(0, len(dataset), -(-len(dataset) // LOOKED_AT))]
        lengths = [judge(_as_teacher_sees(row)).length or 0 for row in rows if _has_text_view(row)]
        long = [length for length in lengths if length > args.max_length]
        if long:
            logger.warning(
                f"{len(long):,} of {len(lengths):,} rows of {flag} that were looked at are longer than --max_length "
                f"{args.max_length} in the teacher's view (up to {max(long):,} tokens) and used whole: the flag holds "
                "for the student's view."
            )


def _has_text_view(row: Row) -> bool:
    return has_teacher_view(row) and not has_media(row)


def _as_teacher_sees(row: Row) -> Row:
    view = vars(teacher_view(row))
    return view | {"messages": [*view["messages"], *response_of(row)]}
