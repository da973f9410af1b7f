"""A run in a fork of a warm process is the run of the literal command, and it ends as that one does."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
import yaml

from tests.launching.commands import Run, environment, flags_to_argv, free_port, megatron_rlhf
from tests.launching.left_behind import HANG, processes_in, wait_until_gone
from tests.launching.warm_client import WarmCommand, run_warm, warm_process
from tests.machine import needs_cpu_backend
from tests.paths import ROOT

pytestmark = needs_cpu_backend
LAYOUTS = {
    "one process": (1, {}),
    "TP2": (2, {"tensor_model_parallel_size": 2}),
}
FIGURES = ("loss", "divergence", "grad_norm", "learning_rate")


def weights_of(run: Run) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in run.checkpoint.glob("*.safetensors")}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_it_is_the_literal_run_bit_by_bit(layout, flags, tmp_path):
    processes, changes = LAYOUTS[layout]
    warm, literal = (
        megatron_rlhf(tmp_path / name, {**flags, **changes}, processes, literal=name == "literal").expect_success()
        for name in ("warm", "literal")
    )
    figures = [[[step[name] for name in FIGURES] for step in run.steps] for run in (warm, literal)]
    assert len(figures[0]) == flags["train_iters"]
    assert figures[0] == figures[1]
    assert weights_of(warm) == weights_of(literal) != {}


TELL = """
import os
os.write(1, f"told {os.environ['KD_TEST_WORD']} {os.getcwd()}\\n".encode())
raise SystemExit(3)
"""


def test_a_run_has_its_own_environment_folder_and_output(flags, tmp_path):
    """Two at a time. The rank that ends first may end the other one before it speaks."""
    (tmp_path / "tell.py").write_text(TELL)
    told = {**flags, "external_plugins": ["swift_kd_plugin", tmp_path / "tell.py"]}

    def start(word: str) -> Run:
        return megatron_rlhf(tmp_path / word, told, 2, {"KD_TEST_WORD": word})

    words = ("one", "two")
    with ThreadPoolExecutor() as pool:
        for word, run in zip(words, pool.map(start, words), strict=True):
            assert run.code == 1
            lines = {line for line in run.log.splitlines() if line.startswith("told")}
            assert lines == {f"told {word} {tmp_path / word}"}


GONE = "swift_kd_plugin [rank]: error: the connection to another rank is gone; that rank's own message tells why."


def test_a_mistake_is_said_as_the_literal_command_says_it(flags, tmp_path):
    """Which rank ends first, and whether the other one still speaks, is chance."""
    (tmp_path / "rows.jsonl").write_text(flags["dataset"].read_text() + '{"note": "what?"}\n')
    changes = {**flags, "dataset": tmp_path / "rows.jsonl"}  # which ranks refuse
    runs = [megatron_rlhf(tmp_path / name, changes, 2, literal=name == "literal") for name in ("warm", "literal")]
    said = [
        {re.sub(r"rank \d", "rank", line) for line in run.log.splitlines() if line.startswith("swift_kd_plugin")}
        - {GONE}
        for run in runs
    ]
    assert said[0] == said[1]
    assert len(said[0]) == 2
    assert [run.code for run in runs] == [1, 1]


def test_a_port_that_is_taken_is_named(flags, tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", port := free_port()))
        taken.listen()
        run = megatron_rlhf(tmp_path, flags, 2, {"MASTER_PORT": str(port)})
    assert run.code == 1
    assert f"port {port} cannot be used (address already in use)" in run.log


def hanging(flags, folder: Path) -> dict:
    """A plugin that starts a process of its own session in each rank and stops there."""
    (folder / "hang.py").write_text(HANG)
    return {**flags, "external_plugins": ["swift_kd_plugin", folder / "hang.py"]}


def test_a_run_that_hangs_is_ended_and_shown(flags, tmp_path):
    run = megatron_rlhf(tmp_path, hanging(flags, tmp_path), 2, timeout=15)
    assert run.code == -9
    processes = processes_in(run.log)
    assert len(processes) == 4
    wait_until_gone(processes)
    with pytest.raises(AssertionError, match=f"exit code -9:\n(.*\n)*process {processes[0]}"):
        run.expect_success()


def start_hanging(flags, folder: Path) -> tuple[WarmCommand, list[int]]:
    """A started run, its ranks and what they have started."""
    argv = ["megatron", "rlhf", *flags_to_argv({**hanging(flags, folder), "output_dir": folder / "output"})]
    log = folder / "log.txt"
    with log.open("wb") as output:
        command = WarmCommand(argv, folder, environment(2), output.fileno())
    end = time.monotonic() + 240
    while len(processes_in(log.read_text())) < 4:
        if time.monotonic() > end:
            command.close()
            raise AssertionError(log.read_text())
        time.sleep(0.1)
    return command, processes_in(log.read_text())


def test_a_dead_rank_ends_the_others(flags, tmp_path):
    command, processes = start_hanging(flags, tmp_path)
    os.kill(processes[0], signal.SIGKILL)
    assert command.wait(60) == 1
    wait_until_gone(processes)
    assert (
        "was killed by signal 9 (SIGKILL); the system does that when memory runs out"
        in (tmp_path / "log.txt").read_text()
    )


def test_a_warm_process_that_dies_fails_its_run_alone(flags, tmp_path):
    command, processes = start_hanging(flags, tmp_path)
    server = psutil.Process(processes[0]).parent().parent()
    assert "import serve" in " ".join(server.cmdline())
    server.kill()
    with pytest.raises(RuntimeError, match="the warm process died"):
        command.wait(60)
    wait_until_gone(processes)
    megatron_rlhf(tmp_path / "next", flags).expect_success()


def start_script(folder: Path, code: str) -> tuple[WarmCommand, Path]:
    """A started script, which has said that it is ready, and its log."""
    folder.mkdir()
    (folder / "deploy.py").write_text(code)
    with (folder / "log.txt").open("wb") as output:
        command = WarmCommand(["python", str(folder / "deploy.py")], folder, environment(None), output.fileno())
    end = time.monotonic() + 240
    while "ready" not in (folder / "log.txt").read_text():
        assert time.monotonic() < end, (folder / "log.txt").read_text()
        time.sleep(0.05)
    return command, folder / "log.txt"


def test_signals_in_the_same_moment_reach_one_command_alone(tmp_path):
    quiet, _ = start_script(tmp_path / "quiet", "import time\nprint('ready', flush=True)\ntime.sleep(8)\n")
    ending = "import signal, sys, time\nsignal.signal(signal.SIGTERM, lambda *_: sys.exit(3))\n"
    ended, _ = start_script(tmp_path / "ended", f"{ending}print('ready', flush=True)\ntime.sleep(3600)\n")
    ended.connection.sendall(bytes([signal.SIGTERM, signal.SIGTERM]))
    assert ended.wait(60) == 3
    assert quiet.wait(60) == 0


def test_what_an_import_may_have_read_is_refused(flags, tmp_path):
    other = {"HF_HOME": str(tmp_path)}
    said = "HF_HOME had other values when the stack was imported"
    with pytest.raises(RuntimeError, match=said):
        megatron_rlhf(tmp_path, flags, env=other)
    # The pipe is closed: this would wait for ever if the refused request's files stayed open.
    argv = [str(warm_process({}).bin / "megatron"), "rlhf", *flags_to_argv(flags)]
    done = subprocess.run(argv, env=environment(1, **other), capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert said in done.stderr


def test_a_command_without_the_plugin_is_refused(flags, tmp_path):
    run = megatron_rlhf(tmp_path, {**flags, "external_plugins": None})
    assert run.code == 1
    assert "start the command itself" in run.log


WORKER = """
import sys
from pathlib import Path
from tests.launching.test_warm_launch import start_hanging
command, processes = start_hanging(eval(sys.argv[1]), Path(sys.argv[2]))
print(processes, flush=True)
command.wait()
"""


def test_a_worker_that_is_killed_leaves_nothing_behind(flags, tmp_path):
    words = {name: str(value) for name, value in flags.items()}
    argv = [sys.executable, "-c", WORKER, repr(words), str(tmp_path)]
    with subprocess.Popen(argv, cwd=ROOT, env=environment(None), stdout=subprocess.PIPE, text=True) as worker:
        processes = eval(worker.stdout.readline())
        family = psutil.Process(worker.pid).children(recursive=True)
        assert len(family) >= 7  # root, server, launcher, two ranks and what they have started
        worker.kill()
    wait_until_gone([*processes, *(one.pid for one in family)])


def test_tools_are_warm_and_what_they_start_is(flags, tmp_path):
    """`swift-kd train` starts `megatron` beside its interpreter: the warm one, with the environment that it gives."""
    keys = {name: str(value) if isinstance(value, Path) else value for name, value in flags.items()}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump({**keys, "train_iters": 1, "output_dir": "out"}))
    code, log, _ = run_warm(["swift-kd", "train", "run.yaml"], tmp_path, environment(1))
    assert code == 0, log[-3000:]
    assert "'iteration': '1/1'" in log
    assert (warm_process({}).folder / "ranks.log").exists()


FORKS = """
import time
from tests.launching.as_new import Forking
child = Forking().Process(target=time.sleep, args=(3600,))
child.start()
print("process", child.pid, flush=True)
print("ready", flush=True)
time.sleep(3600)
"""


def test_a_root_that_is_killed_leaves_nothing_behind(tmp_path):
    _, log = start_script(tmp_path / "forks", FORKS)
    root = warm_process({}).process
    family = psutil.Process(root.pid).children(recursive=True)
    root.kill()
    root.wait()
    wait_until_gone([*processes_in(log.read_text()), *(one.pid for one in family)])
    assert warm_process(environment(None)).process.poll() is None  # a new one, with everyone's environment
