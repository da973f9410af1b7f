"""`swift-kd status`: how a run or a recipe stands."""

import json
from pathlib import Path
from typing import Annotated

import typer

from swift_kd_plugin.cli.reporting import errors_in_one_sentence
from swift_kd_plugin.recipes.run_status import FAILED, FINISHED, RUNNING, RunStatus, StageStatus, read_status

SHOWN = ("loss", "divergence", "ce", "top1_agreement", "teacher_ce", "student_ce", "grad_norm", "learning_rate")


def status(
    folder: Annotated[Path, typer.Argument(help="The folder of a run, or of a recipe with stages.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")] = False,
) -> None:
    """Says how a run or a recipe stands: running, finished, stopped (and how to go on) or failed (and why).

    With the step, the time that is left and the last figures; of a recipe, each stage
    that has begun.
    """
    with errors_in_one_sentence("status"):
        found = read_status(folder)
        if as_json:
            page = [stage.as_json() for stage in found] if isinstance(found, list) else found.as_json()
            typer.echo(json.dumps({"stages": page} if isinstance(found, list) else page, ensure_ascii=False, indent=2))
        elif isinstance(found, list):
            typer.echo("\n".join(line for stage in found for line in lines_of_stage(stage)))
        else:
            typer.echo("\n".join(lines_of_run(found)))


def lines_of_stage(stage: StageStatus) -> list[str]:
    if stage.state == FINISHED:
        best = (stage.best or {}).get("divergence")
        figure = "" if best is None else f", best validation divergence {best:.4g} at step {stage.best['step']}"
        return [f"{stage.name}: finished in {stage.seconds:,.0f} s{figure}"]
    if stage.run is None:
        return [f"{stage.name}: {stage.state}"]
    first, *others = lines_of_run(stage.run, of_recipe=True)
    lines = [f"{stage.name}: {first}", *(f"  {line}" for line in others)]
    if stage.state not in (RUNNING, FINISHED):
        lines.append("  to go on, start the same `swift-kd train` again")
    return lines


def lines_of_run(run: RunStatus, of_recipe: bool = False) -> list[str]:
    """The verdict first.

    Args:
        of_recipe: the recipe knows how it goes on.
    """
    at = f"step {run.step:,} of {run.steps:,}" if run.steps else "no step has been logged"
    left = f", {run.remaining} left" if run.remaining else ""
    lines = [f"failed: {run.error}" if run.state == FAILED else f"{run.state}: {at}{left}"]
    if run.state == FAILED and run.steps:
        lines.append(f"at {at}")
    if run.is_stale:
        lines.append(f"nothing has been logged for {run.silent_seconds / 60:,.0f} minutes")
    lines += figures_of(run)
    if run.log:
        lines.append(f"log: {run.log}")
    if run.go_on and not of_recipe:
        lines.append(f"to go on: {run.go_on}")
    if run.next:
        lines.append(f"next: {run.next}")
    return lines


def figures_of(run: RunStatus) -> list[str]:
    """The last figures, and whether the loss does what it should."""
    lines = []
    shown = {name: run.figures[name] for name in SHOWN if name in run.figures}
    if shown:
        lines.append("last: " + "  ".join(f"{name} {value:.4g}" for name, value in shown.items()))
    held_out = {name: value for name, value in run.evaluation.items() if name.removeprefix("eval_") in SHOWN[:4]}
    if held_out:
        at = str(run.evaluation.get("iteration", "")).partition("/")[0]
        lines.append(
            f"evaluation at step {at}: " + "  ".join(f"{name} {value:.4g}" for name, value in held_out.items())
        )
    if run.not_finite:
        lines.append(
            f"the loss is no finite number in {len(run.not_finite):,} logged steps, first in {run.not_finite[0]}"
        )
    elif run.falls is not None:
        lines.append("the loss falls" if run.falls else "the loss does not fall")
    return lines
