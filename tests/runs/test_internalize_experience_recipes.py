"""The recipes of examples/internalize_experience on a laptop, through the real command."""

from tests.docs.runnable_commands import LEARNS
from tests.examples.recipes import run_tiny, samples_in, tiny_command
from tests.machine import needs_cpu_backend

pytestmark = needs_cpu_backend
FOLDER = "internalize_experience"


def only(run) -> list[dict]:
    (steps,) = run.steps.values()
    return steps


def test_skd_learns(tmp_path, tiny_models):
    assert tiny_command(f"{FOLDER}/skd.yaml") == LEARNS.split()
    run = run_tiny(tmp_path, tiny_models, f"{FOLDER}/skd.yaml")
    assert samples_in(run.log) == (2 * 384, 384)  # three epochs
    losses = [step["loss"] for step in only(run)]
    assert len(losses) == 36
    assert losses[-1] < 0.2 * losses[0]


def test_seqkd_trains_on_what_the_teacher_writes(tmp_path, tiny_models):
    steps = only(run_tiny(tmp_path, tiny_models, f"{FOLDER}/seqkd.yaml", script="seqkd.sh"))
    assert len(steps) == 6
    assert all(step["teacher_share"] == 1 and step["loss"] == step["ce"] for step in steps)


def test_gkd_trains_on_what_the_student_writes(tmp_path, tiny_models):
    steps = only(run_tiny(tmp_path, tiny_models, f"{FOLDER}/gkd.yaml"))
    assert len(steps) == 6
    assert all(0 <= step["student_share"] <= 1 for step in steps)
    assert any(step["student_share"] > 0 for step in steps)
