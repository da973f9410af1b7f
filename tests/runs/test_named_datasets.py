"""Datasets of a data.yaml through the real command."""

import json

import pytest

from tests.json_lines import write_json_lines
from tests.launching.commands import megatron_rlhf
from tests.paths import BASE_MODEL, DATA

BATCH = {"train_iters": 2, "micro_batch_size": 2, "global_batch_size": 8}


@pytest.fixture(scope="module")
def example_flags(flags):
    """The quickstart's model on the example's datasets."""
    return {**flags, "model": BASE_MODEL, "teacher_model": BASE_MODEL, "kd_datasets": DATA / "data.yaml", **BATCH}


def run(flags, folder, processes=1, **changes):
    return megatron_rlhf(folder, {**flags, **changes}, processes=processes)


@pytest.fixture(scope="module")
def alone(example_flags, tmp_path_factory):
    return run(example_flags, tmp_path_factory.mktemp("alone"), dataset="pairs").expect_success()


@pytest.mark.parametrize("layout", ["context_parallel_size", "tensor_model_parallel_size"])
def test_pairs_from_two_files_have_equal_losses_in_every_layout(example_flags, alone, tmp_path, layout):
    spread = run(example_flags, tmp_path, processes=2, dataset="pairs", **{layout: 2}).expect_success()
    assert len(alone.losses) == 2
    assert spread.losses == pytest.approx(alone.losses, rel=5e-3)


def test_the_report_lies_beside_the_checkpoints(alone):
    page = json.loads((alone.output / "kd_data_report.json").read_text())
    assert page["pairs"]["facts"]["pairs"] == {"joined": 384, "rows": 384}
    assert page["pairs"]["read"] == {"exp.jsonl": 384, "noexp.jsonl": 384}


def test_what_swift_kd_pair_writes_is_the_same_dataset(example_flags, alone, tmp_path):
    from typer.testing import CliRunner

    from swift_kd_plugin.cli.main import app

    file = tmp_path / "pairs.jsonl"
    arguments = ["--exp", str(DATA / "exp.jsonl"), "--noexp", str(DATA / "noexp.jsonl"), "-o", str(file)]
    assert CliRunner().invoke(app, ["pair", *arguments]).exit_code == 0
    written = run(example_flags, tmp_path / "run", dataset=file, kd_datasets=None).expect_success()
    assert written.losses == alone.losses


def test_a_stream_and_a_mix_of_modes_train(example_flags, tmp_path):
    changes = {"dataset": ["modes", "silent"], "val_dataset": "pairs_val#16", "eval_iters": 1, "eval_steps": 2}
    mixed = run(example_flags, tmp_path / "mixed", **changes, enable_thinking=None).expect_success()
    assert {"divergence_thinking", "divergence_non_thinking"} <= set().union(*mixed.steps)
    streamed = run(example_flags, tmp_path / "stream", dataset="pairs", streaming=True).expect_success()
    assert len(streamed.losses) == 2


def test_a_bad_row_ends_the_run_in_one_sentence(example_flags, tmp_path):
    good = {"query": "say BE", "response": "23"}
    rows = [good] * 15 + [{**good, "response": None, "messages": "?"}]
    write_json_lines(tmp_path / "rows.jsonl", rows)
    (tmp_path / "data.yaml").write_text("rows: {type: rows, source: rows.jsonl}")
    changes = {"kd_datasets": tmp_path / "data.yaml", "dataset": "rows"}
    ended = run(example_flags, tmp_path / "ended", processes=2, **changes)
    assert ended.code == 1
    assert "rows.jsonl, line 16 cannot be used: " in ended.log
    assert "Traceback" not in ended.log
    kept = run(example_flags, tmp_path / "kept", **changes, kd_bad_rows="drop").expect_success()
    page = json.loads((kept.output / "kd_data_report.json").read_text())
    assert [entry["rows"] for entry in page["rows"]["left_out"].values()] == [{"rows.jsonl": "16"}]


def test_a_mistake_in_the_yaml_ends_the_run_before_anything_is_loaded(example_flags, tmp_path):
    (tmp_path / "data.yaml").write_text("rows: {type: row, source: rows.jsonl}")
    ended = run(example_flags, tmp_path / "ended", kd_datasets=tmp_path / "data.yaml", dataset="rows")
    assert ended.code == 1
    assert "type is 'row' (did you mean 'rows'?)" in ended.log
    assert "Traceback" not in ended.log
