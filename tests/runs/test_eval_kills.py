"""SIGKILL at random moments: a run that is started again writes the files of one that nothing disturbed."""

from tests.machine import needs_cpu_backend
from tests.vllm_script import last_json_line, run_script

pytestmark = needs_cpu_backend


def test_a_killed_run_writes_the_same_files(tmp_path):
    log = run_script("python", "-m", "tests.evaluation.kill_eval", str(tmp_path), "6", folder=tmp_path)
    result = last_json_line(log)
    assert result["same"]
    # The kills fell into the work: something was there, and something was missing.
    assert 0 < result["stored"][0] < 12
    assert result["stored"] == sorted(result["stored"])
