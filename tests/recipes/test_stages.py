"""A stage with a stand-in for `megatron`: what it is started with, what it says, and why it failed."""

import json
from pathlib import Path

import pytest

from swift_kd_plugin.errors import KDError
from swift_kd_plugin.recipes.plan import Stage
from swift_kd_plugin.recipes.stages import StageFailed, StageRunner

TRAINS = """
mkdir -p checkpoint-4
touch checkpoint-4/model.safetensors
ln -s checkpoint-4 last-checkpoint
"""


@pytest.fixture
def megatron(tmp_path, monkeypatch, capsys):
    """Puts a shell script, run in the stage's folder, in place of the command; there is no terminal (capsys)."""

    def put(script: str) -> None:
        command = tmp_path / "megatron"
        command.write_text(f"#!/bin/sh\ncd {tmp_path}/off_policy\n{script}")
        command.chmod(0o755)

    monkeypatch.setattr("swift_kd_plugin.recipes.process.find_program", lambda name: str(tmp_path / name))
    return put


@pytest.fixture
def stage(tmp_path) -> Stage:
    return Stage("off_policy", None, tmp_path / "off_policy", {"lr": 1, "nproc_per_node": 2})


def finish(stage: Stage) -> tuple[dict, list[str]]:
    """The result of a finished stage and the lines that were said."""
    said: list[str] = []
    return StageRunner(said.append).finish(stage).result, said


def write_rows(folder: Path, steps: int) -> Path:
    """A log of so many steps, each with its number as the loss."""
    rows = [json.dumps({"loss": step, "iteration": f"{step}/{steps}"}) for step in range(1, steps + 1)]
    (folder / "rows").write_text("\n".join(rows) + "\n")
    return folder / "rows"


def test_a_stage_says_where_it_is_and_hands_over_its_last_checkpoint(stage, megatron, tmp_path):
    megatron(f"cp {write_rows(tmp_path, 4)} logging.jsonl\n{TRAINS}")
    result, said = finish(stage)
    assert "off_policy: step 4/4, loss 4" in said
    assert said[-1].startswith("off_policy: done in")
    assert result["steps"] == result["best"]["step"] == 4
    assert result["best"] == result["final"]
    assert result["best"]["folder"] == "checkpoint-4"


def test_a_long_stage_says_about_ten_lines(stage, megatron, tmp_path):
    rows = write_rows(tmp_path, 200)
    megatron(f"for n in $(seq 20); do head -n $((10 * n)) {rows} > logging.jsonl; sleep 0.1; done\n{TRAINS}")
    lines = [line for line in finish(stage)[1] if "step " in line]
    assert len(lines) <= 10
    assert lines[-1] == "off_policy: step 200/200, loss 200"


def test_the_command_gets_flags_and_environment_and_torchrun_chooses_the_port(stage, megatron, monkeypatch):
    for name in ("MASTER_PORT", "NPROC_PER_NODE"):
        monkeypatch.delenv(name, raising=False)
    megatron('echo "$@" $NPROC_PER_NODE "${MASTER_PORT:-none}"; exit 1')
    with pytest.raises(StageFailed):
        finish(stage)
    *words, processes, port = (stage.folder / "train.log").read_text().split()
    assert words[0] == "rlhf"
    assert words[words.index("--lr") + 1] == "1"
    assert words[words.index("--output_dir") + 1] == str(stage.folder)
    assert processes == "2"
    assert port == "none"


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("echo 'ValueError: x'; echo 'swift_kd_plugin [rank 1]: error: no data.'; exit 3", "exit code 3: no data"),
        ("echo 'OSError: disk full'; exit 1", "exit code 1: OSError: disk full"),
        ("exit 1", "exit code 1: it gave no reason"),
        ("exit 0", "out a whole checkpoint"),
    ],
)
def test_a_failed_stage_says_why(stage, megatron, script, message):
    megatron(script)
    with pytest.raises(KDError, match=f"off_policy.* ended with.*{message}"):
        finish(stage)
