"""A command that is started literally leaves nothing behind, however it ends."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.launching.commands import environment, run_command
from tests.launching.left_behind import HANG, processes_in, wait_for_moment, wait_until_gone
from tests.paths import ROOT


@pytest.fixture
def torchrun(tmp_path) -> list[str]:
    """Two ranks that hang; each leads a session of its own."""
    (tmp_path / "hang.py").write_text(HANG)
    return [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", str(tmp_path / "hang.py")]


def test_a_run_that_hangs_is_ended_and_shown(torchrun, tmp_path):
    code, log, _ = run_command(torchrun, tmp_path, environment(None), timeout=30)
    assert code == -9
    assert len(processes_in(log)) == 4
    wait_until_gone(processes_in(log))


CALLER = """
import sys
from pathlib import Path
from tests.launching.supervisor import supervised
with open("log.txt", "wb") as log, supervised(sys.argv[1:], Path(), None, log) as process:
    process.wait()
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_caller_that_is_ended_leaves_nothing_behind(number, torchrun, tmp_path):
    argv = [sys.executable, "-c", CALLER, *torchrun]
    env = environment(None, PYTHONPATH=str(ROOT))
    with subprocess.Popen(argv, cwd=tmp_path, env=env, stderr=subprocess.DEVNULL) as caller:
        log = tmp_path / "log.txt"
        try:
            wait_for_moment(caller, lambda: log.exists() and len(processes_in(log.read_text())) == 4, log)
            caller.send_signal(number)
            caller.wait(30)
        finally:
            caller.kill()
    wait_until_gone(processes_in(log.read_text()))


@pytest.mark.parametrize(("script", "code"), [("exit 3", 3), ("kill -TERM $$", -15), ("kill -KILL $$", -9)])
def test_its_end_is_that_of_the_command(script, code, tmp_path):
    ended, log, _ = run_command(["bash", "-c", f"echo said; {script}"], tmp_path, environment(None))
    assert (ended, log) == (code, "said\n")


def test_what_a_command_leaves_behind_is_ended(tmp_path):
    leave = "import subprocess; print('process', subprocess.Popen(['sleep', '3600'], start_new_session=True).pid)"
    code, log, _ = run_command([sys.executable, "-c", leave], Path(tmp_path), environment(None))
    assert code == 0
    wait_until_gone(processes_in(log))
