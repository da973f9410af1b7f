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


def hold(file: Path) -> int:
    """A descriptor that keeps a file locked."""
    descriptor = os.open(file, os.O_RDWR | os.O_CREAT)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    return descriptor


def test_a_new_run_in_an_old_folder_is_starting(tmp_path):
    folder = make_run(tmp_path / "run", state="finished", next="swift-kd eval")
    os.utime(folder / "run.json", (0, 0))
    descriptor = hold(folder / ".swift-kd-launch")
    (folder / "train.log").write_text("")
    assert say(folder) == f"starting: no step has been logged\nlog: {folder / 'train.log'}\n"
    os.close(descriptor)
    assert say(folder).startswith("finished: step 40 of 40\n")


def test_figures_are_of_the_run_itself(living):
    rows = (living / "logging.jsonl").read_text()
    page = {"command": COMMAND, "log_bytes": len(rows)}
    (living / "run.json").write_text(json.dumps(page))
    assert say(living) == "running: no step has been logged\n"
    (living / "logging.jsonl").write_text(rows + '{"loss": 0.5, "iteration": "50/90"}\n')
    assert say(living) == "running: step 50 of 90\nlast: loss 0.5\n"


def test_commands_can_be_typed_where_status_is_asked(tmp_path, monkeypatch):
    home = tmp_path / "my work"
    folder = make_run(home / "out")
    page = {"command": COMMAND, "folder": str(home), "output_dir": str(folder)}
    (folder / "run.json").write_text(json.dumps(page))
    checkpoint = add_checkpoint(folder, 40)
    assert f"to go on: cd '{home}' && {COMMAND} --mcore_model '{checkpoint}' --finetune false\n" in say(folder)
    monkeypatch.chdir(home)
    assert f"to go on: {COMMAND} --mcore_model '{checkpoint}' --finetune false\n" in say(Path("out"))


def test_a_folder_that_was_copied_names_its_own_files(tmp_path):
    old, new = tmp_path / "old", make_run(tmp_path / "new", state="finished")
    (new / "train.log").write_text("")
    page = {"command": "A='b c' megatron rlhf --output_dir old", "folder": str(tmp_path), "output_dir": str(old)}
    (new / "run.json").write_text(json.dumps(page | {"log": str(old / "train.log")}))
    page = {"state": "finished", "next": f"swift-kd eval --model student={old}/checkpoint-4 --dataset {old}er"}
    (new / "summary.json").write_text(json.dumps(page))
    text = say(new)
    assert f"log: {new / 'train.log'}\n" in text
    assert f"next: cd {tmp_path} && swift-kd eval --model student={new}/checkpoint-4 --dataset {old}er\n" in text
    (new / "summary.json").unlink()
    assert f"cd {tmp_path} && A='b c' megatron rlhf --output_dir {new}\n" in say(new)


def test_several_machines_are_said(tmp_path):
    folder = make_run(tmp_path / "run")
    (folder / "run.json").write_text(json.dumps({"command": COMMAND, "machines": 2}))
    assert "to go on, on each machine with its own NODE_RANK: there is no" in say(folder)


def test_a_folder_with_nothing_but_a_log_names_it(tmp_path):
    (tmp_path / "train.log").write_text("Segmentation fault")
    assert f"log: {tmp_path / 'train.log'}\n" in say(tmp_path)


@pytest.mark.parametrize(
    "row",
    [
        {"loss": None, "iteration": "5/9"},
        {"loss": "x", "iteration": "5/9"},
        {"loss": 1.0, "iteration": "x"},
        {"loss": 1.0, "iteration": 5},
        {"eval_loss": [], "iteration": "5/9"},
        {"loss": 1.0, "iteration": "5/9", "grad_norm": "x", "remaining_time": 3, "train_speed(s/it)": "x"},
        {"eval_loss": 1.0, "eval_ce": "x", "iteration": None},
    ],
)
def test_damaged_rows_are_passed_over(living, row):
    with (living / "logging.jsonl").open("a") as file:
        file.write(json.dumps(row) + "\n")
    assert say(living).startswith("running: step ")
    (living / "logging.jsonl").write_text(json.dumps(row) + "\n")
    assert say(living).startswith("running: ")


def test_damaged_pages_are_passed_over(tmp_path):
    folder = make_run(tmp_path / "run", state="failed")
    assert say(folder).startswith("failed: no reason is written in its summary.json; see the log.\n")
    for value in (None, 3, [], {}):
        names = ("command", "folder", "output_dir", "machines", "log", "log_bytes", "state", "error")
        for name in ("run.json", "summary.json"):
            (folder / name).write_text(json.dumps(dict.fromkeys(names, value)))
        assert say(folder)
    for stage in ({"result": None}, {"result": {"best": {"divergence": 0.1}}}, {"seconds": "x"}, {"result": []}):
        (folder / "stage.json").write_text(json.dumps(stage | {"finished": True}))
        assert say(tmp_path).startswith("run: finished in 0 s")


def test_json_has_no_infinity(tmp_path):
    def refuse(name: str):
        raise AssertionError(name)

    folder = make_run(tmp_path / "run", losses=(1.0, float("inf"), float("nan")), state="finished")
    page = json.loads(CliRunner().invoke(app, ["status", str(folder), "--json"]).output, parse_constant=refuse)
    assert (page["figures"]["loss"], page["not_finite"]) == (None, [20, 30])


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
    assert read_status(tmp_path) == read_status(run)
    run = make_run(tmp_path / "v1-20260102")
    os.utime(run, (4e9, 4e9))
    for folder in (tmp_path, add_checkpoint(run, 10)):
        with pytest.raises(KDError, match=f"did you mean {run}\\?$"):
            read_status(folder)
    (tmp_path / "empty").mkdir()
    with pytest.raises(KDError, match=r"it has neither run\.json nor logging\.jsonl nor train\.log\)\.$"):
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
