"""The status of runs by what lies in their folders."""

import fcntl
import json
import os
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from swift_kd_plugin.cli.main import app
from swift_kd_plugin.errors import KDError
from swift_kd_plugin.recipes.run_status import falls, read_status
from tests.json_lines import write_json_lines

COMMAND = "megatron rlhf --rlhf_type gkd --output_dir out"


def make_run(folder: Path, losses=(3.0, 2.0, 1.5, 1.0), steps: int = 40, **summary) -> Path:
    """A run that logged every tenth step; with a summary it has ended."""
    folder.mkdir(parents=True)
    rows = [
        {
            "loss": loss,
            "grad_norm": 1.0,
            "iteration": f"{10 * n}/{steps}",
            "remaining_time": "3m",
            "train_speed(s/it)": 1,
        }
        for n, loss in enumerate(losses, 1)
    ]
    write_json_lines(folder / "logging.jsonl", rows)
    (folder / "run.json").write_text(json.dumps({"command": COMMAND, "log": str(folder / "train.log")}))
    if summary:
        (folder / "summary.json").write_text(json.dumps(summary))
    return folder


def add_checkpoint(folder: Path, step: int, **args) -> Path:
    """A checkpoint that is whole."""
    checkpoint = folder / f"checkpoint-{step}"
    checkpoint.mkdir()
    (checkpoint / "args.json").write_text(json.dumps({"tuner_type": "full", **args}))
    (checkpoint / "kd_files.json").write_text(
        json.dumps({"files": {"args.json": (checkpoint / "args.json").stat().st_size}})
    )
    return checkpoint


def say(folder: Path) -> str:
    result = CliRunner().invoke(app, ["status", str(folder)])
    assert result.exit_code == 0, result.output
    return result.output


@pytest.fixture
def living(tmp_path):
    """A run whose process holds the lock of its run.json."""
    folder = make_run(tmp_path / "run")
    descriptor = os.open(folder / "run.json", os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    yield folder
    os.close(descriptor)


def test_a_run_that_lives(living):
    text = say(living)
    assert text.startswith("running: step 40 of 40, 3m left\nlast: loss 1  grad_norm 1\nthe loss falls\n")
    assert "minutes" not in text
    assert f"log: {living / 'train.log'}" in text
    hour_ago = time.time() - 3600
    for name in ("run.json", "logging.jsonl"):
        os.utime(living / name, (hour_ago, hour_ago))
    assert "nothing has been logged for 60 minutes" in say(living)


def test_a_run_that_has_finished(tmp_path):
    text = say(make_run(tmp_path / "run", state="finished", next="swift-kd eval --output x"))
    assert text.startswith("finished: step 40 of 40\n")
    assert text.endswith("next: swift-kd eval --output x\n")


def test_a_run_that_has_failed(tmp_path):
    text = say(make_run(tmp_path / "run", state="failed", error="row 3 is empty."))
    assert text.startswith("failed: row 3 is empty.\nat step 40 of 40\n")
    assert f"to go on: there is no whole checkpoint yet, so it begins anew: {COMMAND}" in text


@pytest.mark.parametrize(("tuner", "flag"), [("full", "mcore_model"), ("lora", "mcore_adapter")])
def test_a_run_that_was_stopped(tmp_path, tuner, flag):
    folder = make_run(tmp_path / "run", losses=(1.0, 2.0, 3.0, 4.0), steps=100)
    checkpoint = add_checkpoint(folder, 40, tuner_type=tuner)
    text = say(folder)
    assert text.startswith("stopped: step 40 of 100\n")
    assert "the loss does not fall" in text
    assert f"to go on: {COMMAND} --{flag} {checkpoint} --finetune false\n" in text


def test_a_checkpoint_without_an_optimizer_is_said(tmp_path):
    folder = make_run(tmp_path / "run")
    add_checkpoint(folder, 40, no_save_optim=True)
    assert "has no optimizer (--no_save_optim true)" in say(folder)


def test_a_loss_that_is_no_number_is_said(tmp_path):
    text = say(make_run(tmp_path / "run", losses=(1.0, float("nan"), float("nan"))))
    assert "the loss is no finite number in 2 logged steps, first in 20" in text


def test_a_recipe_by_its_stages(tmp_path):
    root = tmp_path / "recipe"
    record = {"keys": {}, "inputs": {}, "started": 0.0, "seconds": 65.2, "finished": True}
    best = {"folder": "checkpoint-40", "step": 40, "divergence": 0.25}
    for name, marker in {
        "generate": record | {"result": {"best": {"folder": "responses.jsonl"}}},
        "off_policy": record | {"result": {"best": best}},
        "on_policy": record | {"finished": False},
    }.items():
        folder = root / name
        folder.mkdir(parents=True) if name == "generate" else make_run(folder)
        (folder / "stage.json").write_text(json.dumps(marker))
    assert say(root).splitlines()[:3] == [
        "generate: finished in 65 s",
        "off_policy: finished in 65 s, best validation divergence 0.25 at step 40",
        "on_policy: stopped: step 40 of 40",
    ]
    assert say(root).endswith("to go on, start the same `swift-kd train` again\n")
    page = json.loads(CliRunner().invoke(app, ["status", str(root), "--json"]).output)
    assert [stage["state"] for stage in page["stages"]] == ["finished", "finished", "stopped"]


def test_a_folder_that_is_no_run(tmp_path):
    run = make_run(tmp_path / "v0-20260101")
    for folder in (tmp_path, add_checkpoint(run, 10)):
        with pytest.raises(KDError, match=f"did you mean {run}\\?$"):
            read_status(folder)
    (tmp_path / "empty").mkdir()
    with pytest.raises(KDError, match=r"it has neither run\.json nor logging\.jsonl\)\.$"):
        read_status(tmp_path / "empty")
    with pytest.raises(KDError, match="does not exist"):
        read_status(tmp_path / "nothing")


def test_json_of_a_run(tmp_path):
    folder = make_run(tmp_path / "run", state="finished")
    page = json.loads(CliRunner().invoke(app, ["status", str(folder), "--json"]).output)
    assert (page["state"], page["step"], page["steps"], page["falls"]) == ("finished", 40, 40, True)
    assert page["figures"]["loss"] == 1.0


def test_few_losses_have_no_trend():
    assert falls([2.0, 1.0]) is None
    assert falls([2.0, 1.9, 1.0, 1.1]) is True
