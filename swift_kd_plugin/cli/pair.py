"""`swift-kd pair`: two files of rows, with and without the experience, become training rows with two views."""

import os
import tempfile
from itertools import islice
from pathlib import Path
from typing import Annotated, Literal

import typer
from datasets import Dataset
from tqdm import tqdm

from swift_kd_plugin.cli.reporting import errors_in_one_sentence, print_report
from swift_kd_plugin.data.build import Builder
from swift_kd_plugin.data.dataset_specs import File, PairsSpec, RowsSpec
from swift_kd_plugin.data.export import write_jsonl
from swift_kd_plugin.data.leaks import Suspicions
from swift_kd_plugin.data.pairing import ResponseRule
from swift_kd_plugin.data.row_store import to_rows
from swift_kd_plugin.errors import KDError

ROWS_FOR_COLUMN_NAMES = 100
Keep = Literal["report", "drop"]


def pair(
    exp: Annotated[Path, typer.Option(help="Rows with the experience in view (.jsonl, .json, .csv, .tsv, .parquet).")],
    noexp: Annotated[Path, typer.Option(help="The same questions as the student will meet them.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="The .jsonl file to write, whole or not at all.")],
    on: Annotated[
        str, typer.Option(help="What joins the rows: a column, or last_user_message, or order (the row's number).")
    ] = "id",
    response: Annotated[
        Literal["exp", "gold", "none"],
        typer.Option(help="The experienced answer, a column's text, or none (the student will write)."),
    ] = "exp",
    gold: Annotated[str, typer.Option(help="The column of --response gold.")] = "gold",
    duplicates: Annotated[
        Literal["refuse", "first", "all"],
        typer.Option(
            help="Rows that share a key and differ: use none of them, the first, or pair every experienced one."
        ),
    ] = "refuse",
    leaks: Annotated[Keep, typer.Option(help="Student views that contain the experience's text: keep or drop.")] = (
        "report"
    ),
    quotes: Annotated[Keep, typer.Option(help="Responses that speak of the experience: keep or drop.")] = "report",
    report: Annotated[Path | None, typer.Option(help="Also write what became of every row here, as JSON.")] = None,
    strict: Annotated[bool, typer.Option("--strict", help="End at the first row that cannot be used.")] = False,
) -> None:
    """Writes rows with both views: `messages` (the student's, with the response) and `teacher_messages`.

    Rows that cannot be paired are left out and reported with file, line and reason.
    """
    with errors_in_one_sentence("pair"), tempfile.TemporaryDirectory() as folder:
        check_outputs(output, {"--exp": exp, "--noexp": noexp, "--output": output, "--report": report})
        sides = [RowsSpec(str(path), File(path, str(path))) for path in (exp, noexp)]
        rule, suspicions = ResponseRule(response, gold), Suspicions(leaks, quotes)
        node = PairsSpec(str(output), *sides, on, duplicates, None, rule, suspicions)
        builder = Builder(Path(folder), strict=strict)
        dataset, made = builder.dataset(node)
        if len(dataset):
            count = write_jsonl(output, tqdm(to_rows(dataset), "writing", len(dataset), unit="row", disable=None))
        print_report(made)
        if report:
            made.write(report)
        if not len(dataset):
            columns = "; ".join(f"{side.name} has {columns_of(builder.dataset(side)[0])}" for side in sides)
            raise KDError(f"no pair could be made, and {output} is not written; for --on and --gold {columns}.")
        typer.echo(f"{count:,} rows are in {output}", err=True)


def columns_of(dataset: Dataset) -> str:
    """Names of the columns beside those of a conversation, of the first rows."""
    names = {name for row in islice(to_rows(dataset), ROWS_FOR_COLUMN_NAMES) for name in row.get("columns", {})}
    if not len(dataset):
        return "no rows"
    return f"the columns {', '.join(sorted(names))}" if names else "no columns"


def check_outputs(output: Path, files: dict[str, Path | None]) -> None:
    """Raises KDError if what is written would take the place of a file that is read, or is not named for what it is."""
    if output.suffix != ".jsonl":
        raise KDError(f"--output {output} must be named .jsonl, because such a file is what it writes.")
    for written, others in (("--output", ("--exp", "--noexp")), ("--report", ("--exp", "--noexp", "--output"))):
        file = files[written]
        for flag in others:
            if file is not None and os.path.realpath(file) == os.path.realpath(files[flag]):
                raise KDError(f"{written} {file} is the file of {flag}, too; choose another.")
