"""Every command of the pages that is marked runs as it stands there, on tiny models and few processes."""

import json
import os
from pathlib import Path

import pytest

from tests.docs.pages import README
from tests.docs.runnable_commands import ON_CPU, RUNNABLE, TOGETHER, make_smaller
from tests.launching.commands import HAS_GPU, environment, free_port, run_command
from tests.launching.warm_client import warm_process
from tests.machine import needs_cpu_backend
from tests.paths import ROOT
from tests.servers import run_server, wait_for


@pytest.fixture
def folder(tmp_path) -> Path:
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    row = json.loads(README.english.code("json")[0])
    (tmp_path / "pairs.jsonl").write_text((json.dumps(row) + "\n") * 16)
    return tmp_path


def environment_of_forks() -> dict[str, str]:
    """Commands are forks of a warm process: test_literal_command.py starts some literally."""
    env = environment(2)
    if not HAS_GPU:
        env["PATH"] = f"{warm_process(env).bin}{os.pathsep}{env['PATH']}"
    return env


@pytest.mark.parametrize(
    ("page", "command"), [pytest.param(*each, id=f"{each[0]}-{' '.join(each[1].split()[:3])}") for each in RUNNABLE]
)
def test_command(page, command, folder):
    code, log, _ = run_command(make_smaller(command), folder, environment_of_forks())
    assert code == 0, log[-4000:]


@needs_cpu_backend
def test_a_teacher_server_and_its_user(folder):
    port = str(free_port())
    server, user = (command.strip().replace("8000", port) for command in TOGETHER)
    with run_server(make_smaller(server + ON_CPU), folder, literal=True):
        wait_for(f"http://127.0.0.1:{port}")
        code, log, _ = run_command(make_smaller(user), folder, environment_of_forks())
    assert code == 0, log[-4000:]
