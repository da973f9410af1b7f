"""The quickstart around its training: the command, the folder, the figures, the limits; the gate runs it whole."""

import json
from pathlib import Path

import pytest
import typer

from examples.quickstart import quickstart
from examples.quickstart.quickstart import (
    MANY_GPUS,
    Machine,
    check_learned,
    many_gpu_command,
    prepare_folder,
    train,
    training_command,
)
from examples.quickstart.summary import accuracy_table, cost_table, with_costs
from swift_kd_plugin.errors import KDError
from tests.examples.recipes import commands_of, flags_of

CPU = Machine(on_gpu=False, processes=2)
RECIPE = "quickstart/run.yaml"


def test_the_second_stage_starts_from_the_last_checkpoint_of_the_first():
    """Nothing is held out, so the last checkpoint is the best one."""
    first, second = (flags_of(list(command.argv[2:])) for command in commands_of(RECIPE, tiny=True).values())
    assert first["--model"] == ["./examples/base_model"]
    assert second["--model"] == ["best of off_policy"]
    assert first["--dataset"] == second["--dataset"]
    for name in ("--val_dataset", "--split_dataset_ratio"):
        assert name not in first | second


def test_without_a_gpu_the_recipe_is_tiny(tmp_path):
    command = training_command(CPU, tmp_path)
    assert command.argv == ("swift-kd", "train", str(quickstart.RECIPE), f"output_dir={tmp_path}", "--tiny")
    assert command.env == {"NPROC_PER_NODE": "2"}


def test_on_gpus_the_device_is_left_alone(tmp_path):
    command = training_command(Machine(on_gpu=True, processes=2), tmp_path)
    assert "--tiny" not in command.argv
    assert "SWIFT_KD_DEVICE" not in command.env
    assert all("SWIFT_KD_DEVICE" not in stage.env for stage in commands_of(RECIPE, tiny=False).values())


def test_tensor_parallelism_fits_the_machine(tmp_path):
    assert not any("tensor_model_parallel_size" in word for word in training_command(CPU, tmp_path).argv)
    one_gpu = training_command(Machine(on_gpu=True, processes=1), tmp_path)
    assert "tensor_model_parallel_size=1" in one_gpu.argv
    assert one_gpu.env == {"NPROC_PER_NODE": "1"}


def test_the_command_for_many_gpus_divides_the_batch(tmp_path):
    env, *words = many_gpu_command(tmp_path).shell().split()
    keys = dict(word.split("=") for word in words[3:])
    for stage in commands_of(RECIPE, tiny=False).values():
        flags = flags_of(list(stage.argv[2:]))
        data_parallel = MANY_GPUS // int(flags["--tensor_model_parallel_size"][0])
        assert int(flags["--global_batch_size"][0]) % (int(keys["micro_batch_size"]) * data_parallel) == 0
    assert env == f"NPROC_PER_NODE={MANY_GPUS}"
    assert Path(keys["output_dir"]) != tmp_path


def test_a_training_that_fails_ends_the_quickstart_with_its_exit_code(tmp_path, monkeypatch):
    monkeypatch.setattr(quickstart, "run_process", lambda command: 3)
    with pytest.raises(typer.Exit) as stop:
        train(CPU, tmp_path)
    assert stop.value.exit_code == 3


def test_another_folder_is_not_emptied(tmp_path):
    (tmp_path / "thesis.txt").touch()
    with pytest.raises(KDError, match="choose another --output_dir"):
        prepare_folder(tmp_path)
    assert (tmp_path / "thesis.txt").exists()


def test_an_earlier_quickstart_is_emptied(tmp_path):
    prepare_folder(tmp_path / "work")
    (tmp_path / "work" / "old").touch()
    prepare_folder(tmp_path / "work")
    assert not (tmp_path / "work" / "old").exists()


def test_too_little_learned_is_an_error():
    check_learned({"say": 1.0, "sum": 0.9})
    with pytest.raises(KDError, match=r"0\.89 of the held-out 'sum' questions"):
        check_learned({"say": 1.0, "sum": 0.89})


def test_the_last_page(tmp_path):
    rows = [(1, 1.5, 0.75), (2, 0.25, 0.5)]
    log = [
        {"loss": loss, "iteration": f"{step}/2", "memory(GiB)": memory, "train_speed(s/it)": 0.5}
        for step, loss, memory in rows
    ]
    (tmp_path / "off_policy").mkdir()
    lines = [json.dumps(row) + "\n" for row in [*log, {"last_model_checkpoint": "checkpoint-2"}]]
    (tmp_path / "off_policy" / "logging.jsonl").write_text("".join(lines))
    stage = {"stage": "off_policy", "steps": 2, "seconds": 40.0, "best": {"folder": "checkpoint-2"}}
    (found,) = with_costs({"stages": [stage]}, tmp_path, tokens_per_step=1000.0)["stages"]
    assert found == stage | {
        "first_loss": 1.5,
        "last_loss": 0.25,
        "seconds_per_step": 0.5,
        "tokens_per_second": 2000,
        "peak_memory_gib": 0.75,
    }
    assert "2,000" in cost_table([found])
    accuracies = {"before": {"say": 0.0, "sum": 0.17}, "after": {"say": 1.0, "sum": 1.0}}
    assert "before      0.00    0.17" in accuracy_table(accuracies)
