"""vLLM on the CPU: inside the training process as the student's pen, and behind `swift deploy` as the teacher."""

import itertools
from collections import Counter

import pytest
import torch
from torch.nn import functional as F
from transformers import AutoModelForCausalLM

from tests.json_lines import read_json_lines
from tests.launching.commands import Run, megatron_rlhf
from tests.machine import needs_cpu_backend
from tests.paths import BASE_MODEL, DATA
from tests.recorders.recorded_runs import Recorded, train_and_record
from tests.servers import swift_deploy, wait_for

pytestmark = needs_cpu_backend

STEPS, BATCH, TOP_K = 3, 4, 20


@pytest.fixture(scope="module")
def rollouts(flags, blurred, tmp_path_factory) -> Recorded:
    """On-policy training on questions without answers, with a rate at which the weights move at each step."""
    changes = {
        "model": BASE_MODEL,
        "teacher_model": blurred,
        "dataset": DATA / "noexp.jsonl",
        "train_iters": STEPS,
        "global_batch_size": BATCH,
        "lr": 5e-3,
        "temperature": 1.0,
        "lmbda": 1,
        "use_vllm": True,
        "vllm_mode": "colocate",
        "vllm_max_model_len": 128,
        "max_completion_length": 16,
        "log_completions": True,
        "no_save_optim": True,
    }
    return train_and_record(tmp_path_factory.mktemp("rollouts") / "run", flags, **changes)


def test_rollouts_end_in_silence(rollouts):
    assert len(rollouts.run.steps) == STEPS
    for noise in ("Invalid process group", "Traceback", "Exception ignored", "core dumped"):
        assert noise not in rollouts.run.log


def test_completions_are_written(rollouts):
    rows = read_json_lines(rollouts.run.output / "completions.jsonl")
    assert Counter(row["step"] for row in rows) == dict.fromkeys(range(1, STEPS + 1), BATCH)
    questions = {row["id"]: row["messages"][0]["content"] for row in read_json_lines(DATA / "noexp.jsonl")}
    for row in rows:
        assert questions[row["kd_id"]] in row["prompt"]
        assert row["completion"]
        assert (row["written_by"], row["response"]) == ("student", None)


def test_vllm_has_the_trainers_weights_after_each_sync(rollouts):
    (rank,) = rollouts.ranks
    assert len(rank["vllm_distances"]) == STEPS
    assert all(set(distances.values()) == {0.0} for distances in rank["vllm_distances"])
    assert not any(torch.equal(before, after) for before, after in itertools.pairwise(rank["synced"]))


def test_the_sampled_ids_are_the_ones_that_are_scored(rollouts):
    scored = rollouts.ranks[0]["scored"]
    assert all(written == labels for written, labels in scored)
    sampled = sorted(answer["tokens"].tolist() for answer in rollouts.ranks[0]["answers"])
    assert sum(len(written) for written, _ in scored) == sum(map(len, sampled)) > STEPS * BATCH


def pick_logprobs(logits: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """Log-probabilities [T] of `tokens` [T] under `logits` [T, V]."""
    return F.log_softmax(logits.float(), -1).gather(1, tokens[:, None])[:, 0]


@torch.no_grad()
def test_vllm_answers_with_these_weights(rollouts):
    """A linear layer of vLLM computes with a packed copy of its weight: that the weight is right is not enough."""
    answers = rollouts.ranks[0]["answers"]
    assert len(answers) == STEPS * BATCH
    for answer in answers:
        own = pick_logprobs(answer["logits"], answer["tokens"])
        assert (own - answer["logprobs"]).abs().max() < 0.3  # bf16, after steep steps; seen: 0.22

    # Had the sync not reached the packed copies, the last answers would be those of the first weights.
    first_weights = AutoModelForCausalLM.from_pretrained(BASE_MODEL).eval()
    for answer in answers[-BATCH:]:
        prompt, tokens = answer["prompt"], answer["tokens"]
        stale = first_weights(torch.cat([prompt, tokens])[None]).logits[0, len(prompt) - 1 : -1]
        assert (pick_logprobs(stale, tokens) - answer["logprobs"]).abs().max() > 0.5


@pytest.fixture(scope="module")
def taught(flags, blurred, tmp_path_factory) -> tuple[Run, Run]:
    """The same top-k run with a teacher behind a server and with a local one."""
    folder = tmp_path_factory.mktemp("taught")
    common = {
        **flags,
        "model": blurred,
        "teacher_model": None,
        "teacher_model_type": None,
        "dataset": DATA / "exp.jsonl",
        "kd_topk": TOP_K,
        "temperature": 1.0,  # a server knows no other
        "train_iters": STEPS,
        "no_save_optim": True,
    }
    with swift_deploy(BASE_MODEL, folder / "server", max_logprobs=TOP_K) as url:
        # The server gets ready meanwhile.
        local = megatron_rlhf(folder / "local", {**common, "teacher_model": BASE_MODEL, "teacher_model_type": "qwen3"})
        wait_for(url)
        remote = megatron_rlhf(folder / "remote", {**common, "teacher_model_server": url})
    return remote.expect_success(), local.expect_success()


def test_a_server_teaches_like_a_local_teacher(taught):
    """Both round to bf16, at other places."""
    remote, local = taught
    assert "Skipping local teacher model loading" in remote.log
    assert len(remote.losses) == len(local.losses) == STEPS
    assert min(local.losses) > 0.05
    assert remote.losses == pytest.approx(local.losses, rel=0.02)
    assert remote.grad_norms[0] == pytest.approx(local.grad_norms[0], rel=0.02)
