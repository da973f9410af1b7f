"""What a run keeps of how it was started."""

import sys

import pytest

from swift_kd_plugin.host.train.run_record import own_command

RANK = {"TORCHELASTIC_RUN_ID": "none", "LOCAL_WORLD_SIZE": "8", "GROUP_WORLD_SIZE": "1", "GROUP_RANK": "0"}
ADDRESS = {"MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "29501"}


@pytest.fixture
def command_in(monkeypatch):
    """The command of a rank with these variables."""

    def make(**variables: str) -> str:
        for name in ("SWIFT_KD_DEVICE", "CUDA_VISIBLE_DEVICES", "USE_HF", "NPROC_PER_NODE", "NNODES", "NODE_RANK"):
            monkeypatch.delenv(name, raising=False)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(sys, "argv", ["rlhf.py", "--lr", "1"])
        monkeypatch.setattr(sys, "orig_argv", ["python", "rlhf.py", "--lr", "1"])
        return own_command()

    return make


def test_of_one_machine(command_in):
    command = command_in(**RANK, **ADDRESS, CUDA_VISIBLE_DEVICES="0,1")
    assert command == "CUDA_VISIBLE_DEVICES=0,1 NPROC_PER_NODE=8 megatron rlhf --lr 1"


def test_of_several_machines(command_in):
    where = "NPROC_PER_NODE=8 NNODES=2 NODE_RANK=0 MASTER_ADDR=10.0.0.1 MASTER_PORT=29501"
    several = RANK | ADDRESS | {"GROUP_WORLD_SIZE": "2"}
    assert command_in(**several) == f"{where} megatron rlhf --lr 1"
    assert command_in(**several, NNODES="2", NODE_RANK="0", NPROC_PER_NODE="8") == f"{where} megatron rlhf --lr 1"
