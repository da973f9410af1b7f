"""The page about several machines: its two shells train together, and its Slurm file gives each node its place."""

import os
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.json_lines import read_json_lines
from tests.launching.commands import environment, free_port, run_command
from tests.machine import needs_cpu_backend
from tests.paths import ROOT

PAGE = (ROOT / "docs" / "en" / "guides" / "several_machines.md").read_text(encoding="utf-8")
SHELLS = [block for block in re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL) if "NODE_RANK=" in block]
SBATCH = ROOT / "scripts" / "several_machines.sbatch"
SRUN = """#!/usr/bin/env bash
while [[ $1 == --* ]]; do shift; done
for node in 0 1; do SLURM_NODEID=$node "$@" & done
wait
"""
SCONTROL = "#!/usr/bin/env bash\nprintf 'first\\nsecond\\n'\n"


def without_variables() -> dict[str, str]:
    names = ("NNODES", "NODE_RANK", "MASTER_ADDR", "MASTER_PORT", "NPROC_PER_NODE")
    return {name: value for name, value in environment(None).items() if name not in names}


@needs_cpu_backend
def test_its_two_shells_train_together(tmp_path):
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    port = str(free_port())

    def start(block: str) -> tuple[int, str, float]:
        return run_command(["bash", "-euc", block.replace("29500", port)], tmp_path, without_variables())

    assert len(SHELLS) == 2
    assert SHELLS[0].replace("NODE_RANK=0", "NODE_RANK=1") == SHELLS[1]
    with ThreadPoolExecutor(2) as pool:
        runs = list(pool.map(start, SHELLS))
    assert [code for code, *_ in runs] == [0, 0], runs[1][1][-3000:]
    losses = [row["loss"] for row in read_json_lines(tmp_path / "output/two_nodes/logging.jsonl") if "loss" in row]
    assert losses[-1] < 0.8 * losses[0]
    first, last = (log for _, log, _ in runs)
    assert "step 1/" not in first
    assert "step 1/" in last


def test_its_slurm_file_gives_each_node_its_place(tmp_path):
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL)):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    env = without_variables() | {"SLURM_NNODES": "2", "SLURM_JOB_ID": "41234", "SLURM_JOB_NODELIST": "node[1-2]"}
    env["PATH"] = f"{tmp_path}{os.pathsep}{env['PATH']}"
    says = 'echo "$NODE_RANK of $NNODES x $NPROC_PER_NODE at $MASTER_ADDR:$MASTER_PORT, $1"'
    code, log, _ = run_command(["bash", str(SBATCH), "bash", "-c", says, "bash", "two words"], tmp_path, env)
    assert code == 0, log
    assert sorted(log.splitlines()) == [f"{node} of 2 x 8 at first:21234, two words" for node in (0, 1)]


def test_both_languages_have_its_commands():
    chinese = Path(str(ROOT / "docs" / "zh" / "guides" / "several_machines.md")).read_text(encoding="utf-8")
    assert all(block in chinese for block in SHELLS)
