"""What a checkpoint can do, by greedy answers of transformers."""

from dataclasses import dataclass, replace
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from examples.proof.scenarios import Material
from examples.quickstart.evaluate import Row, accuracy, load_checkpoint

Accuracy = dict[str, float]
# Of the validation questions on other books; a checkpoint below it is chosen only where none is above.
LEAST_KEPT = 0.98


@dataclass(frozen=True)
class Measured:
    """Shares of right answers by task.

    Args:
        step: of the checkpoint.
        validation, others_validation: without the book; on other books in view. They choose the step.
        test: held-out questions without the book.
        taught: the same questions, and what the teacher's book says counts as right.
        again: the same questions with the true book in view again.
        others: other books in view.
    """

    step: int
    validation: Accuracy
    others_validation: Accuracy
    test: Accuracy | None = None
    taught: Accuracy | None = None
    again: Accuracy | None = None
    others: Accuracy | None = None

    @property
    def merit(self) -> tuple[bool, float, float, int]:
        """Of those that forgot little the most right answers, then the least forgotten, then the fewest steps."""
        kept = mean(self.others_validation)
        return kept >= LEAST_KEPT, mean(self.validation), kept, -self.step


def as_taught(rows: list[Row]) -> list[Row]:
    """The same questions; what the teacher's book says counts as right."""
    return [{**row, "gold": row["taught"]} for row in rows]


def mean(shares: Accuracy) -> float:
    """Both tasks count alike."""
    return sum(shares.values()) / len(shares)


def asked(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: list[Row], **how: bool) -> Accuracy:
    """Accuracy by task on rows with an answer, each rounded to four digits."""
    prompts = [{**row, "messages": row["messages"][:-1]} for row in rows]
    return {task: round(share, 4) for task, share in accuracy(model, tokenizer, prompts, **how).items()}


def measure_checkpoints(folder: Path, material: Material) -> tuple[Measured, list[Measured], Accuracy]:
    """The best checkpoint of a run with its test figures, the validation of all, and the test figure of the last."""
    found = {int(path.name.rpartition("-")[2]): path for path in folder.glob("checkpoint-*")}
    curve = [validate(found[step], step, material) for step in sorted(found)]
    best = max(curve, key=lambda point: point.merit)
    chosen = test(found[best.step], best, material)
    if best is curve[-1]:
        return chosen, curve, chosen.test
    return chosen, curve, asked(*load_checkpoint(found[curve[-1].step]), material.test)


def validate(checkpoint: Path, step: int, material: Material) -> Measured:
    loaded = load_checkpoint(checkpoint)
    return Measured(step, *(asked(*loaded, rows) for rows in (material.validation, material.others_validation)))


def test(checkpoint: Path, point: Measured, material: Material) -> Measured:
    loaded = load_checkpoint(checkpoint)
    right, taught = asked(*loaded, material.test), as_taught(material.test)
    return replace(
        point,
        test=right,
        taught=right if taught == material.test else asked(*loaded, taught),
        again=asked(*loaded, [{**row, "messages": [*row["experience"], {}]} for row in material.test]),
        others=asked(*loaded, material.others_test),
    )
