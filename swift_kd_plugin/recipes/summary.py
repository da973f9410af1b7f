"""What the stages of a run came to: a table on the screen and summary.json in the output folder."""

import json
from pathlib import Path
from typing import Any

from rich.table import Column, Table

from swift_kd_plugin.data.files import write_atomically
from swift_kd_plugin.host.train.run_record import SUMMARY, read_page
from swift_kd_plugin.recipes.plan import GENERATE, Stage
from swift_kd_plugin.recipes.stage_record import StageRecord

# What the summary of a stage's own run says of it.
OF_RUN = ("loss", "tokens_per_second", "peak_memory_bytes", "rows", "warnings")


def summarise(finished: list[tuple[Stage, StageRecord]]) -> dict[str, Any]:
    """The finished stages with their figures, the last trained stage's best and final checkpoint by name, and the
    command that evaluates it."""
    page: dict[str, Any] = {"stages": []}
    for stage, marker in finished:
        points = {name: marker.result[name] for name in ("best", "final") if name in marker.result}
        placed = {name: point | {"folder": str(stage.folder / point["folder"])} for name, point in points.items()}
        own = read_page(stage.folder / SUMMARY) or {}
        figures = {name: own[name] for name in OF_RUN if own.get(name) is not None}
        row = {"stage": stage.name, "seconds": round(marker.seconds, 1), **figures, **marker.result, **placed}
        page["stages"].append(row)
        if stage.kind != GENERATE:
            page |= {name: point["folder"] for name, point in placed.items()}
            page |= {"next": own["next"]} if own.get("next") else {}
    return page


def write_summary(page: dict[str, Any], output: Path) -> None:
    """Raises KDError if it cannot be written."""
    write_atomically(output / SUMMARY, json.dumps(page, ensure_ascii=False, indent=2) + "\n")


def as_table(page: dict[str, Any], output: Path) -> Table:
    """A row a stage; folders relative to the output folder."""
    table = Table(
        "stage", "steps", "seconds", "best validation divergence", "at step", Column("folder", overflow="fold")
    )
    for row in page["stages"]:
        best = row["best"]
        value = best.get("divergence")
        cells = [row.get("steps"), f"{row['seconds']:.0f}", None if value is None else f"{value:.4g}", best.get("step")]
        table.add_row(row["stage"], *(str(cell or "") for cell in cells), str(Path(best["folder"]).relative_to(output)))
    return table
