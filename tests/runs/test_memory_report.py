"""The log of a real run tells where the memory goes, and the peak beside it."""

import re

from tests.launching.commands import megatron_rlhf
from tests.tiny_models import VOCABULARY

HIDDEN, LAYERS, HEADS, GROUPS, HEAD = 64, 4, 4, 2, 32
LAYER = (HEADS + 2 * GROUPS) * HEAD * HIDDEN + HIDDEN * HEADS * HEAD + 3 * 2 * HIDDEN * HIDDEN + 2 * HIDDEN + 2 * HEAD
STUDENT = 2 * VOCABULARY * HIDDEN + LAYERS * LAYER + HIDDEN
MIB = 2**20


def read_table(log: str, title: str) -> dict[str, list[str]]:
    text = log.split(title)[1].splitlines()[1:]
    rows = [re.split(r"\s{2,}", line.strip()) for line in text[1:10]]
    return {row[0]: row[1:] for row in rows}


def test_the_table_stands_in_the_log(flags, material, tmp_path):
    run = megatron_rlhf(tmp_path / "run", {**flags, "steps_per_generation": 1}, timeout=500).expect_success()
    expected = read_table(run.log, "Memory of rank 0 of 1, expected:")
    assert expected["student's weights"][0] == f"{2 * STUDENT / MIB:.2f} MiB"
    assert expected["gradients"][0] == f"{4 * STUDENT / MIB:.2f} MiB"
    assert expected["optimizer"][0] == f"{12 * STUDENT / MIB:.2f} MiB"
    tokens = flags["global_batch_size"] * flags["max_length"]
    assert f"at most: {tokens:,} tokens a cycle of" in expected["teacher's outputs"][-1]
    assert expected["rollout engine"][-1] == "none"
    after = read_table(run.log, "Memory of rank 0 of 1, after a train step:")
    assert after["total"] == expected["total"]
    assert float(after["measured peak"][0].split()[0]) > 0.1


def test_who_writes_without_vllm_is_in_the_table(flags, material, tmp_path):
    changes = {"lmbda": 1.0, "kd_student_engine": "transformers", "max_completion_length": 7, "train_iters": 1}
    run = megatron_rlhf(tmp_path / "run", {**flags, **changes, "steps_per_generation": 1}).expect_success()
    expected = read_table(run.log, "Memory of rank 0 of 1, expected:")
    assert f"at most: {flags['global_batch_size'] * 7:,} tokens a cycle of" in expected["teacher's outputs"][-1]
    assert expected["rollout engine"] == [f"{2 * STUDENT / MIB:.2f} MiB", "-", "a copy of the model in transformers"]
