"""Commands that end, fail, are interrupted, and leave processes behind."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from swift_kd_plugin.data.files import locked
from swift_kd_plugin.errors import KDError
from swift_kd_plugin.recipes.process import run_process
from swift_kd_plugin.recipes.shell_command import Command

# A launcher like torchrun: its worker lives in a session of its own, and is ended when the launcher is told to end.
LAUNCHER = """
import signal, subprocess, sys, time
worker = subprocess.Popen([sys.executable, "-c", WORKER], start_new_session=True)
def end(*_):
    worker.terminate(); worker.wait(); sys.exit(7)
signal.signal(signal.SIGTERM, end)
open("pids", "w").write(f"{worker.pid}")
time.sleep(60)
"""
PATIENT = "import signal, time; open('worker', 'w').write(''); time.sleep(60)"
STUBBORN = (
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); open('worker', 'w').write(''); time.sleep(60)"
)
# What `run` is called from: the signals go to this process.
CALLER = """
import sys
from swift_kd_plugin.recipes.shell_command import Command
from swift_kd_plugin.recipes.process import run_process
sys.exit(run_process(Command(("python", *sys.argv[1:]))))
"""


def python(code: str) -> Command:
    return Command(("python", "-c", code), {"KD_TEST": "x y"})


def start(folder: Path, worker: str) -> tuple[subprocess.Popen, psutil.Process]:
    """A caller whose command has started a worker in another session."""
    code = f"WORKER = {worker!r}\n{LAUNCHER}"
    argv = [sys.executable, "-c", CALLER, "-c", code]
    caller = subprocess.Popen(argv, cwd=folder, stderr=subprocess.PIPE, text=True)
    end = time.monotonic() + 30
    while not ((folder / "pids").is_file() and (folder / "pids").read_text() and (folder / "worker").is_file()):
        assert caller.poll() is None
        assert time.monotonic() < end
        time.sleep(0.01)
    return caller, psutil.Process(int((folder / "pids").read_text()))


def test_output_environment_and_exit_code(tmp_path):
    log = tmp_path / "deep" / "log.txt"
    code = "import os, sys; print(os.environ['KD_TEST']); print('e', file=sys.stderr); sys.exit(3)"
    assert run_process(python(code), log) == 3
    assert sorted(log.read_text().split("\n")) == ["", "e", "x y"]
    assert run_process(python("print('again')"), log) == 0
    assert log.read_text().endswith("again\n")


def test_death_by_a_signal():
    assert run_process(python("import os; os.kill(os.getpid(), 9)")) == 137


def test_a_process_that_outlives_its_command_is_ended(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("swift_kd_plugin.recipes.process.STRAGGLER_SECONDS", 0.5)
    popen = "subprocess.Popen(['sleep', '60'], start_new_session=True)"
    left = f"import subprocess; open('pid', 'w').write(str({popen}.pid))"
    assert run_process(python(left)) == 0
    assert not psutil.pid_exists(int((tmp_path / "pid").read_text()))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_workers_of_other_sessions(tmp_path, number):
    caller, worker = start(tmp_path, PATIENT)
    caller.send_signal(number)
    _, said = caller.communicate(timeout=30)
    assert caller.returncode == 128 + number
    assert not worker.is_running()
    assert "the run is being ended" in said


def test_the_second_ctrl_c_ends_at_once(tmp_path):
    caller, worker = start(tmp_path, STUBBORN)
    caller.send_signal(signal.SIGINT)
    time.sleep(1)
    assert worker.is_running()
    caller.send_signal(signal.SIGINT)
    caller.communicate(timeout=10)
    assert caller.returncode == 130
    assert not worker.is_running()


def test_a_program_that_is_missing():
    with pytest.raises(KDError, match="the command no-such-program is not installed"):
        run_process(Command(("no-such-program",)))


def test_a_log_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(KDError, match=r"log.txt cannot be written: (Not a directory|File exists)"):
        run_process(python(""), tmp_path / "file" / "log.txt")


def test_a_lock_is_held_as_long_as_the_child_lives(tmp_path):
    with locked(tmp_path) as lock:
        child = subprocess.Popen(["sleep", "60"], pass_fds=(lock,))
        with (
            pytest.raises(KDError, match=f"is in use by a run that was started as process {os.getpid()} on"),
            locked(tmp_path),
        ):
            pass
    with pytest.raises(KDError, match="is in use"), locked(tmp_path):
        pass
    child.kill()
    child.wait()
    with locked(tmp_path):
        pass
