"""`swift-kd show`: rows of a data.yaml or of a file as both models will see them."""

import tempfile
from collections import Counter
from collections.abc import Sequence
from itertools import groupby, islice
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console
from rich.text import Text

from swift_kd_plugin.cli.reporting import errors_in_one_sentence, print_report
from swift_kd_plugin.config.typed_keys import suggest
from swift_kd_plugin.data.build import Builder
from swift_kd_plugin.data.data_yaml import read_data_yaml
from swift_kd_plugin.data.dataset_specs import DatasetSpec, File, RowsSpec
from swift_kd_plugin.data.row_store import to_rows
from swift_kd_plugin.data.rows import Place, Row, text_of, without_response
from swift_kd_plugin.data.trained_turns import turn_weights
from swift_kd_plugin.data.views import has_teacher_view, teacher_view
from swift_kd_plugin.errors import KDError

TRAINED, WEIGHTED, OWN, CONTEXT = "bold green", "green", "black on yellow", "dim"
# Where there is no colour, signs say the same.
SIGNS = {TRAINED: ("«", "»"), WEIGHTED: ("‹", "›"), OWN: ("⟦", "⟧"), CONTEXT: ("", "")}


def show(
    file: Annotated[Path, typer.Argument(help="A data.yaml, or a file of rows.")],
    name: Annotated[str | None, typer.Argument(help="The dataset in the data.yaml.")] = None,
    number: Annotated[int, typer.Option("-n", help="How many rows.", min=1)] = 3,
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
) -> None:
    """Prints rows: green is trained on, yellow is what only this view has, grey is context."""
    with errors_in_one_sentence("show"), tempfile.TemporaryDirectory() as folder:
        node = choose(file, name)
        dataset, report = Builder(Path(folder), open_id).dataset(node)
        print_report(report)
        thinking = {None: None, "true": True, "false": False}[enable_thinking]
        made = load(model, template, model_type, loss_scale, thinking) if model else None
        console = Console(highlight=False, soft_wrap=True)
        for row in islice(to_rows(dataset), number):
            console.rule(Text(str(Place.of(row))))
            print_row(row, made, console, "|" if tokens else "", loss_scale)
        if not len(dataset):
            console.print(f"{node.name} has no rows")
        elif not model:
            console.print("\n--model FOLDER shows the tokens and what is trained on.", style=CONTEXT)


def choose(file: Path, name: str | None) -> DatasetSpec:
    """Raises KDError if there is no such dataset."""
    if file.suffix not in (".yaml", ".yml"):
        if name is not None:
            raise KDError(f"{file} is a file of rows, not a data.yaml; leave {name!r} out.")
        if not file.is_file():
            raise KDError(f"{file} does not exist; give a data.yaml or a file of rows.")
        return RowsSpec(str(file), File(file.resolve(), str(file)))
    nodes = read_data_yaml(file)
    if name is None:
        raise KDError(f"which dataset of {file}? It has {', '.join(nodes)}; put one behind it.")
    if name not in nodes:
        raise KDError(f"{file} has no dataset {name!r}{suggest(name, nodes)}; it has {', '.join(nodes)}.")
    return nodes[name]


def open_id(dataset_id: str) -> Any:
    from swift_kd_plugin.host.rows.row_loader import open_dataset

    return open_dataset(dataset_id)


def load(model: str, template: str | None, model_type: str | None, loss_scale: str, thinking: bool | None) -> Any:
    from swift_kd_plugin.host.samples.preview import load_training_template

    return load_training_template(model, template, model_type, loss_scale=loss_scale, enable_thinking=thinking)


def print_row(row: Row, template: Any, console: Console, bar: str, loss_scale: str) -> None:
    """Both views, as tokens if there is a template."""
    if template is None:
        for view, turns in text_views(row, loss_scale).items():
            console.print(Text(view, "bold underline"))
            for role, text, style in turns:
                console.print(Text(f"{role}: ", "cyan").append_text(marked(text, style, console)))
        return
    from swift_kd_plugin.host.samples.preview import preview

    for view, pieces in preview(row, template).items():
        trained = sum(len(piece.ids) for piece in pieces if piece.weight)
        count = sum(len(piece.ids) for piece in pieces)
        head = f"{view}: {count} tokens, {trained} of them trained on{weights_of(pieces)}"
        console.print(Text(head, "bold underline"))
        text = Text()
        for style, group in groupby(pieces, key=style_of):
            text.append_text(marked(bar.join(piece.text for piece in group), style, console))
            text.append(bar)
        console.print(text)


def weights_of(pieces: Sequence[Any]) -> str:
    """How many tokens have which weight, where one has another than 1."""
    counts = Counter(dict.fromkeys(sorted({piece.weight for piece in pieces if piece.weight}), 0))
    for piece in pieces:
        if piece.weight:
            counts[piece.weight] += len(piece.ids)
    if set(counts) <= {1}:
        return ""
    return " (" + ", ".join(f"{count} with weight {weight:g}" for weight, count in counts.items()) + ")"


def style_of(piece) -> str:
    if piece.weight:
        return TRAINED if piece.weight == 1 else WEIGHTED
    return OWN if piece.own else CONTEXT


def style_of_weight(weight: float) -> str:
    return CONTEXT if not weight else TRAINED if weight == 1 else WEIGHTED


def marked(text: str, style: str, console: Console) -> Text:
    if console.is_terminal:
        return Text(text, style)
    opening, closing = SIGNS[style]
    return Text(f"{opening}{text}{closing}")


def text_views(row: Row, loss_scale: str = "last_round") -> dict[str, list[tuple[str, str, str]]]:
    """Role, text and style of each turn of each view, without a template; the role says a weight that is not 1."""
    student = [(turn["role"], text_of(turn["content"])) for turn in row["messages"]]
    weights = turn_weights(row["messages"], loss_scale)
    prompt = without_response(row["messages"])
    turns = [
        (role if weight in (0, 1) else f"{role} (weight {weight:g})", text, style_of_weight(weight))
        for (role, text), weight in zip(student, weights, strict=True)
    ]
    response, shown = turns[len(prompt) :], {"student": turns}
    if has_teacher_view(row):
        turns = [(turn["role"], text_of(turn["content"])) for turn in teacher_view(row).messages]
        thought = [("thought", row["teacher_thought"], OWN)] if row.get("teacher_thought") else []
        view = [(role, text, CONTEXT if (role, text) in student else OWN) for role, text in turns]
        shown["teacher"] = [*view, *thought, *response]
    return shown
