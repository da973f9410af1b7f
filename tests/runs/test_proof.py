"""The proof through the real commands, for one scenario, seed and method in few steps."""

import json

from examples.proof.proof import RATES
from examples.proof.scenarios import SCENARIOS, make_material
from examples.quickstart.evaluate import read_rows
from tests.launching.commands import environment, run_tool
from tests.machine import needs_cpu_backend
from tests.paths import ROOT

pytestmark = needs_cpu_backend
PERFECT = SCENARIOS[0]


def test_one_run_from_rows_to_page_and_again(tmp_path):
    command = ["python", "-m", "examples.proof.proof", "--output_dir", str(tmp_path), "--scenario", "perfect"]
    command += ["--seed", "0", "--method", "skd", "--steps", "3"]
    code, log, _ = run_tool(command, ROOT, environment(None), timeout=400)
    assert code == 1, log[-2000:]  # three steps are too few, and it says so
    assert "proof: not met: perfect: SKD has" in log
    page = json.loads((tmp_path / "proof.json").read_text(encoding="utf-8"))
    assert [run["rate"] for run in page["tried"]] == list(RATES)
    assert page["results"][0]["curve"][-1]["step"] == 3
    assert len(read_rows(tmp_path / "rows" / "perfect-seed0-teacher.jsonl")) == len(make_material(PERFECT, 0).train)
    logs = {path: path.stat().st_mtime_ns for path in tmp_path.glob("perfect-*.log")}
    run_tool(command, ROOT, environment(None), timeout=400)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.glob("perfect-*.log")} == logs
