"""How far a stage has come: logs that were cut, and steps that were made twice."""

import pytest

from swift_kd_plugin.host.train.training_log import best_step, cut_half_row, read_evaluations, read_log, step_of_row
from tests.recipes.stage_folders import write_log


def test_of_equals_the_later_one():
    assert best_step({2: 0.1, 4: 0.1, 6: 0.2}) == 4


def test_of_a_step_that_was_made_twice_the_later_row_counts(tmp_path):
    write_log(tmp_path, (2, 0.3), (4, 0.1), (4, 0.5), (6, 0.2))
    assert read_evaluations(tmp_path, "divergence") == {2: 0.3, 4: 0.5, 6: 0.2}


@pytest.mark.parametrize("cut", [1, 10])
def test_a_row_that_was_cut(tmp_path, cut):
    write_log(tmp_path, (2, 0.3), (4, 0.1), (6, 0.2))
    file = tmp_path / "logging.jsonl"
    file.write_text(file.read_text()[:-cut])
    rows = read_log(tmp_path)
    assert len(rows) == 4
    cut_half_row(tmp_path)
    with file.open("a") as out:
        out.write('{"loss": 2, "iteration": "6/6"}\n')
    assert [step_of_row(row) for row in read_log(tmp_path)[4:]] == [(6, 6)]
