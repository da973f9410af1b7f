"""The cells of an evaluation: each model is asked in each view and each thinking mode."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from datasets import Dataset

from swift_kd_plugin.data.columns import TEACHER_ONLY
from swift_kd_plugin.data.row_report import Report
from swift_kd_plugin.data.row_store import used_columns
from swift_kd_plugin.data.rows import Place, Row
from swift_kd_plugin.data.think_block import NON_THINKING, THINKING
from swift_kd_plugin.errors import KDError
from swift_kd_plugin.generation.tasks import Thinking

ViewName = Literal["without", "with"]
# --thinking of the evaluation: the name of each mode, and what its rows are told.
CELL_MODES: dict[str, dict[str, Thinking]] = {
    "row": {"row": "row"},
    "on": {THINKING: "on"},
    "off": {NON_THINKING: "off"},
    "both": {THINKING: "on", NON_THINKING: "off"},
}


@dataclass(frozen=True)
class EvalView:
    """Rows as they are asked.

    Args:
        name: "without" the experience is the student's view, "with" it the teacher's.
        dataset: stored rows.
        numbers: of the rows in the whole dataset, from 0.
    """

    name: ViewName
    dataset: Dataset
    numbers: list[int]


@dataclass(frozen=True)
class Cell:
    """One model in one view and mode."""

    model: str
    view: ViewName
    mode: str

    @property
    def folder(self) -> str:
        """Its name on disk."""
        return f"{self.model}.{self.view}.{self.mode}"

    def __str__(self) -> str:
        return f"{self.model}, {self.view} experience, {_SAID[self.mode]}"


_SAID = {"row": "mode of the row", THINKING: "thinking", NON_THINKING: "non-thinking"}


def open_views(dataset: Dataset, rows: Sequence[Row], wanted: Sequence[str], notes: Report) -> list[EvalView]:
    """The views that are asked: those in `wanted`, or all that the rows have.

    Raises:
        KDError: a view that does not exist, or the experience is wanted in view, and no row has one.
    """
    if unknown := set(wanted) - {"without", "with"}:
        raise KDError(f"--view {min(unknown)} is not known; give without, with, or both one after the other.")
    having = [number for number, row in enumerate(rows) if row.get("teacher_messages")]
    names = list(dict.fromkeys(wanted or (["without", "with"] if having else ["without"])))
    if "with" in names:
        if not having:
            raise KDError(
                "--view with: no row has the experience in view (teacher_messages); make such rows with swift-kd pair "
                "or a data.yaml (--kd_datasets), or leave the flag out."
            )
        for number in sorted(set(range(len(rows))) - set(having)):
            notes.note("no experience", "it has no teacher_messages and is not asked with it", Place.of(rows[number]))
    teacher_columns = [name for name in used_columns(dataset) if name in TEACHER_ONLY]
    views = {
        "without": EvalView("without", dataset.remove_columns(teacher_columns), list(range(len(rows)))),
        "with": EvalView("with", dataset.select(having), having),
    }
    return [views[name] for name in names]
