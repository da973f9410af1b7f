"""What a stage has written: logs that were cut, checkpoints that were not finished, and the best of them."""

import shutil
from pathlib import Path

import pytest

from swift_kd_plugin.errors import KDError
from swift_kd_plugin.recipes.progress import (
    best_step,
    cut_half_row,
    keep_best,
    last_whole_checkpoint,
    read_divergences,
    read_result,
    read_rows,
    step_of,
)
from tests.json_lines import write_json_lines


def checkpoint(folder: Path, step: int, suffix: str = "") -> None:
    made = folder / f"checkpoint-{step}{suffix}"
    made.mkdir()
    (made / "model.safetensors").write_text(f"{step}{suffix}")


def point_to(folder: Path, step: int) -> None:
    (folder / "last-checkpoint").unlink(missing_ok=True)
    (folder / "last-checkpoint").symlink_to(f"checkpoint-{step}")


def log(folder: Path, *divergences: tuple[int, float]) -> None:
    rows = [{"iteration": f"{step}/6", "eval_divergence": value} for step, value in divergences]
    write_json_lines(folder / "logging.jsonl", [{"loss": 1, "iteration": "1/6"}, *rows, {"best_metric": 1}])


@pytest.fixture
def stage(tmp_path) -> Path:
    for step in (2, 4, 6):
        checkpoint(tmp_path, step)
    point_to(tmp_path, 6)
    log(tmp_path, (2, 0.3), (4, 0.1), (6, 0.2))
    return tmp_path


def test_best_and_final(stage):
    best, final = read_result(stage, "divergence", merged=False)
    assert (best.step, best.divergence, best.folder) == (4, 0.1, stage / "checkpoint-4")
    assert (final.step, final.divergence, final.folder) == (6, 0.2, stage / "checkpoint-6")


def test_of_equals_the_later_one():
    assert best_step({2: 0.1, 4: 0.1, 6: 0.2}) == 4


def test_of_a_step_that_was_made_twice_the_later_row_counts(stage):
    log(stage, (2, 0.3), (4, 0.1), (4, 0.5), (6, 0.2))
    assert read_divergences(stage, "divergence") == {2: 0.3, 4: 0.5, 6: 0.2}


def test_without_an_evaluation_the_final_one_is_the_best(stage):
    log(stage)
    best, final = read_result(stage, "divergence", merged=False)
    assert best == final
    assert (best.step, best.divergence) == (6, None)


def test_half_written_checkpoints_are_removed(stage):
    point_to(stage, 4)
    checkpoint(stage, 6, "-merged")
    assert last_whole_checkpoint(stage) == stage / "checkpoint-4"
    assert sorted(path.name for path in stage.glob("checkpoint-*")) == ["checkpoint-2", "checkpoint-4"]


def test_none_is_whole_before_the_first_is(tmp_path):
    checkpoint(tmp_path, 2)
    assert last_whole_checkpoint(tmp_path) is None


def test_the_best_one_outlives_its_removal(stage):
    checkpoint(stage, 4, "-merged")
    keep_best(stage, "divergence")
    for name in ("checkpoint-4", "checkpoint-4-merged"):
        shutil.rmtree(stage / name)
    assert read_result(stage, "divergence", merged=False)[0].folder == stage / "kept" / "checkpoint-4"
    assert (stage / "kept" / "checkpoint-4-merged" / "model.safetensors").read_text() == "4-merged"


def test_what_was_evaluated_after_the_last_whole_checkpoint_is_not_kept(stage):
    point_to(stage, 2)
    keep_best(stage, "divergence")
    assert [path.name for path in (stage / "kept").iterdir()] == ["checkpoint-2"]


@pytest.mark.parametrize("cut", [1, 10])
def test_a_row_that_was_cut(stage, cut):
    file = stage / "logging.jsonl"
    file.write_text(file.read_text()[:-cut])
    rows = read_rows(stage)
    assert len(rows) == 4
    cut_half_row(stage)
    with file.open("a") as out:
        out.write('{"loss": 2, "iteration": "6/6"}\n')
    assert [step_of(row) for row in read_rows(stage)[4:]] == [(6, 6)]


def test_a_checkpoint_without_a_model(stage):
    with pytest.raises(
        KDError, match="checkpoint-4-merged with a model in safetensors is missing; leave save_safetens"
    ):
        read_result(stage, "divergence", merged=True)
    (stage / "last-checkpoint").unlink()
    with pytest.raises(KDError, match="ended without a whole checkpoint"):
        read_result(stage, "divergence", merged=False)
