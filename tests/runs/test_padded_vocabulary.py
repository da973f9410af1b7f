"""A vocabulary that tensor parallelism does not divide is padded with rows of zeros, which nothing may count.

All real logits of these models are far below 0, so that a padded row that took part would have nearly all probability.
"""

from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from tests.json_lines import read_json_lines
from tests.launching.commands import Run, megatron_rlhf
from tests.recorders.recorded_runs import train_and_record_losses
from tests.tiny_models import make_dense

STUDENT, TEACHER = 543, 541  # TP 2 and 4 make 544 of the one, and 542 and 544 of the other
METRICS = (
    *("loss", "ce", "divergence", "forward_kl", "reverse_kl", "teacher_entropy", "student_entropy", "grad_norm"),
    *("top1_agreement", "topk_overlap", "removed_student_mass"),
)


def sink(folder: Path) -> Path:
    """Gives hidden states one large number, and all real logits a large part of it, negative."""
    weights = load_file(folder / "model.safetensors")
    weights["model.embed_tokens.weight"][:, 0] = 50
    weights["model.norm.weight"][0] = 1
    weights["lm_head.weight"][:, 0] = -2
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.fixture(scope="module")
def padded(flags, tmp_path_factory) -> dict[str, object]:
    folder = tmp_path_factory.mktemp("padded")
    student = sink(make_dense(folder / "student", hidden=64, seed=0, vocab_size=STUDENT))
    teacher = sink(make_dense(folder / "teacher", hidden=128, seed=1, vocab_size=TEACHER))
    return {**flags, "model": student, "teacher_model": teacher, "train_iters": 1}


def train(folder: Path, flags: dict, size: int, **changes) -> Run:
    return megatron_rlhf(folder, {**flags, **changes, "tensor_model_parallel_size": size}, size).expect_success()


def figures(run: Run) -> dict[str, float]:
    """Of the step and of the evaluation behind it."""
    rows = read_json_lines(run.output / "logging.jsonl")
    found = {name: row[name] for row in rows for name in METRICS if name in row}
    return found | {f"eval_{name}": row[f"eval_{name}"] for row in rows for name in METRICS if f"eval_{name}" in row}


def test_loss_metrics_and_evaluation(padded, tmp_path):
    changes = {"kd_ce_alpha": 0.5, "kd_grad_norm": "exact", "kd_allow_removed_mass": True}
    changes |= {"eval_steps": 1, "split_dataset_ratio": 0.25}
    truth, *others = (figures(train(tmp_path / str(size), padded, size, **changes)) for size in (1, 2, 4))
    assert {"eval_loss", "eval_divergence", "eval_ce"} <= truth.keys()
    others.append(figures(train(tmp_path / "held", padded, 2, **changes, kd_fused_loss=False)))
    for other in others:
        assert other == pytest.approx(truth, rel=0.02, abs=0.02)


def test_a_student_that_is_its_own_teacher(padded, tmp_path):
    changes = {"teacher_model": padded["model"], "tuner_type": "lora", "kd_ce_alpha": 0.5, "kd_topk": 8}
    one, two = (figures(train(tmp_path / str(size), padded, size, **changes)) for size in (1, 2))
    del one["grad_norm"], two["grad_norm"]
    assert two == pytest.approx(one, rel=0.02, abs=0.02)


def test_written_responses(padded, tmp_path):
    """Student and teacher write; a padded row's id would be 541 or more."""
    changes = {"kd_student_engine": "megatron", "kd_teacher_engine": "megatron", "seq_kd": True, "lmbda": 0.5}
    changes |= {"max_completion_length": 16, "temperature": 1.0, "kd_allow_removed_mass": True, "train_iters": 2}
    _, ranks = train_and_record_losses(tmp_path / "run", padded, 2, **changes, tensor_model_parallel_size=2)
    labels = [record["labels"][record["labels"] >= 0] for record in ranks[0]]
    assert sum(map(len, labels)) > 16
    assert max(int(ids.max()) for ids in labels) < TEACHER


def test_ms_swifts_own_loss_is_said_to_count_them(padded, tmp_path):
    changes = {"kd_divergence": "stock", "teacher_model": padded["model"], "lr": 0}
    assert "rows of zeros" in train(tmp_path / "2", padded, 2, **changes).log
    assert "rows of zeros" not in train(tmp_path / "1", padded, 1, **changes).log
