"""`swift-kd status`: how a run or a recipe stands."""

import json
from math import isfinite
from pathlib import Path
from typing import Annotated, Any

import typer

from swift_kd_plugin.cli.reporting import errors_in_one_sentence
from swift_kd_plugin.recipes.run_status import FAILED, FINISHED, RUNNING, STARTING, RunStatus, StageStatus, read_status

SHOWN = ("loss", "divergence", "ce", "top1_agreement", "teacher_ce", "student_ce", "grad_norm", "learning_rate")


def status(
    folder: Annotated[Path, typer.Argument(help="The folder of a run, or of a recipe with stages.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")] = False,
) -> None:
    """Says how a run or a recipe stands: running, finished, stopped (and how to go on) or failed (and why).

    With the step (of one that is starting none), the time that is left and the last figures; of a recipe, each stage
    that has begun.
    """
    with errors_in_one_sentence("status"):
        found = read_status(folder)
        if as_json:
            page = {"stages": [stage.as_json() for stage in found]} if isinstance(found, list) else found.as_json()
            typer.echo(json.dumps(_without_infinity(page), ensure_ascii=False, indent=2, allow_nan=False))
        elif isinstance(found, list):
            typer.echo("\n".join(line for stage in found for line in lines_of_stage(stage)))
        else:
            typer.echo("\n".join(lines_of_run(found)))


def _without_infinity(value: Any) -> Any:
    """A page with null for each number that JSON does not have."""
    if isinstance(value, dict):
        return {name: _without_infinity(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_without_infinity(inner) for inner in value]
    return None if isinstance(value, float) and not isfinite(value) else value


def lines_of_stage(stage: StageStatus) -> list[str]:
    if stage.state == FINISHED:
        best, step = ((stage.best or {}).get(name) for name in ("divergence", "step"))
        at = f" at step {step}" if isinstance(step, int) else ""
        figure = f", best validation divergence {best:.4g}{at}" if isinstance(best, (int, float)) else ""
        return [f"{stage.name}: finished in {stage.seconds:,.0f} s{figure}"]
    if stage.run is None:
        return [f"{stage.name}: {stage.state}"]
    first, *others = lines_of_run(stage.run, of_recipe=True)
    lines = [f"{stage.name}: {first}", *(f"  {line}" for line in others)]
    if stage.state not in (STARTING, RUNNING, FINISHED):
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
        each = ", on each machine with its own NODE_RANK" if run.machines > 1 else ""
        lines.append(f"to go on{each}: {run.go_on}")
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
