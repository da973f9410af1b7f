"""The quickstart's driver: commands, logs, failures and refusals, with a stand-in for the megatron command."""

import json
from pathlib import Path

import pytest
import yaml

from examples.quickstart import quickstart, stages
from examples.quickstart.quickstart import (
    MANY_GPUS,
    check_learned,
    make_stage,
    many_gpu_command,
    prepare_folder,
    read_config,
)
from examples.quickstart.stages import Machine, QuickstartError, Stage, StageResult, run_stage
from examples.quickstart.summary import accuracy_table, as_json, cost_table

CPU = Machine(on_gpu=False, processes=2)


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    return Stage("off-policy", quickstart.HERE / "off_policy.yaml", tmp_path / "off_policy", ("--lr", "1"))


@pytest.fixture
def megatron(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Puts a shell script in place of `megatron`."""

    def put(script: str) -> None:
        command = tmp_path / "megatron"
        command.write_text("#!/bin/sh\n" + script)
        command.chmod(0o755)
        monkeypatch.setattr(stages, "_find_megatron", lambda: str(command))

    return put


def log_row(step: int, loss: float) -> str:
    return json.dumps({"loss": loss, "iteration": f"{step}/2", "memory(GiB)": step / 2, "train_speed(s/it)": 0.5})


def test_a_stage_reads_its_figures(stage: Stage, megatron, capsys: pytest.CaptureFixture):
    checkpoint = stage.output / "checkpoint-2"
    last = json.dumps({"last_model_checkpoint": str(checkpoint)})
    rows = "\n".join([log_row(1, 1.5), log_row(2, 0.25), last])
    megatron(
        f"mkdir -p {checkpoint}; touch {checkpoint}/model.safetensors\necho '{rows}' > {stage.output}/logging.jsonl"
    )
    result = run_stage(stage, CPU)
    assert (result.first_loss, result.last_loss, result.steps) == (1.5, 0.25, 2)
    assert (result.checkpoint, result.peak_memory_gib, result.seconds_per_step) == (checkpoint, 1.0, 0.5)
    assert "step   2/2  loss 0.2500" in capsys.readouterr().out


def test_the_command_gets_flags_environment_and_a_free_port(stage: Stage, megatron):
    megatron('echo "$@" $NPROC_PER_NODE $SWIFT_KD_DEVICE $MASTER_PORT; exit 1')
    with pytest.raises(QuickstartError):
        run_stage(stage, CPU)
    said = stage.output.with_suffix(".log").read_text().split()
    assert said[:6] == ["rlhf", str(stage.config), "--lr", "1", "--output_dir", str(stage.output)]
    assert said[6:8] == ["2", "cpu"]
    assert int(said[8]) > 1023


def test_a_gpu_run_leaves_the_device_alone():
    assert "SWIFT_KD_DEVICE" not in Machine(on_gpu=True, processes=1).environment()


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("echo 'ValueError: x'; echo 'swift_kd_plugin [rank 1]: error: no data.'; exit 3", "exit code 3: no data"),
        ("echo 'OSError: disk full'; exit 1", "exit code 1: OSError: disk full"),
        ("exit 1", "exit code 1: it gave no reason"),
        ("exit 0", "out a checkpoint"),
    ],
)
def test_a_failed_stage_says_why(stage: Stage, megatron, script: str, message: str):
    megatron(script)
    with pytest.raises(QuickstartError, match=f"the off-policy stage ended with.*{message}"):
        run_stage(stage, CPU)


def test_half_a_log_line_waits(stage: Stage):
    stage.output.mkdir()
    (stage.output / "logging.jsonl").write_text(log_row(1, 1.0) + '\n{"loss": ')
    assert len(stages.read_log(stage)) == 1


def test_another_folder_is_not_emptied(tmp_path: Path):
    (tmp_path / "thesis.txt").touch()
    with pytest.raises(QuickstartError, match="choose another --output_dir"):
        prepare_folder(tmp_path)
    assert (tmp_path / "thesis.txt").exists()


def test_an_earlier_quickstart_is_emptied(tmp_path: Path):
    prepare_folder(tmp_path / "work")
    (tmp_path / "work" / "old").touch()
    prepare_folder(tmp_path / "work")
    assert not (tmp_path / "work" / "old").exists()


def test_tensor_parallelism_fits_the_machine(tmp_path: Path):
    assert "--tensor_model_parallel_size" not in make_stage("on-policy", tmp_path, tmp_path, CPU).flags
    one_gpu = make_stage("on-policy", tmp_path, tmp_path, Machine(on_gpu=True, processes=1))
    assert one_gpu.flags[-2:] == ("--tensor_model_parallel_size", "1")


def test_the_command_for_many_gpus_divides_the_batch(tmp_path: Path):
    command = many_gpu_command(tmp_path).split()
    config = read_config(make_stage("off-policy", tmp_path, tmp_path, CPU))
    micro_batch = int(command[command.index("--micro_batch_size") + 1])
    data_parallel = MANY_GPUS // config["tensor_model_parallel_size"]
    assert command[:3] == [f"NPROC_PER_NODE={MANY_GPUS}", "megatron", "rlhf"]
    assert config["global_batch_size"] % (micro_batch * data_parallel) == 0


def test_the_second_config_starts_where_the_first_ends():
    first, second = (yaml.safe_load((quickstart.HERE / f"{name}_policy.yaml").read_text()) for name in ("off", "on"))
    assert second["model"] == f"{first['output_dir']}/checkpoint-{first['train_iters']}"
    assert first["dataset"] == second["dataset"]


def test_too_little_learned_is_an_error():
    check_learned({"say": 1.0, "sum": 0.9})
    with pytest.raises(QuickstartError, match=r"0\.89 of the held-out 'sum' questions"):
        check_learned({"say": 1.0, "sum": 0.89})


def test_summary(tmp_path: Path):
    accuracies = {"before": {"say": 0.0, "sum": 0.17}, "after": {"say": 1.0, "sum": 1.0}}
    results = {"off-policy": StageResult(tmp_path, 80, 1.5, 0.01, 0.5, 0.75, 40.0)}
    assert "before      0.00    0.17" in accuracy_table(accuracies)
    assert "2,000" in cost_table(results, tokens_per_step=1000.0)
    page = json.loads(json.dumps(as_json(results, accuracies, 1000.0, machine="m")))
    assert page["stages"]["off-policy"]["tokens_per_second"] == 2000
    assert page["stages"]["off-policy"]["checkpoint"] == str(tmp_path)
