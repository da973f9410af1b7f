"""The quickstart's last page: what was learned and what it cost."""

from pathlib import Path
from typing import Any

from examples.quickstart.code_book import TASKS
from swift_kd_plugin.host.train.training_log import read_log, step_of_row

Accuracy = dict[str, float]
Page = dict[str, Any]
LABELS = {
    "steps": "steps",
    "first_loss": "loss, first step",
    "last_loss": "loss, last step",
    "tokens_per_second": "tokens per second",
    "peak_memory_gib": "peak memory of a process, GiB",
    "seconds": "seconds, start to end",
}
FORMATS = {"first_loss": ".4f", "last_loss": ".4f", "tokens_per_second": ",.0f", "peak_memory_gib": ".2f"}


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


def with_costs(page: Page, folder: Path, tokens_per_step: float) -> Page:
    """What `swift-kd train` says about its stages, with losses, speed and memory of their logs."""
    stages = [stage | _costs(folder / stage["stage"], tokens_per_step) for stage in page["stages"]]
    return page | {"stages": stages}


def _costs(folder: Path, tokens_per_step: float) -> Page:
    """Of one stage. Memory is the largest of all processes'."""
    rows = [row for row in read_log(folder) if step_of_row(row)]
    seconds_per_step = rows[-1]["train_speed(s/it)"]
    return {
        "first_loss": rows[0]["loss"],
        "last_loss": rows[-1]["loss"],
        "seconds_per_step": seconds_per_step,
        "tokens_per_second": round(tokens_per_step / seconds_per_step),
        "peak_memory_gib": max(row["memory(GiB)"] for row in rows),
    }


def cost_table(stages: list[Page]) -> str:
    """Losses, speed and memory, one column per stage."""
    width = max(map(len, LABELS.values())) + 2
    lines = [" " * width + "".join(f"{stage['stage']:>12}" for stage in stages)]
    for name, label in LABELS.items():
        lines.append(f"{label:<{width}}" + "".join(f"{stage[name]:>12{FORMATS.get(name, '.0f')}}" for stage in stages))
    return "\n".join(lines)
