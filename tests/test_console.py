"""A process whose output is split: all of it in the log, what a person needs on the console."""

import json
import logging
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from swift_kd_plugin.console import Console, LaunchLog, first_place, flag_of, is_short, last_lines, name_of_log
from swift_kd_plugin.data.files import is_locked

GKD = ["--rlhf_type", "gkd"]
RANK = """
import logging, os, subprocess, sys, warnings
from pathlib import Path
from swift_kd_plugin.console import CONSOLE, split_rank
from swift_kd_plugin.errors import print_error, report_and_exit

sys.excepthook = report_and_exit
split_rank(sys.argv)
CONSOLE.move(Path(sys.argv[-1]))
swift = logging.getLogger("swift")
swift.propagate = False
swift.addHandler(logging.StreamHandler())
swift.setLevel(logging.INFO)
print("printed")
os.write(1, b"in C\\r100%\\n")
subprocess.run(["echo", "by a child"])
swift.info("args: everything")
for _ in range(2):
    swift.warning("a figure is odd")
swift.warning("Loading model with trust_remote_code=True.")
logging.getLogger("transformers").warning("a library's")
logging.getLogger("vllm").error("an engine is gone")
CONSOLE.say("step 1/2  loss 中文")
print(dict(CONSOLE.warnings))
{end}
"""


def run_rank(
    folder: Path, *flags: str, end: str = "", env: dict[str, str] | None = None, output: int = subprocess.PIPE
) -> subprocess.CompletedProcess:
    """A rank that says all kinds of things, with --output_dir FOLDER and its run's folder in there."""
    (folder / "v0").mkdir(parents=True, exist_ok=True)
    words = [*GKD, *flags, "--output_dir", str(folder), str(folder / "v0")]
    command = [sys.executable, "-c", RANK.replace("{end}", end), *words]
    environment = {name: value for name, value in os.environ.items() if name != "RANK"} | (env or {})
    return subprocess.run(command, stdout=output, stderr=output, text=True, env=environment, check=False)


def test_all_is_in_the_log_and_little_on_the_console(tmp_path):
    run = run_rank(tmp_path)
    assert run.returncode == 0
    assert run.stdout == "step 1/2  loss 中文\n"
    assert run.stderr == "warning: a figure is odd\nerror: an engine is gone\n"
    log = (tmp_path / "v0" / "train.log").read_text()
    for line in ("printed", "in C\n100%", "by a child", "args: everything", "step 1/2  loss 中文"):
        assert line in log
    assert log.count("a figure is odd\n") == 2
    assert "{'a figure is odd': 2}" in log
    assert [path.name for path in tmp_path.iterdir()] == ["v0"]


def test_a_closed_console_ends_nothing(tmp_path):
    progress = """
from tqdm import tqdm
bar = tqdm(total=2, file=CONSOLE.err)
for _ in range(2):
    bar.update(1)
    bar.write("a step", file=CONSOLE.out)
    CONSOLE.out.flush()
bar.close()
print("went on")
"""
    readable, writable = os.pipe()
    os.close(readable)
    run = run_rank(tmp_path, end=progress, output=writable)
    os.close(writable)
    assert "went on\n" in (tmp_path / "v0" / "train.log").read_text()
    assert run.returncode == 0


def test_the_full_console_writes_no_log(tmp_path):
    run = run_rank(tmp_path, "--kd_console", "full")
    assert "in C\n100%" in run.stdout
    assert run.stdout.index("printed") < run.stdout.index("step 1/2  loss 中文")
    assert "args: everything" in run.stderr
    assert not list((tmp_path / "v0").iterdir())


def test_where_the_output_is_the_log_itself_it_is_not_split(tmp_path):
    log = tmp_path / "train.log"
    with log.open("ab") as file:
        words = [*GKD, "--add_version", "false", "--output_dir", str(tmp_path), str(tmp_path)]
        subprocess.run([sys.executable, "-c", RANK.replace("{end}", ""), *words], stdout=file, stderr=file, check=True)
    assert log.read_text().count("step 1/2") == 1


@pytest.mark.parametrize(
    ("end", "sentence"),
    [
        ("raise RuntimeError('中文 broke')", "stopped by RuntimeError: 中文 broke (SWIFT_KD_TRACEBACK=1 shows where)"),
        ("from swift_kd_plugin.errors import KDError\nraise KDError('row 3 is empty.')", "row 3 is empty."),
    ],
)
@pytest.mark.parametrize("asked", [False, True])
def test_what_ends_a_rank_is_on_the_console(tmp_path, end, sentence, asked):
    run = run_rank(tmp_path, end=end, env={"SWIFT_KD_TRACEBACK": "1"} if asked else {})
    assert run.returncode == 1
    *before, last = run.stderr.splitlines()
    assert last == f"swift_kd_plugin: error: {sentence}"
    assert any(line.startswith("Traceback") for line in before) is asked
    log = (tmp_path / "v0" / "train.log").read_text()
    assert "Traceback" in log
    assert f"error: {sentence}\n" in log


def test_a_launcher_shows_the_end_of_a_rank_that_said_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("SWIFT_KD_LOG", str(tmp_path / "first.log"))
    monkeypatch.setenv("SWIFT_KD_LOG_NAME", "train.log")
    launch = LaunchLog([*GKD, "--output_dir", str(tmp_path)])
    (tmp_path / "v0").mkdir()
    moved = tmp_path / "v0" / "train.log"
    os.rename(os.environ["SWIFT_KD_LOG"], moved)
    with moved.open("a") as file:
        file.write("step 1\nLoading: 0%\rLoading: 100%\nterminate called\n")
    assert launch.what_failed() == f"step 1\nLoading: 100%\nterminate called\nThe whole log: {moved}"
    with moved.open("a") as file:
        file.write("swift_kd_plugin [rank 1]: error: no room.\n")
    assert launch.what_failed() == f"The whole log: {moved}"


def test_a_launcher_holds_the_folder_that_it_knows(tmp_path, monkeypatch):
    monkeypatch.setenv("SWIFT_KD_LOG", str(tmp_path / "train.log"))
    monkeypatch.setenv("SWIFT_KD_LOG_NAME", "train.log")
    launch = LaunchLog([*GKD, "--output_dir", str(tmp_path), "--add_version", "false"])
    assert is_locked(tmp_path / ".swift-kd-launch")
    LaunchLog([])  # torchrun, which is started by it
    launch.hold.close()
    assert not is_locked(tmp_path / ".swift-kd-launch")


LAUNCHER = """
import subprocess, sys
from pathlib import Path
from swift_kd_plugin.console import open_log
from swift_kd_plugin.errors import on_failure, report_single_rank
from swift_kd_plugin.host.train.run_record import write_failure_of_launch

open_log(sys.argv)
on_failure.append(write_failure_of_launch)
report_single_rank()
Path(sys.argv[-1], "run.json").write_text("{}")
sys.exit(subprocess.run([sys.executable, "-c", "import os; os.kill(os.getpid(), 11)"]).returncode)
"""


def test_a_single_rank_that_is_killed_is_said_and_recorded(tmp_path):
    words = [*GKD, "--add_version", "false", "--output_dir", str(tmp_path)]
    outside = ("RANK", "SWIFT_KD_LOG", "SWIFT_KD_LOG_NAME")
    environment = {name: value for name, value in os.environ.items() if name not in outside}
    command = [sys.executable, "-c", LAUNCHER, *words]
    run = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    *_, place, sentence = run.stderr.splitlines()
    assert place == f"The whole log: {tmp_path / 'train.log'}"
    assert sentence == "swift_kd_plugin: error: the run was killed by signal 11 (SIGSEGV)."
    page = json.loads((tmp_path / "summary.json").read_text())
    assert (page["state"], page["error"]) == ("failed", "the run was killed by signal 11 (SIGSEGV).")
    assert not (tmp_path / ".swift-kd-launch").exists()


def test_a_folder_that_cannot_be_written_leaves_the_output_where_it_is(tmp_path):
    (tmp_path / "file").write_text("")
    console = Console()
    console.split(tmp_path / "file" / "train.log")
    assert not console.is_split


def test_flags_are_read_as_the_parser_reads_them():
    assert flag_of(["--output_dir", "a", "--output-dir=b"], "output_dir") == "b"
    assert flag_of(["--output_dir"], "output_dir") == ""
    assert flag_of(["--output_dirs", "a"], "output_dir") is None
    assert is_short(GKD)
    assert not is_short([*GKD, "--kd_console", "full"])
    assert not is_short([*GKD, "--help"])
    assert not is_short(["--rlhf_type", "dpo"])


def test_the_place_of_the_log(tmp_path, monkeypatch):
    for name in ("RANK", "NODE_RANK", "SWIFT_KD_LOG_NAME"):
        monkeypatch.delenv(name, raising=False)
    plain = ["--output_dir", str(tmp_path), "--add_version", "false"]
    assert first_place(plain) == tmp_path / "train.log"
    assert first_place(plain[:2]).parent == tmp_path
    assert name_of_log(["--nnodes=2", "--node-rank", "1"]) == "train.node1.log"
    assert name_of_log(["--nnodes=2", "--node-rank", "0"]) == "train.log"
    assert name_of_log(["--nnodes=1:2"]) == f"train.{socket.gethostname()}.log"
    monkeypatch.setenv("RANK", "3")
    assert name_of_log() == "train.rank3.log"
    monkeypatch.setenv("NODE_RANK", "1")
    assert name_of_log() == "train.node1.log"
    monkeypatch.setenv("SWIFT_KD_LOG_NAME", "train.log")
    assert first_place(plain) == tmp_path / "train.log"


def test_a_record_that_cannot_be_formatted_is_left_to_its_handlers():
    console = Console()
    console.take(logging.LogRecord("swift", logging.WARNING, "x", 1, "%d rows", ("many",), None))
    assert not console.warnings


def test_the_end_of_a_long_output():
    lines = last_lines("\n".join(f"line {n} {'x' * 500}" for n in range(1000)) + "\n\n").splitlines()
    assert (len(lines), len(lines[-1])) == (8, 164)
    assert lines[-1].startswith("line 999 ")
