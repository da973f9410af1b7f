"""Dropout on the CPU backend: its random states are recomputed, seeded, saved and resumed like a device's."""

import json

import pytest
import torch

from tests.machine import needs_cpu_backend
from tests.recorders.recorded_runs import Recorded, assert_same_weights, train_and_record

pytestmark = needs_cpu_backend


@pytest.fixture(scope="module")
def dropout(flags) -> dict[str, object]:
    """Four steps with dropout under TP=2: attention draws from a state per rank, the rest from a shared one."""
    return {
        **flags,
        "tensor_model_parallel_size": 2,
        "megatron_extra_kwargs": json.dumps({"hidden_dropout": 0.1, "attention_dropout": 0.1}),
        "seed": 42,
        "data_seed": 42,
        "train_iters": 4,
        "save_steps": 2,
    }


@pytest.fixture(scope="module")
def trained(dropout, tmp_path_factory) -> Recorded:
    return train_and_record(tmp_path_factory.mktemp("dropout") / "run", dropout, processes=2)


def test_full_recompute_draws_the_same_numbers(dropout, trained, tmp_path):
    """Also shows that two runs with one seed are identical."""
    full = {"recompute_granularity": "full", "recompute_method": "uniform", "recompute_num_layers": 1}
    again = train_and_record(tmp_path / "run", dropout, processes=2, **full)
    assert again.curve == trained.curve
    assert_same_weights(again, trained)


def test_another_seed_drops_others(dropout, trained, tmp_path):
    """Same weights, same data (data_seed): only the dropped activations are others."""
    other = train_and_record(tmp_path / "run", dropout, processes=2, seed=7, save_steps=4, no_save_optim=True)
    assert torch.equal(other.ranks[0]["first"], trained.ranks[0]["first"])
    for step, (loss, _, _) in trained.curve.items():
        assert other.curve[step][0] != loss
        assert other.curve[step][0] == pytest.approx(loss, rel=0.1)


def test_what_both_ranks_hold_stays_the_same(trained):
    """Activations that both ranks hold must be dropped alike on both."""
    first, second = (rank["trained"] for rank in trained.ranks)
    norms = [name for name in first if "norm" in name]
    assert len(norms) == 4 * 4 + 1
    assert all(torch.equal(first[name], second[name]) for name in norms)


def test_a_resumed_run_goes_on_as_if_it_had_not_stopped(dropout, trained, tmp_path):
    checkpoint = trained.run.output / "checkpoint-2"
    resumed = train_and_record(tmp_path / "run", dropout, processes=2, mcore_model=checkpoint, finetune=False)
    assert resumed.curve == {step: trained.curve[step] for step in ("3/4", "4/4")}
    assert_same_weights(resumed, trained)
