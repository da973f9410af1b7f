"""The realised mix of 2,000 samples, and a resumed run: the same draws in every layout and after every stop."""

from collections import Counter
from pathlib import Path

import pytest

from tests.binomial_interval import is_within
from tests.json_lines import read_json_lines, write_json_lines
from tests.launching.commands import Run, megatron_rlhf
from tests.machine import needs_cpu_backend
from tests.paths import BASE_MODEL

pytestmark = needs_cpu_backend

SAMPLES, STUDENT, TEACHER, THINKING = 2000, 0.4, 0.5, 0.3
CLOSED_BLOCK = "<think>\n\n</think>\n\n"


@pytest.fixture(scope="module")
def questions(tmp_path_factory) -> Path:
    """A data.yaml with 2,000 questions, each of its own; its file has the same name always, and so the same draws."""
    file = tmp_path_factory.mktemp("mix") / "questions.jsonl"
    rows = [
        {"messages": [{"role": "user", "content": f"say {number}"}, {"role": "assistant", "content": "0"}]}
        for number in range(SAMPLES)
    ]
    write_json_lines(file, rows)
    page = file.with_name("data.yaml")
    page.write_text("questions: {type: rows, source: questions.jsonl}\n")
    return page


@pytest.fixture(scope="module")
def writing(flags, questions) -> dict[str, object]:
    return {
        **flags,
        "model": BASE_MODEL,
        "teacher_model": BASE_MODEL,
        "kd_datasets": questions,
        "dataset": "questions",
        "lmbda": STUDENT,
        "seq_kd": True,
        "kd_seq_kd_prob": TEACHER,
        "kd_thinking_prob": THINKING,
        "kd_metrics": False,
        "vllm_mode": "colocate",
        "vllm_max_model_len": 128,
        "vllm_max_num_seqs": 64,
        "log_completions": True,
    }


def written(run: Run) -> list[tuple[str, str, bool, str]]:
    """Question, writer, whether in thinking mode, and response of all that models wrote, sorted."""
    rows = []
    for row in read_json_lines(run.output / "completions.jsonl"):
        question = row["prompt"].rpartition("user\n")[2].partition("<|im_end|>")[0]
        thinks = not row["prompt"].endswith(CLOSED_BLOCK)
        rows.append((question, row["written_by"], thinks, row["completion"]))
    return sorted(rows)


def test_the_mix_is_the_one_that_was_asked_for(writing, tmp_path):
    """On one data-parallel rank and on two, each row has the same writer and mode."""
    precise = {"torch_dtype": "float32", "fp16": False, "bf16": False}  # the faster one on many CPUs
    changes = {
        **precise,
        "train_iters": 10,
        "micro_batch_size": 20,
        "global_batch_size": 200,
        "max_completion_length": 2,
    }
    runs = [
        megatron_rlhf(tmp_path / str(ranks), {**writing, **changes, "no_save_optim": True}, ranks).expect_success()
        for ranks in (1, 2)
    ]
    one, two = ([row[:3] for row in written(run)] for run in runs)
    assert one == two
    assert len({row[0] for row in one}) == len(one)
    found = Counter(row[1:] for row in one)
    shares = {"student": STUDENT, "teacher": (1 - STUDENT) * TEACHER}
    for writer, share in shares.items():
        for thinks, part in ((True, THINKING), (False, 1 - THINKING)):
            assert is_within(found[writer, thinks], SAMPLES, share * part), found
    assert is_within(SAMPLES - len(one), SAMPLES, (1 - STUDENT) * (1 - TEACHER)), found


@pytest.fixture(scope="module")
def whole(writing, tmp_path_factory) -> tuple[Run, dict[str, object]]:
    """Three cycles of two steps, with sampled responses."""
    settings = {"train_iters": 6, "steps_per_generation": 2, "lr": 1e-3, "temperature": 1.0, "max_completion_length": 8}
    run = megatron_rlhf(tmp_path_factory.mktemp("whole"), {**writing, **settings, "save_steps": 1})
    return run.expect_success(), settings


def resume(whole: Run, step: int, flags: dict[str, object], folder: Path) -> Run:
    start = {"mcore_model": whole.output / f"checkpoint-{step}", "finetune": False}
    return megatron_rlhf(folder, {**flags, **start}).expect_success()


def test_a_resumed_run_draws_and_writes_the_same(writing, whole, tmp_path):
    """The draws of sampling depend on seed and step, too."""
    run, settings = whole
    resumed = resume(run, 2, {**writing, **settings}, tmp_path)
    assert resumed.losses == run.losses[2:]
    assert resumed.grad_norms == run.grad_norms[2:]
    assert set(written(resumed)) < set(written(run))
    assert len({response for *_, response in written(resumed)}) > 2


def test_a_run_resumed_within_a_cycle_writes_the_rest_anew(writing, whole, tmp_path):
    run, settings = whole
    resumed = resume(run, 3, {**writing, **settings}, tmp_path)
    assert "the responses of its last 1 steps are written anew" in resumed.log
    assert len(resumed.losses) == 3
    assert {row[:3] for row in written(resumed)} < {row[:3] for row in written(run)}
