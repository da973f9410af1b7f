"""`swift-kd show`: rows of a data.yaml or of files as both models will see them."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from swift_kd_plugin.cli.reporting import Quiet, errors_in_one_sentence, open_id, print_report
from swift_kd_plugin.config.typed_keys import suggest
from swift_kd_plugin.errors import KDError

if TYPE_CHECKING:
    from swift_kd_plugin.data.dataset_specs import DatasetSpec


def show(
    file: Annotated[Path, typer.Argument(help="A data.yaml, or a file of rows (.jsonl, .json, .csv, .tsv, .parquet).")],
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="[NAME|FILE]...", help="Datasets of the data.yaml, all by default; or more files."),
    ] = None,
    number: Annotated[int, typer.Option("-n", help="How many rows of each.", min=1)] = 3,
    model: Annotated[
        str | None, typer.Option(help="A model whose tokenizer shows the tokens and what is trained on.")
    ] = None,
    template: Annotated[str | None, typer.Option(help="ms-swift's template; the model's by default.")] = None,
    model_type: Annotated[
        str | None, typer.Option("--model_type", help="ms-swift's model type, if the folder does not tell.")
    ] = None,
    loss_scale: Annotated[
        str, typer.Option("--loss_scale", help="As in training, where last_round is GKD's default.")
    ] = "last_round",
    enable_thinking: Annotated[
        Literal["true", "false"] | None, typer.Option("--enable_thinking", help="As in training.")
    ] = None,
    tokens: Annotated[bool, typer.Option("--tokens", help="Put a bar between tokens.")] = False,
    quiet: Quiet = False,
) -> None:
    """Prints rows: green is trained on, yellow is what only this view has, grey is context.

    Rows that training would refuse are counted and named, and so is what training
    would make of the rest that one may not expect.
    """
    with errors_in_one_sentence("show"):
        from swift_kd_plugin.generation.model_folder import check_model_folder

        if model:
            check_model_folder(model)
        nodes = choose(file, names or [])
        thinking = {None: None, "true": True, "false": False}[enable_thinking]
        made = load(model, template, model_type, loss_scale, thinking) if model else None
        failed = []
        for node in nodes:
            try:
                show_dataset(node, number, made, "|" if tokens else "", loss_scale, quiet)
            except KDError as error:  # the others are shown all the same
                failed.append(error)
        if not model:
            typer.echo("\n--model FOLDER shows the tokens and what is trained on.")
        for error in failed[:-1]:
            typer.echo(f"swift-kd show: error: {error}", err=True)
        if failed:
            raise failed[-1]


def show_dataset(node: "DatasetSpec", number: int, template: Any, bar: str, loss_scale: str, quiet: bool) -> None:
    """Says what becomes of a dataset's rows in training, and prints the first."""
    import tempfile
    from itertools import islice

    from rich.console import Console
    from rich.text import Text

    from swift_kd_plugin.cli.printed_rows import print_row
    from swift_kd_plugin.data.build import Builder
    from swift_kd_plugin.data.row_store import to_rows
    from swift_kd_plugin.data.rows import Place
    from swift_kd_plugin.data.trained_turns import say_what_is_trained

    with tempfile.TemporaryDirectory() as folder:
        dataset, report = Builder(Path(folder), open_id, tolerant=True).dataset(node)
        say_what_is_trained(to_rows(dataset), loss_scale, report)
        print_report(report, quiet, left_out="refused in training, or left out with --kd_bad_rows drop")
        console = Console(highlight=False, soft_wrap=True)
        for row in islice(to_rows(dataset), number):
            console.rule(Text(str(Place.of(row))))
            print_row(row, template, console, bar, loss_scale)
        if not len(dataset):
            console.print(f"{node.name} has no rows")


def choose(file: Path, names: list[str]) -> "list[DatasetSpec]":
    """The datasets that are meant. Raises KDError if there is no such file or dataset."""
    from swift_kd_plugin.data.data_yaml import read_data_yaml
    from swift_kd_plugin.data.dataset_specs import File, RowsSpec

    if file.suffix not in (".yaml", ".yml"):
        files = [file, *map(Path, names)]
        for path in files:
            if not path.is_file():
                behind = "" if path == file else f"; behind {file}, which is no data.yaml, only files may stand"
                raise KDError(f"{path} does not exist; give a data.yaml or files of rows{behind}.")
        return [RowsSpec(str(path), File(path.resolve(), str(path))) for path in files]
    nodes = read_data_yaml(file)
    for name in names:
        if name not in nodes:
            raise KDError(f"{file} has no dataset {name!r}{suggest(name, nodes)}; it has {', '.join(nodes)}.")
    return [nodes[name] for name in names or nodes]


def load(model: str, template: str | None, model_type: str | None, loss_scale: str, thinking: bool | None) -> Any:
    from swift_kd_plugin.host.samples.preview import load_training_template

    return load_training_template(model, template, model_type, loss_scale=loss_scale, enable_thinking=thinking)
