"""What is refused before any rank starts."""

import socket

import pytest

from swift_kd_plugin.launcher import check_launch
from tests.launching.commands import BIN, environment, run_command

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


def test_a_port_in_use_is_named(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        code, log, _ = run_command(command("--model", "x"), tmp_path, environment(2, MASTER_PORT=str(port)))
    assert code == 1
    assert f"port {port} cannot be used (address already in use); set MASTER_PORT to a free port." in log
    assert "Traceback" not in log


def test_a_broken_config_file_is_named(tmp_path):
    (tmp_path / "run.yaml").write_text("rlhf_type: [gkd\n")
    code, log, _ = run_command(["megatron", "rlhf", "run.yaml"], tmp_path, environment(None))
    assert code == 1
    assert "run.yaml is not valid YAML" in log


def test_the_other_rlhf_command_is_refused(tmp_path):
    argv = ["swift", *command("--model", "x")[1:]]
    code, log, _ = run_command(argv, tmp_path, environment(None))
    assert code == 1
    assert "start with `megatron rlhf`" in log
    assert "Traceback" not in log
