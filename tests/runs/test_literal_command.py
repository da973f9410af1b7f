"""`megatron rlhf --rlhf_type gkd --external_plugins swift_kd_plugin`, from any folder, with flags or a YAML file."""

import json

import yaml

from tests.launching.commands import environment, megatron_rlhf, read_steps, run_command

MOST_LINES = 60  # of the console, before the first step


def test_help_shows_the_flags(tmp_path):
    argv = ["megatron", "rlhf", "--external_plugins", "swift_kd_plugin", "--help"]
    code, log, _ = run_command(argv, tmp_path, environment(None))
    assert code == 0, log[-2000:]
    assert "--kd_bad_rows" in log
    assert "--kd_grad_norm" in log
    assert "gives the norm of the single-process run" in " ".join(log.split())


def test_trains_exactly_like_stock(flags, tmp_path):
    run = megatron_rlhf(tmp_path / "ours", {**flags, "kd_divergence": "stock"}, 2).expect_success()
    stock_flags = {**flags, "external_plugins": None, "check_model": False}
    stock = megatron_rlhf(tmp_path / "stock", stock_flags, 2, literal=True).expect_success()
    assert "MegatronRLHFArguments" in run.log
    assert "kd_grad_norm" not in stock.log
    keys = ("loss", "grad_norm", "learning_rate")
    assert len(run.steps) == 2
    assert [[step[k] for k in keys] for step in run.steps] == [[step[k] for k in keys] for step in stock.steps]

    saved = json.loads((run.output / "args.json").read_text())
    assert saved["kd_bad_rows"] == "error"
    assert saved["kd_grad_norm"] == "stock"
    assert "kd_bad_rows='error'" in run.log


def test_a_yaml_file_and_one_process_without_a_launcher(flags, tmp_path):
    config = {
        key: str(value) if key in ("model", "teacher_model", "dataset") else value for key, value in flags.items()
    }
    config |= {"output_dir": str(tmp_path / "output"), "add_version": False, "kd_grad_norm": "exact"}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(config))
    code, log, _ = run_command(["megatron", "rlhf", "run.yaml"], tmp_path, environment(None))
    assert code == 0, log[-4000:]
    assert len(read_steps(tmp_path / "output" / "logging.jsonl")) == 2
    assert json.loads((tmp_path / "output" / "args.json").read_text())["kd_grad_norm"] == "exact"

    before, step, after = log.partition("step 1/2  loss ")
    assert step
    assert before.count("\n") < MOST_LINES
    assert f"All output is in {tmp_path / 'output' / 'train.log'}" in before
    assert "Memory of rank 0 of 1, expected:" in before
    assert "Loss per token: " in before
    _, title, summary = after.partition("The run has finished.\n")
    assert title
    whole = (tmp_path / "output" / "train.log").read_text()
    assert all(line in whole for line in ("args: MegatronRLHFArguments(", "'iteration': '1/2'", *summary.splitlines()))
    page = json.loads((tmp_path / "output" / "summary.json").read_text())
    assert (page["state"], page["steps"], page["checkpoint"]) == (
        "finished",
        2,
        str(tmp_path / "output" / "checkpoint-2"),
    )
    assert page["rows"] == {"seen": 8, "of": 32, "left_out": {}}
    assert page["next"] in summary
