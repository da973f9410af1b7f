"""The console script `swift-kd`."""

from importlib import import_module
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from swift_kd_plugin.requirements import quiet_libraries
from swift_kd_plugin.version import __version__

# By name: module and function, the class of the command where it is no plain one, and what the list of commands says.
COMMANDS = {
    "pair": (
        *("pair", "pair", None),
        "Writes rows with both views: `messages` (the student's, with the response) and `teacher_messages`.",
    ),
    "show": (
        "show",
        "show",
        None,
        "Prints rows: green is trained on, yellow is what only this view has, grey is context.",
    ),
    "train": (
        *("train", "train", "key_values.KeyValues"),
        "Trains with `megatron rlhf` as a file says, and prints the same as a command.",
    ),
    "score": (
        *("score", "score", "key_values.KeyValues"),
        "Lets the teacher of a training run score all its rows into --kd_teacher_cache, without a student.",
    ),
    "status": (
        *("status", "status", None),
        "Says how a run or a recipe stands: running, finished, stopped (and how to go on) or failed (and why).",
    ),
    "patches": (
        *("patches", "patches", None),
        "Lists every patched symbol of the host with why it is patched and when the patch can be removed, and the "
        "methods of its trainer that are overridden.",
    ),
    "cache": ("cache", "cache", None, "What a --kd_teacher_cache holds."),
    "generate": (
        *("generate", "generate", "config_file.ManyValues"),
        "Writes responses.jsonl, a dataset of ms-swift, and a report. A killed run goes on when it is started again.",
    ),
    "eval": (
        *("eval", "evaluate", "config_file.ManyValues"),
        "Compares models on a dataset: report.md, report.json, report.csv and answers.jsonl. A killed run goes on.",
    ),
}


class LateGroup(TyperGroup):
    """Imports a command when it is called; the list of all is printed without them."""

    def __init__(self, *args: Any, **settings: Any):
        super().__init__(*args, **settings)
        self.commands = {name: TyperCommand(name, help=summary) for name, (*_, summary) in COMMANDS.items()}

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if args[0] in COMMANDS:
            self.commands[args[0]] = load_command(args[0])
        return super().resolve_command(ctx, args)


def load_command(name: str) -> Any:
    """The command as typer runs it."""
    quiet_libraries()
    module, function, kind, _ = COMMANDS[name]
    found = _imported(f"{module}.{function}")
    if isinstance(found, typer.Typer):
        return typer.main.get_group(found)
    alone = typer.Typer(add_completion=False)
    alone.command(name, cls=_imported(kind) if kind else None)(found)
    return typer.main.get_command(alone)


def _imported(path: str) -> Any:
    module, name = path.split(".")
    return getattr(import_module(f"swift_kd_plugin.cli.{module}"), name)


app = typer.Typer(
    cls=LateGroup,
    help="Knowledge distillation for Megatron-SWIFT.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def main(
    version: bool = typer.Option(
        False, "--version", callback=_print_version, is_eager=True, help="Print the version and exit."
    ),
) -> None:
    """Training is `megatron rlhf --rlhf_type gkd --external_plugins swift_kd_plugin ...`, or `swift-kd train FILE`."""
