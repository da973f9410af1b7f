"""What several subcommands need: errors as one sentence, and the report on the screen."""

from collections.abc import Iterator
from contextlib import contextmanager

import typer

from swift_kd_plugin.data.row_report import Report
from swift_kd_plugin.errors import KDError


@contextmanager
def errors_in_one_sentence(command: str) -> Iterator[None]:
    """Ends the command with exit code 1 and the sentence of a KDError."""
    try:
        yield
    except KDError as error:
        typer.echo(f"swift-kd {command}: error: {error}", err=True)
        raise typer.Exit(1) from error


def print_report(report: Report) -> None:
    for line in report.lines():
        typer.echo(line, err=True)
