"""What several subcommands need: errors as one sentence, the report on the screen, and ids that are no files.

Whatever takes long to import is imported by the function that needs it, so that --help answers at once.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer

from swift_kd_plugin.data.row_report import Report
from swift_kd_plugin.errors import KDError

Quiet = Annotated[bool, typer.Option("-q", "--quiet", help="Print no notes and no examples of what is left out.")]


@contextmanager
def errors_in_one_sentence(command: str) -> Iterator[None]:
    """Ends the command with exit code 1 and the sentence of a KDError."""
    try:
        yield
    except KDError as error:
        typer.echo(f"swift-kd {command}: error: {error}", err=True)
        raise typer.Exit(1) from error


def print_report(report: Report, quiet: bool = False, left_out: str = "left out") -> None:
    """Prints what became of the input rows: of notes an example each, of what is left out a few.

    Args:
        quiet: only how many rows are left out, and why.
        left_out: what the command calls that.
    """
    for line in report.summary(quiet, left_out):
        typer.echo(line, err=True)


def open_id(dataset_id: str) -> Any:
    """The rows of a dataset by its id, as ms-swift loads it."""
    from swift_kd_plugin.host.rows.row_loader import open_dataset

    return open_dataset(dataset_id)
