"""SIGKILL at random moments: a run that is started again makes the rows of one that nothing disturbed."""

import pytest

from tests.generation.generate_command import read_rows
from tests.machine import needs_cpu_backend
from tests.vllm_script import last_json_line, run_script

pytestmark = needs_cpu_backend


@pytest.mark.parametrize(("engine", "kills", "share"), [("transformers", 20, 0.25), ("vllm", 2, 0.1)])
def test_a_killed_run_makes_the_same_rows(engine, kills, share, tmp_path):
    """Most kills fall on transformers, which starts in a tenth of a second; vLLM draws by its own generators."""
    log = run_script(
        "python",
        "-m",
        "tests.generation.kill_generate",
        str(tmp_path),
        engine,
        str(kills),
        str(share),
        folder=tmp_path,
    )
    result = last_json_line(log)
    assert sum(part["kills"] for part in result["folders"]) == kills
    assert all(part["same"] for part in result["folders"])
    assert result["rows"] > 100
    # The kills fell into the work: some shards were there, and some were missing.
    assert max(result["shards_at_kills"]) > 0
    ids = [(row["id"], row["generation"]["mode"]) for row in read_rows(tmp_path / "killed0")]
    assert len(set(ids)) == len(ids)  # one row of each prompt: --select majority
