"""Who writes the responses: the student, the teacher or the dataset, by the real command with real engines."""

import re
import shutil
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from tests.json_lines import read_json_lines
from tests.launching.commands import Run, megatron_rlhf
from tests.machine import needs_cpu_backend
from tests.paths import BASE_MODEL, DATA
from tests.servers import kill_server, swift_deploy, vllm_server, wait_for
from tests.tiny_models import make_adapter, make_dense

pytestmark = needs_cpu_backend

BATCH, STEPS = 8, 3
WITHOUT_VLLM = {"use_vllm": False, "vllm_mode": None}


@pytest.fixture(scope="module")
def mixed(flags, blurred) -> dict[str, object]:
    """Pairs whose teacher, the base model, sees the book; greedy, so that it writes the right answers.

    The student could not, whatever it sees. In float32: in bfloat16 engines and layouts round at other places, and a
    choice between two tokens that are nearly as likely falls otherwise.
    """
    return {
        **flags,
        "model": blurred,
        "teacher_model": BASE_MODEL,
        "kd_datasets": DATA / "data.yaml",
        "dataset": "pairs",
        "global_batch_size": BATCH,
        "train_iters": STEPS,
        "lmbda": 0.5,
        "seq_kd": True,
        "kd_seq_kd_prob": 0.5,
        "temperature": 0.0,
        "kd_temperature": 1.0,
        "torch_dtype": "float32",
        "fp16": False,
        "bf16": False,
        "vllm_mode": "colocate",
        "vllm_max_model_len": 128,
        "max_completion_length": 16,
        "log_completions": True,
        "no_save_optim": True,
    }


@pytest.fixture(scope="module")
def truth() -> dict[str, str]:
    """The answer of every question."""
    rows = read_json_lines(DATA / "exp.jsonl")
    return {row["messages"][-2]["content"]: row["messages"][-1]["content"] for row in rows}


def written(run: Run) -> list[tuple[str, str, str]]:
    """Question, writer and response of all that models wrote, sorted."""
    rows = read_json_lines(run.output / "completions.jsonl")
    return sorted((question_of(row["prompt"]), row["written_by"], row["completion"]) for row in rows)


def question_of(prompt: str) -> str:
    return prompt.rpartition("<|im_start|>user\n")[2].partition("<|im_end|>")[0]


def writers(run: Run) -> list[tuple[str, str]]:
    return [row[:2] for row in written(run)]


def expect_the_same(run: Run, other: Run) -> None:
    """The same responses by the same writers, and the same losses."""
    assert written(run) == written(other)
    assert run.losses == pytest.approx(other.losses, rel=1e-4)


def check(run: Run, truth: dict[str, str]) -> Run:
    """The teacher has read the book, the log says who wrote, and the run ends in silence."""
    run.expect_success()
    rows = written(run)
    assert {writer for _, writer, _ in rows} == {"student", "teacher"}
    assert [row for row in rows if row[1] == "teacher" and row[2] != truth[row[0]]] == []
    assert {row for row in rows if row[1] == "student" and row[2] != truth[row[0]]}
    for writer in ("student", "teacher"):
        share = sum(step[f"{writer}_share"] for step in run.steps) / STEPS
        assert share == pytest.approx(sum(row[1] == writer for row in rows) / (BATCH * STEPS))
    assert sum(step["dataset_share"] for step in run.steps) > 0
    for noise in ("Invalid process group", "Traceback", "Exception ignored", "core dumped"):
        assert noise not in run.log
    return run


@pytest.fixture(scope="module")
def single(mixed, truth, tmp_path_factory) -> Run:
    return check(megatron_rlhf(tmp_path_factory.mktemp("rollout") / "one", mixed), truth)


LAYOUTS = {
    "TP2": {"tensor_model_parallel_size": 2},
    "PP2": {"pipeline_model_parallel_size": 2},
    "CP2, all offloaded": {
        "context_parallel_size": 2,
        "offload_teacher_model": True,
        "offload_model": True,
        "offload_optimizer": True,
    },
    "DP2": {"torch_dtype": "bfloat16", "bf16": True},
}
MEGATRON = {**WITHOUT_VLLM, "kd_student_engine": "megatron", "kd_teacher_engine": "megatron"}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_layout_changes_nothing(layout, mixed, truth, single, tmp_path):
    """DP2 has another order of the rows."""
    run = check(megatron_rlhf(tmp_path, {**mixed, **LAYOUTS[layout]}, processes=2), truth)
    if layout != "DP2":
        expect_the_same(run, single)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_megatron_model_writes_in_place(layout, mixed, truth, single, tmp_path):
    changes = {**MEGATRON, **LAYOUTS[layout], "offload_teacher_model": layout == "TP2"}
    run = check(megatron_rlhf(tmp_path, {**mixed, **changes}, processes=2), truth)
    if layout != "DP2":
        expect_the_same(run, single)


def test_transformers_writes_where_there_is_no_vllm(mixed, truth, single, tmp_path):
    """The teacher's engine is chosen by itself."""
    run = check(megatron_rlhf(tmp_path, {**mixed, **WITHOUT_VLLM, "kd_student_engine": "transformers"}), truth)
    assert "What the teacher writes comes from CopyWriter" in run.log
    expect_the_same(run, single)


def test_lora_whose_teacher_is_its_base(mixed, truth, single, tmp_path):
    changes = {"model": BASE_MODEL, "tuner_type": "lora", "target_modules": "all-linear", "lr": 1e-3}
    run = check(megatron_rlhf(tmp_path, {**mixed, **changes}), truth)
    assert writers(run) == writers(single)


def test_merged_adapters_write(mixed, tmp_path):
    """A teacher of a base model and an adapter writes what the merged model writes."""
    adapter = make_adapter(tmp_path / "adapter", BASE_MODEL)
    merged = tmp_path / "merged"
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(BASE_MODEL, dtype=torch.bfloat16), adapter)
    shutil.copytree(BASE_MODEL, merged)
    model.merge_and_unload().save_pretrained(merged)
    only = {**mixed, "lmbda": 0, "kd_seq_kd_prob": 1, "train_iters": 2, "vllm_mode": None}
    by_adapter = megatron_rlhf(tmp_path / "a", {**only, "kd_teacher_adapters": adapter}).expect_success()
    by_model = megatron_rlhf(tmp_path / "b", {**only, "teacher_model": merged}).expect_success()
    by_base = megatron_rlhf(tmp_path / "c", only).expect_success()
    assert agreement(by_adapter, by_model) > 0.9  # one rounds once more
    assert agreement(by_adapter, by_base) < 0.5


def agreement(run: Run, other: Run) -> float:
    """Share of the questions that both answered alike."""
    pairs = zip(written(run), written(other), strict=True)
    same = [mine == theirs for mine, theirs in pairs]
    return sum(same) / len(same)


def test_a_student_that_is_its_own_teacher_writes_in_both_views(mixed, truth, tmp_path):
    """One engine for both, with the student's weights as they are."""
    changes = {"model": BASE_MODEL, "teacher_model": None, "teacher_model_type": None, "lr": 1e-5}
    run = check(megatron_rlhf(tmp_path, {**mixed, **changes}), truth)
    assert run.log.count("writes comes from StudentVllm") == 2


@pytest.mark.parametrize("kind", [swift_deploy, vllm_server])
def test_a_server_writes_and_scores(kind, mixed, truth, tmp_path):
    changes = {"teacher_model": None, "teacher_model_type": None, "kd_topk": 20}
    precise = {"dtype": "float32"} if kind is vllm_server else {}
    with kind(BASE_MODEL, tmp_path / "server", max_logprobs=20, **precise) as url:
        wait_for(url)
        run = megatron_rlhf(tmp_path / "run", {**mixed, **changes, "teacher_model_server": url})
    check(run, truth)


@pytest.mark.parametrize("engine", ["vllm", "transformers", "megatron"])
def test_a_prompt_that_fills_the_context_is_named(engine, mixed, tmp_path):
    own = {} if engine == "vllm" else WITHOUT_VLLM
    changes = {
        "lmbda": 1,
        "kd_student_engine": engine,
        "seq_kd": None,
        "kd_seq_kd_prob": None,
        "vllm_max_model_len": 12,
    }
    run = megatron_rlhf(tmp_path, {**mixed, **own, **changes})
    assert run.code == 1
    refusal = (
        r"noexp\.jsonl, line \d+ \(id '[^']+'\): a prompt has \d+ tokens, and the context ends at 12; raise --vllm"
    )
    assert re.search(refusal, run.log)


def test_a_server_that_dies_ends_the_run_with_its_reason(mixed, tmp_path):
    changes = {"teacher_model": None, "teacher_model_type": None, "kd_topk": 20, "train_iters": 100_000, "lmbda": 0}
    with vllm_server(BASE_MODEL, tmp_path / "server", max_logprobs=20, dtype="float32") as url:
        wait_for(url)
        flags = {**mixed, **changes, **WITHOUT_VLLM, "teacher_model_server": url}
        with ThreadPoolExecutor() as pool:
            run = pool.submit(megatron_rlhf, tmp_path / "run", flags)
            log = tmp_path / "run" / "output" / "logging.jsonl"
            while not (log.exists() and log.stat().st_size) and not run.done():
                time.sleep(0.5)
            assert not run.done(), run.result().log[-3000:]
            kill_server(url)
            ended = run.result()
    assert ended.code == 1
    assert f"The teacher server {url} gave no answer in 6 attempts" in ended.log


def test_a_model_that_vllm_cannot_run_is_named(mixed, tmp_path):
    model = make_dense(tmp_path / "model", head_dim=16)
    changes = {"model": model, "teacher_model": model, "lmbda": 1, "seq_kd": None, "kd_seq_kd_prob": None}
    run = megatron_rlhf(tmp_path / "run", {**mixed, **changes})
    assert run.code == 1
    assert re.search(
        r"error: vLLM .*; no attention kernel here takes it; use --kd_student_engine transformers", run.log
    )
