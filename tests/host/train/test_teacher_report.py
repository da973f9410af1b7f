"""What is said of a teacher after the first step, and before it of one that is the student."""

from types import SimpleNamespace

import pytest
import torch
from datasets import Dataset

pytestmark = pytest.mark.usefixtures("cpu_backend")
VOCAB = 151_936


def logs(teacher: float, student: float, divergence: float = 0.5, source: str = "dataset", tokens: int = 10) -> dict:
    values = {"divergence": divergence, f"teacher_ce_{source}": teacher, f"student_ce_{source}": student}
    return {name: torch.tensor([value * tokens, tokens]) for name, value in values.items()}


@pytest.mark.parametrize(
    ("found", "labels", "said"),
    [
        (logs(0.4, 2.0), False, None),
        (logs(10.03, 11.0), False, "10.03 nats a token (perplexity 22,697.3), more than half of what guessing among"),
        (logs(3.0, 2.0), False, "is 3.00 nats a token (perplexity 20.1), and the student's 2.00 (perplexity 7.4)"),
        (logs(3.0, 2.0, source="student"), False, None),
        (logs(3.0, 2.0, source="teacher"), True, "knows no more"),
        (logs(3.0, 3.0, divergence=0.0), False, "say the same at the first step (divergence 0.0e+00)"),
        (logs(3.0, 3.0, divergence=0.0), True, None),
        (logs(9.0, 1.0, tokens=0), False, None),
        ({"divergence": torch.tensor([3.0, 6.0])}, False, None),
    ],
)
def test_a_teacher_that_knows_nothing_is_named_with_its_figures(found, labels, said):
    from swift_kd_plugin.host.train.teacher_report import why_bad

    reason = why_bad(found, VOCAB, labels)
    assert reason is None if said is None else said in reason


def test_labels_that_a_side_does_not_have_are_not_counted():
    from swift_kd_plugin.host.train.training_metrics import make_metrics

    parts = {"teacher_ce": torch.tensor([1.0, torch.inf, 3.0]), "divergence": torch.tensor([1.0, 2.0, 3.0])}
    zeros = torch.zeros(3, dtype=torch.long)
    found = make_metrics(tuple(parts), parts, torch.ones(3, dtype=torch.bool), zeros, zeros, "cpu")
    assert found["teacher_ce"].tolist() == found["teacher_ce_dataset"].tolist() == [4.0, 2.0]
    assert found["divergence"].tolist() == [6.0, 3.0]


@pytest.mark.parametrize(
    ("changes", "columns", "warned"),
    [
        ({}, {}, True),
        ({"teacher_model": None}, {}, True),
        ({"teacher_model": "./model/"}, {}, True),
        ({"teacher_model": "other"}, {}, False),
        ({}, {"teacher_messages": "x"}, False),
        ({}, {"teacher_thought": "x"}, False),
        ({"kd_ce_alpha": 0.5}, {}, False),
        ({"kd_teacher_adapters": ["a"]}, {}, False),
        ({"adapters": ["a"]}, {}, False),
    ],
)
def test_a_teacher_that_is_the_student_needs_a_view(tmp_path, monkeypatch, changes, columns, warned):
    from swift_kd_plugin.host.start import same_teacher

    (tmp_path / "model").mkdir()
    monkeypatch.chdir(tmp_path)
    said = []
    monkeypatch.setattr(same_teacher.logger, "warning", said.append)
    flags = {"model": "model", "teacher_model": "model", "sft_alpha": 0, "kd_ce_alpha": None, "kd_ce_alpha_final": None}
    rows = Dataset.from_list([{"messages": "x", **columns}])
    same_teacher.warn_of_same_teacher(SimpleNamespace(**flags | changes), rows)
    assert len(said) == warned
    same_teacher.warn_of_same_teacher(SimpleNamespace(**flags | changes), rows.to_iterable_dataset())
    assert len(said) == warned
