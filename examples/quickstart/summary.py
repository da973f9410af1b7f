"""The quickstart's last page: what was learned, what it cost, and how to go on."""

from typing import Any

from examples.quickstart.code_book import TASKS
from examples.quickstart.stages import StageResult

Accuracy = dict[str, float]


def accuracy_table(accuracies: dict[str, Accuracy]) -> str:
    """One line per moment of measurement, one column per task."""
    width = max(map(len, accuracies)) + 2
    lines = [" " * width + "".join(f"{task:>8}" for task in TASKS)]
    lines += [f"{name:<{width}}" + "".join(f"{acc[task]:>8.2f}" for task in TASKS) for name, acc in accuracies.items()]
    return "\n".join(lines)


def last_line(accuracies: dict[str, Accuracy]) -> str:
    """The newest measurement."""
    name, accuracy = list(accuracies.items())[-1]
    return f"{name}: " + ", ".join(f"{task} {accuracy[task]:.2f}" for task in TASKS)


def cost_table(results: dict[str, StageResult], tokens_per_step: float) -> str:
    """Losses, speed and memory, one column per stage."""
    rows = {
        "steps": [f"{r.steps}" for r in results.values()],
        "loss, first step": [f"{r.first_loss:.4f}" for r in results.values()],
        "loss, last step": [f"{r.last_loss:.4f}" for r in results.values()],
        "tokens per second": [f"{tokens_per_step / r.seconds_per_step:,.0f}" for r in results.values()],
        "peak memory of a process, GiB": [f"{r.peak_memory_gib:.2f}" for r in results.values()],
        "seconds, start to end": [f"{r.wall_seconds:.0f}" for r in results.values()],
    }
    width = max(map(len, rows)) + 2
    lines = [" " * width + "".join(f"{name:>12}" for name in results)]
    lines += [f"{label:<{width}}" + "".join(f"{value:>12}" for value in values) for label, values in rows.items()]
    return "\n".join(lines)


def as_json(
    results: dict[str, StageResult], accuracies: dict[str, Accuracy], tokens_per_step: float, **more: Any
) -> dict[str, Any]:
    """The same figures for summary.json."""
    stages = {
        name: {
            **vars(result),
            "checkpoint": str(result.checkpoint),
            "tokens_per_second": round(tokens_per_step / result.seconds_per_step),
        }
        for name, result in results.items()
    }
    return {"accuracy": accuracies, "stages": stages, **more}
