"""The benchmark of generation runs through on few prompts and writes what it measured."""

import json
import sys
from pathlib import Path

from tests.launching.commands import environment, run_command
from tests.machine import needs_cpu_backend
from tests.paths import ROOT
from tests.servers import CPU


@needs_cpu_backend
def test_both_roads_write_the_same_number_of_tokens(tmp_path: Path):
    output = tmp_path / "bench.json"
    argv = [sys.executable, "-m", "scripts.dev.bench_generate", "--prompts", "12", "--repeats", "1", "--tokens", "8"]
    env = environment(None, **CPU)
    env.pop("SWIFT_KD_DEVICE", None)
    code, log, _ = run_command([*argv, "--output", str(output)], ROOT, env)
    assert code == 0, log[-4000:]
    (run,) = json.loads(output.read_text())["runs"]
    assert 12 < run["tokens"] <= 12 * 8
    assert run["same_tokens"]
    assert run["holds"] == (run["share"] >= 0.95)
    assert "vLLM tokens/s" in log
