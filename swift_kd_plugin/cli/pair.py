"""`swift-kd pair`: two files of rows, with and without the experience, become training rows with two views."""

import os
import tempfile
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from swift_kd_plugin.cli.reporting import Quiet, errors_in_one_sentence, print_report
from swift_kd_plugin.errors import KDError

if TYPE_CHECKING:
    from datasets import Dataset

    from swift_kd_plugin.data.dataset_specs import PairsSpec

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
    strict: Annotated[
        bool, typer.Option("--strict", help="End with an error that names the rows that cannot be used.")
    ] = False,
    quiet: Quiet = False,
) -> None:
    """Writes rows with both views: `messages` (the student's, with the response) and `teacher_messages`.

    Rows that cannot be paired are left out and reported with file, line and reason.
    """
    with errors_in_one_sentence("pair"):
        from swift_kd_plugin.data.dataset_specs import File, PairsSpec, RowsSpec
        from swift_kd_plugin.data.leaks import Suspicions
        from swift_kd_plugin.data.pairing import ResponseRule

        check_outputs(output, {"--exp": exp, "--noexp": noexp, "--output": output, "--report": report})
        sides = [RowsSpec(str(path), File(path, str(path))) for path in (exp, noexp)]
        rule, suspicions = ResponseRule(response, gold), Suspicions(leaks, quotes)
        node = PairsSpec(str(output), *sides, on, duplicates, None, rule, suspicions)
        count = write_pairs(node, output, report, strict, quiet)
        typer.echo(f"{count:,} rows are in {output}", err=True)


def write_pairs(node: "PairsSpec", output: Path, report: Path | None, strict: bool, quiet: bool) -> int:
    """Writes the pairs, says what became of every row and returns their number. Raises KDError if there are none."""
    from tqdm import tqdm

    from swift_kd_plugin.data.build import Builder
    from swift_kd_plugin.data.export import write_jsonl
    from swift_kd_plugin.data.row_store import to_rows

    with tempfile.TemporaryDirectory() as folder:
        builder = Builder(Path(folder), strict=strict)
        dataset, made = builder.dataset(node)
        count = len(dataset)
        if count:
            write_jsonl(output, tqdm(to_rows(dataset), "writing", count, unit="row", disable=None))
        print_report(made, quiet)
        if report:
            made.write(report)
        if not count:
            sides = (node.exp, node.noexp)
            columns = "; ".join(f"{side.name} has {columns_of(builder.dataset(side)[0])}" for side in sides)
            raise KDError(f"no pair could be made, and {output} is not written; for --on and --gold {columns}.")
    return count


def columns_of(dataset: "Dataset") -> str:
    """Names of the columns beside those of a conversation, of the first rows."""
    from swift_kd_plugin.data.row_store import to_rows

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
