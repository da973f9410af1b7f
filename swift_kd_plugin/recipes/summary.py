"""What the stages of a run came to: a table on the screen and summary.json in the output folder."""

import json
from pathlib import Path
from typing import Any

from rich.table import Column, Table

from swift_kd_plugin.data.files import write_atomically
from swift_kd_plugin.recipes.plan import GENERATE, Stage
from swift_kd_plugin.recipes.stage_record import StageRecord

SUMMARY = "summary.json"


def summarise(finished: list[tuple[Stage, StageRecord]]) -> dict[str, Any]:
    """The finished stages with their figures, and the last trained stage's best and final checkpoint by name."""
    page: dict[str, Any] = {"stages": []}
    for stage, marker in finished:
        points = {name: marker.result[name] for name in ("best", "final") if name in marker.result}
        placed = {name: point | {"folder": str(stage.folder / point["folder"])} for name, point in points.items()}
        page["stages"].append({"stage": stage.name, "seconds": round(marker.seconds, 1), **marker.result, **placed})
        if stage.kind != GENERATE:
            page |= {name: point["folder"] for name, point in placed.items()}
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
