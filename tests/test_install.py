"""The installer takes CPU builds only on a machine without a GPU, and says what to set where there are none."""

import os
import shutil
import subprocess
import sys

import pytest

from tests.paths import ROOT

INSTALLER = ROOT / "scripts" / "dev" / "install.sh"


@pytest.mark.skipif(shutil.which("nvidia-smi") is not None, reason="with a GPU the installer takes GPU builds")
def test_it_stops_where_there_is_no_cpu_build_of_torch(tmp_path):
    venv = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(venv)], check=True)
    # The real pip, with no index and no folder to look into.
    (venv / "bin" / "pip").write_text(f'#!/bin/sh\nexec {sys.executable} -m pip "$@"\n')
    (venv / "bin" / "pip").chmod(0o755)
    env = {name: value for name, value in os.environ.items() if not name.startswith("PIP_")}
    env |= {"PIP_NO_INDEX": "1", "PIP_CONFIG_FILE": os.devnull, "PIP_TARGET": str(tmp_path / "target")}
    run = subprocess.run(["bash", str(INSTALLER), str(venv)], capture_output=True, text=True, env=env, check=False)
    assert run.returncode == 1
    assert "no GPU found: installing CPU builds" in run.stdout
    assert "set TORCH_INDEX_URL to an index that has one" in run.stderr


def test_the_environment_of_a_machine_without_a_gpu_holds_no_cuda_build():
    import torch

    if shutil.which("nvidia-smi") is None:
        assert torch.version.cuda is None
        assert "+cpu" in torch.__version__
