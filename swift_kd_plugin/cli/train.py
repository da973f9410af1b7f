"""`swift-kd train`: a YAML file as one training run, or as stages that follow one another."""

import os
import shutil
import tempfile
from collections.abc import Callable
from contextlib import nullcontext
from functools import cache, partial
from pathlib import Path
from typing import Annotated, Any, Literal, get_type_hints

import typer
from rich.console import Console

from swift_kd_plugin.cli.generate import generate
from swift_kd_plugin.cli.reporting import errors_in_one_sentence
from swift_kd_plugin.data.files import locked
from swift_kd_plugin.errors import KDError
from swift_kd_plugin.host.start.megatron_flags import megatron_flags
from swift_kd_plugin.recipes.check import check_stages
from swift_kd_plugin.recipes.inputs import provide_inputs
from swift_kd_plugin.recipes.plan import Stage, has_stages, make_plan, plain_keys
from swift_kd_plugin.recipes.process import run_process
from swift_kd_plugin.recipes.shell_command import megatron_command
from swift_kd_plugin.recipes.source import Recipe, read_recipe
from swift_kd_plugin.recipes.stage_record import read_record
from swift_kd_plugin.recipes.stages import StageFailed, StageRunner, best_of, complete_keys
from swift_kd_plugin.recipes.summary import as_table, summarise, write_summary

Wanted = Literal["generate", "off_policy", "on_policy", "all", "check"]


def train(
    file: Annotated[Path, typer.Argument(help="A YAML or JSON file whose keys are flags of `megatron rlhf`.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="Win over the file: lr=1e-5 off_policy.lr=1e-5."),
    ] = None,
    stage: Annotated[
        Wanted,
        typer.Option(
            help="check: one batch of the run, or of each stage, in a temporary folder. Of a file with stages also one "
            "of them."
        ),
    ] = "all",
    tiny: Annotated[
        bool,
        typer.Option("--tiny", envvar="TINY", help="Put the file's section `tiny` on top of it: the run for a laptop."),
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry_run", help="Print the commands and stop.")] = False,
    rerun: Annotated[
        bool,
        typer.Option("--rerun", help="Move stages that were run with other keys or inputs aside and run them anew."),
    ] = False,
) -> None:
    """Trains with `megatron rlhf` as a file says, and prints the same as a command.

    The file: `base:` (a file or a list of files, relative to this one, that it
    builds on), ${key} and ${oc.env:NAME}, `env:` (a variable that is set already
    keeps its value), `nproc_per_node:`; null leaves a flag out; paths are
    relative to the current folder, as in the command. rlhf_type and
    external_plugins are set. `megatron rlhf FILE.yaml` takes such a file, too,
    without base, tiny, overrides, interpolation, checked keys and stages.

    A section `tiny:` holds what a run without a GPU changes; with --tiny (or
    TINY=1) it wins over the file and its bases, otherwise it is dropped.
    `prepare:` {folder, script} has a Python script make what is missing there.

    Sections `generate:`, `off_policy:` and `on_policy:` are stages, run in this
    order, each in a folder of output_dir, and from the best checkpoint of the
    one before; started again, they go on where they were. `progressive:` lists
    students of `students:`; each is the next one's teacher. One machine only.
    """
    with errors_in_one_sentence("train"):
        recipe = read_recipe(file, overrides or [], tiny)
        if not has_stages(recipe):
            if stage not in ("all", "check"):
                raise KDError(f"--stage {stage}: {file} has no stages (sections generate, off_policy, on_policy).")
            code = check_plainly(recipe) if stage == "check" and not dry_run else train_plainly(recipe, dry_run)
        else:
            code = train_in_stages(recipe, stage, dry_run, rerun)
    raise typer.Exit(code)


def say(line: str) -> None:
    typer.echo(line, err=True)


def train_plainly(recipe: Recipe, dry_run: bool) -> int:
    """One run of `megatron rlhf`; returns its exit code."""
    keys = plain_keys(recipe, megatron_flags())
    command = megatron_command(keys)
    if not dry_run:
        provide_inputs(keys, recipe.origin, recipe.file, say)
    typer.echo(command.shell())
    if dry_run:
        return 0
    owner = os.environ.get("NODE_RANK", "0") == "0"
    is_shared = keys.get("output_dir") and keys.get("add_version") is False and owner
    with locked(Path(keys["output_dir"])) if is_shared else nullcontext(-1) as lock:
        return run_process(command, lock=lock)


def check_plainly(recipe: Recipe) -> int:
    """One batch of a run without stages; returns its exit code if it fails, or 0."""
    keys = plain_keys(recipe, megatron_flags())
    refuse_several_machines([keys])
    provide_inputs(keys, recipe.origin, recipe.file, say)
    return check_in_folder(lambda folder: [Stage("run", None, folder / "run", keys)], "the run")


def check_in_folder(plan: Callable[[Path], list[Stage]], what: str) -> int:
    """One batch of each stage that is planned for a temporary folder; returns the exit code of one that fails, or 0."""
    folder = Path(tempfile.mkdtemp(prefix="swift-kd-check-"))
    try:
        check_stages(plan(folder), StageRunner(say))
    except StageFailed as error:  # the folder stays, with the log
        say(f"swift-kd train: error: {error}")
        return error.code
    shutil.rmtree(folder)
    say(f"{what} loads, makes one step and writes its result")
    return 0


def train_in_stages(recipe: Recipe, wanted: Wanted, dry_run: bool, rerun: bool) -> int:
    """All stages, one of them, or a check of each; returns the exit code of a stage that failed, or 0."""
    stages = make_plan(recipe, megatron_flags(), generate_flags())
    if wanted not in ("all", "check") and wanted not in {stage.kind for stage in stages}:
        raise KDError(f"--stage {wanted}: {recipe.file} has no section {wanted}.")
    chosen = [stage for stage in stages if wanted in ("all", "check", stage.kind)]
    if dry_run:
        print_commands(chosen, StageRunner(say))
        return 0
    refuse_several_machines([stage.keys for stage in stages])
    for one in chosen:
        provide_inputs(one.keys, recipe.origin, recipe.file, say)
    if wanted == "check":
        plan = partial(make_plan, recipe, megatron_flags(), generate_flags())
        return check_in_folder(plan, "every stage")
    try:
        output = stages[0].root
        with locked(output) as lock:
            for chosen_stage in chosen:
                StageRunner(say, rerun, lock).finish(chosen_stage)
            markers = [(stage, read_record(stage.folder)) for stage in stages]
            page = summarise([(stage, marker) for stage, marker in markers if marker and marker.finished])
            write_summary(page, output)
    except StageFailed as error:
        say(f"swift-kd train: error: {error}")
        return error.code
    Console(stderr=True).print(as_table(page, output))
    for name in ("best", "final", "next"):
        if name in page:
            typer.echo(f"{name}: {page[name]}")
    return 0


def print_commands(stages: list[Stage], runner: StageRunner) -> None:
    """The command of each stage; a checkpoint that is not there yet is named by the stage it will come from."""

    def best(stage: Stage) -> str:
        marker = read_record(stage.folder)
        return best_of(stage) if marker and marker.finished else f"{stage.folder}/checkpoint-BEST"

    for stage in stages:
        typer.echo(f"# {stage.name}\n{runner.command(stage, complete_keys(stage, best)).shell()}\n")


def refuse_several_machines(runs: list[dict[str, Any]]) -> None:
    """Raises KDError if the keys of one of the runs, or the environment, say several machines."""
    nodes = {(keys.get("env") or {}).get("NNODES") for keys in runs} | {os.environ.get("NNODES")}
    if {str(count) for count in nodes if count is not None} - {"1"}:
        raise KDError(
            "stages and --stage check run on one machine, and NNODES is above 1; run the commands of --dry_run on "
            "every machine."
        )


@cache
def generate_flags() -> dict[str, Any]:
    """Names and types of the flags of `swift-kd generate` that a section may have."""
    hints = {name: str if hint == Path else hint for name, hint in get_type_hints(generate).items()}
    hints = {name: str | None if hint == Path | None else hint for name, hint in hints.items()}
    return {
        name: hint for name, hint in hints.items() if name not in ("output", "config", "overwrite", "quiet", "return")
    }
