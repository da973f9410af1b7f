"""The benchmark of generation runs through on few prompts and writes what it measured."""

import json
import sys
from pathlib import Path

from tests.launching.commands import environment, run_command
from tests.machine import needs_cpu_backend
from tests.paths import ROOT as REPOSITORY
from tests.servers import CPU


@needs_cpu_backend
def test_both_roads_write_the_same_number_of_tokens(tmp_path: Path):
    script = REPOSITORY / "scripts" / "dev" / "bench_generate.py"
    argv = [sys.executable, str(script), "--prompts", "12", "--repeats", "1", "--tokens", "8", "--output", "out.json"]
    env = environment(None, **CPU)
    env.pop("SWIFT_KD_DEVICE", None)
    code, log, _ = run_command(argv, tmp_path, env)
    assert code == 0, log[-4000:]
    (run,) = json.loads((tmp_path / "out.json").read_text())["runs"]
    assert 12 < run["tokens"] <= 12 * 8
    assert run["same_tokens"]
    assert run["holds"] == (run["share"] >= 0.95)
    assert "vLLM tokens/s" in log
