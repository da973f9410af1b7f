"""What is refused before any rank starts."""

import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import psutil
import pytest

from swift_kd_plugin.launcher import DEFAULT_PORT, PORTS_OF_CONNECTIONS, check_launch, free_port
from tests.launching.commands import BIN, HAS_GPU, environment, run_command
from tests.launching.left_behind import processes_in, wait_until_gone

RAY = "--use_ray takes another trainer of ms-swift that the plugin does not reach"


def command(*more: str) -> list[str]:
    return ["megatron", "rlhf", "--rlhf_type", "gkd", "--external_plugins", "swift_kd_plugin", *more]


@pytest.mark.parametrize(
    "given", [["--use_ray"], ["--use_ray", "true"], ["--use-ray=True"], ["--use_ray", "--lr", "1"]]
)
def test_ray_is_refused(given, capfd):
    with pytest.raises(SystemExit):
        check_launch(command(*given), {})
    assert RAY in capfd.readouterr().err


def test_ray_in_a_config_file_is_refused(tmp_path):
    (tmp_path / "run.yaml").write_text("rlhf_type: gkd\nexternal_plugins: swift_kd_plugin\nuse_ray: true\n")
    code, log, _ = run_command([str(BIN / "megatron"), "rlhf", "run.yaml"], tmp_path, environment(None))
    assert code == 1
    assert RAY in log
    assert "Traceback" not in log


def test_ray_is_not_refused_when_it_is_off(monkeypatch):
    monkeypatch.delenv("NPROC_PER_NODE", raising=False)
    check_launch(command("--use_ray", "false"), {})
    check_launch(command(), {"use_ray": False})
    check_launch(command(), {"use_ray": "false"})


@pytest.mark.skipif(HAS_GPU, reason="a GPU has Transformer Engine")
@pytest.mark.parametrize("given", [["--help"], ["--model", "x"]])
def test_without_transformer_engine_the_way_is_said(given, tmp_path):
    env = environment(None)
    del env["SWIFT_KD_DEVICE"]
    code, log, seconds = run_command(command(*given), tmp_path, env)
    assert code == 1
    said = "swift_kd_plugin: error: there is no Transformer Engine here: on GPUs `pip install 'swift-kd-plugin[gpu]'`"
    assert log.startswith(said)
    assert len(log.splitlines()) == 1
    assert seconds < 20  # a rank would take longer to import what it needs


def test_a_port_in_use_is_named(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        code, log, _ = run_command(command("--model", "x"), tmp_path, environment(2, MASTER_PORT=str(port)))
    assert code == 1
    assert f"port {port} cannot be used (address already in use); set MASTER_PORT to a free port." in log
    assert "Traceback" not in log


@pytest.fixture
def default_port_in_use():
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind(("", DEFAULT_PORT))
        taken.listen()
        yield


def launch_with(monkeypatch, config: dict | None = None, **variables: str) -> None:
    for name in ("NPROC_PER_NODE", "MASTER_PORT", "NNODES", "NODE_RANK"):
        monkeypatch.delenv(name, raising=False)
    given = {} if config else {"NPROC_PER_NODE": "2"}
    for name, value in {**given, **variables}.items():
        monkeypatch.setenv(name, value)
    check_launch(command(), config or {})


def test_the_default_port_counts_on_several_nodes_alone(default_port_in_use, monkeypatch, capfd):
    """On one node torchrun takes a port that is free."""
    launch_with(monkeypatch)
    launch_with(monkeypatch, NNODES="1:1")
    launch_with(monkeypatch, NNODES="2", NODE_RANK="1")
    with pytest.raises(SystemExit):
        launch_with(monkeypatch, NNODES="1:2")
    assert f"port {DEFAULT_PORT} cannot be used" in capfd.readouterr().err


def test_a_port_that_a_config_file_sets_is_looked_at(default_port_in_use, monkeypatch, capfd):
    with pytest.raises(SystemExit):
        launch_with(monkeypatch, {"ENV": {"NPROC_PER_NODE": 2, "MASTER_PORT": DEFAULT_PORT}})
    assert f"port {DEFAULT_PORT} cannot be used" in capfd.readouterr().err
    launch_with(monkeypatch, {"ENV": None})


def test_a_single_process_listens_where_the_system_sends_no_connections_from(monkeypatch):
    """A port that lies among those may be taken in the seconds between its choice and its use."""
    first = int(PORTS_OF_CONNECTIONS.read_text().split()[0])
    for _ in range(50):
        assert 20_000 <= free_port() < first


def test_torchrun_starts_where_the_default_port_is_in_use(default_port_in_use, tmp_path):
    env = environment(2)
    del env["MASTER_PORT"]
    (tmp_path / "say.py").write_text(
        "import os\nos.write(1, b'rank %s\\n' % os.environb[b'RANK'])\nraise SystemExit(3)\n"
    )
    code, log, _ = run_command(
        command(str(tmp_path / "say.py"), "--train_iters", "1", "--lmbda", "0", "--model", "x"), tmp_path, env
    )
    assert code == 1
    assert "rank 0" in log or "rank 1" in log, log


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("MASTER_PORT", "http", "MASTER_PORT=http is not a number from 1 to 65535."),
        ("MASTER_PORT", "70000", "MASTER_PORT=70000 is not a number from 1 to 65535."),
        ("MASTER_PORT", "0", "MASTER_PORT=0 is not a number from 1 to 65535."),
        ("MASTER_PORT", "", "MASTER_PORT= is not a number from 1 to 65535."),
        pytest.param("MASTER_PORT", "9" * 5000, "is not a number from 1 to 65535.", id="5000 digits"),
        ("NODE_RANK", "first", "NODE_RANK=first is not a number from 0 on."),
        ("NPROC_PER_NODE", "0", "NPROC_PER_NODE=0 is not a number from 1 on."),
        ("NPROC_PER_NODE", "2x", "NPROC_PER_NODE=2x is not a number from 1 on."),
        ("NNODES", "a", "NNODES=a is neither a number of machines nor MIN:MAX."),
        ("NNODES", "2:1", "NNODES=2:1 is neither a number of machines nor MIN:MAX."),
        ("NNODES", "1:1:1", "NNODES=1:1:1 is neither a number of machines nor MIN:MAX."),
    ],
)
def test_a_variable_that_is_no_number_is_named(name, value, said, monkeypatch, capfd):
    with pytest.raises(SystemExit):
        launch_with(monkeypatch, **{name: value})
    assert said in capfd.readouterr().err


def test_what_torchrun_takes_is_not_refused(monkeypatch):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    launch_with(monkeypatch, MASTER_PORT=f" {port}")
    launch_with(monkeypatch, NPROC_PER_NODE="auto")
    launch_with(monkeypatch, NNODES="1:1", NODE_RANK="0")


def test_an_environment_that_is_a_list_is_named(monkeypatch, capfd):
    with pytest.raises(SystemExit):
        launch_with(monkeypatch, {"ENV": ["NPROC_PER_NODE=2"]})
    assert "ENV of the config file must be names with values" in capfd.readouterr().err


@pytest.mark.parametrize(("name", "kind"), [("run.yaml", "YAML"), ("run.json", "JSON")])
def test_a_broken_config_file_is_named(name, kind, tmp_path):
    (tmp_path / name).write_text("rlhf_type: [gkd\n")
    code, log, _ = run_command(["megatron", "rlhf", name], tmp_path, environment(None))
    assert code == 1
    assert f"{name} is not valid {kind}" in log
    assert "Traceback" not in log


def test_the_other_rlhf_command_is_refused(tmp_path):
    argv = ["swift", *command("--model", "x")[1:]]
    code, log, _ = run_command(argv, tmp_path, environment(None))
    assert code == 1
    assert "start with `megatron rlhf`" in log
    assert "Traceback" not in log


# A launcher, what it starts as torchrun does, and a rank in a session of its own; STUBBORN ones hear no SIGTERM.
LAUNCHER = """
import signal, subprocess, sys
from swift_kd_plugin.launcher import SIGNALS, end_ranks_with_launcher
for number in SIGNALS:  # nohup and a shell's background have some ignored, which would stay so
    signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
end_ranks_with_launcher()
subprocess.run([sys.executable, "-c", sys.argv[1]])
"""
TORCHRUN = """
import os, signal, subprocess, sys
rank = subprocess.Popen(["sleep", "3600"], start_new_session=True)
def end(number, _):
    if STUBBORN:
        return
    rank.terminate()
    sys.exit(1)
signal.signal(signal.SIGTERM, end)
os.write(1, b"process %d\\nprocess %d\\n" % (os.getpid(), rank.pid))
while rank.poll() is None:
    signal.pause()
"""


@contextmanager
def ending(process: subprocess.Popen) -> Iterator[subprocess.Popen]:
    """A process that ends with the test, however that one ends, and all that it has started."""
    try:
        yield process
    finally:
        if process.poll() is None:
            for one in psutil.Process(process.pid).children(recursive=True):
                one.kill()
            process.kill()
            process.wait()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
@pytest.mark.parametrize("stubborn", [False, True])
def test_a_signal_to_the_launcher_ends_all_that_it_started(number, stubborn, tmp_path):
    log = tmp_path / "log.txt"
    argv = [sys.executable, "-c", LAUNCHER, TORCHRUN.replace("STUBBORN", str(stubborn))]
    with log.open("wb") as output, ending(subprocess.Popen(argv, stdout=output, stderr=output)) as launcher:
        end = time.monotonic() + 60
        while len(processes_in(log.read_text())) < 2:
            assert launcher.poll() is None, log.read_text()
            assert time.monotonic() < end, log.read_text()
            time.sleep(0.05)
        launcher.send_signal(number)
        while f"{number.name}: the run is being ended; once more ends it at once" not in log.read_text():
            assert time.monotonic() < end, log.read_text()
            time.sleep(0.05)
        if stubborn:
            launcher.send_signal(number)
        assert launcher.wait(30) == 128 + number
    wait_until_gone(processes_in(log.read_text()))
    assert "Traceback" not in log.read_text()


def test_a_launcher_that_is_to_outlive_its_terminal_does(tmp_path):
    code = (
        "import signal\nfrom swift_kd_plugin.launcher import end_ranks_with_launcher\n"
        "signal.signal(signal.SIGHUP, signal.SIG_IGN)\nend_ranks_with_launcher()\n"
        "assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
