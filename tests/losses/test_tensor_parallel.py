"""The losses on two and four tensor-parallel ranks are those of one rank, in value and gradient."""

import pytest
import torch

from swift_kd_plugin.losses import token_divergence
from swift_kd_plugin.losses.shards import VocabShard
from swift_kd_plugin.losses.topk import teacher_topk
from tests.gloo_ranks import run_distributed
from tests.losses import sharded_losses
from tests.losses.collective_counts import count_collectives
from tests.losses.divergence_cases import ONE_OF_EACH, name_of
from tests.losses.loss_checks import assert_close, value_and_gradient
from tests.losses.random_logits import random_logits


def run_rank(rank: int, size: int) -> dict:
    return {
        "losses": sharded_losses.all_losses(rank, size),
        "counts": count_collectives(rank, size),
        "many": sharded_losses.many_tokens(rank, size),
        "head": sharded_losses.uneven_head(rank, size),
        "errors": sharded_losses.unequal_tokens(rank),
        "TP x CP": sharded_losses.with_context_parallelism(rank) if size == 4 else None,
    }


@pytest.fixture(scope="module", params=[2, 4], ids=["TP2", "TP4"])
def ranks(request) -> list[dict]:
    """What every rank found; all cases run in one group, since starting it takes longer than they do."""
    return run_distributed(run_rank, request.param, request.param)


def compare(ranks, key, layout, expected):
    value, gradient = expected
    found = [rank["losses"][key] for rank in ranks]
    for rank_value, _ in found:
        assert torch.equal(rank_value, found[0][0]), f"{key}: the ranks disagree"
    assert_close(found[0][0], value, 1e-12, key)
    whole = torch.cat([part for _, part in found], 1)
    assert_close(whole[:, : layout.student_vocab], gradient, 1e-12, f"gradient, {key}")
    assert not whole[:, layout.student_vocab :].any(), f"{key}: padding has a gradient"


@pytest.fixture(params=sharded_losses.LAYOUTS)
def layout(ranks, request) -> sharded_losses.Layout:
    return next(layout for layout in sharded_losses.layouts(len(ranks)) if layout.name == request.param)


def test_dense(ranks, layout):
    for case in layout.dense_cases:
        expected = sharded_losses.dense(layout, case, layout.logits("student"), layout.logits("teacher"))
        compare(ranks, ("dense", layout.name, name_of(case)), layout, expected)


def test_sparse(ranks, layout):
    for case, tail in layout.sparse_cases:
        expected = sharded_losses.sparse(layout, case, tail, layout.logits("student"))
        compare(ranks, (tail, layout.name, name_of(case)), layout, expected)


def test_entries_are_the_largest_of_all_ranks(ranks, layout):
    one = VocabShard((layout.student_vocab,), 0, layout.student_vocab)
    log_probs, ids, shift = teacher_topk(layout.logits("student"), sharded_losses.ENTRIES, one, temperature=1.7)
    for rank in ranks:
        found = rank["losses"]["entries", layout.name]
        assert_close(found[0], log_probs)
        assert torch.equal(found[1], ids)
        assert_close(found[2], shift)


def test_cross_entropy_and_statistics(ranks):
    for layout in sharded_losses.layouts(len(ranks)):
        if not layout.thorough:
            continue
        expected = sharded_losses.statistics(layout, layout.logits("student"), layout.logits("teacher"))
        for kind in range(4):
            found = [rank["losses"]["statistics", layout.name][kind] for rank in ranks]
            assert 0 < expected[kind]["top1_agreement"].mean() < 1
            gradient = torch.cat([parts["gradient"] for parts in found], 1)
            assert_close(gradient[:, : layout.student_vocab], expected[kind]["gradient"])
            assert not gradient[:, layout.student_vocab :].any()
            for parts in found:
                assert parts.keys() == expected[kind].keys()
                for name in parts.keys() - {"gradient"}:
                    assert_close(parts[name], expected[kind][name], note=name)


def test_chunks_that_nobody_chose_are_the_same_on_uneven_shards(ranks):
    for rank in ranks:
        for name, (found, expected) in rank["many"].items():
            assert_close(found, expected, 1e-12, name)


def test_the_head_of_adaptive_kl_lies_on_one_rank(ranks):
    for rank in ranks:
        assert_close(*rank["head"], 1e-13)


def test_every_rank_learns_that_their_tokens_differ(ranks):
    for rank in ranks:
        assert len(rank["errors"]) == 2
        assert all("different numbers of tokens ([3, 4" in message for message in rank["errors"])


@pytest.mark.parametrize("name", [name for name, _ in ONE_OF_EACH])
def test_number_of_collectives(ranks, name):
    more = int(name == "adaptive_kl")
    for rank in ranks:
        for kind, per_chunk in (("equal", 2 + more), ("unequal", 3 + more)):
            # One agrees on shapes. A second backward computes the gradient anew.
            assert rank["counts"]["dense", kind, name] == (1 + 3 * per_chunk, 0, 3 * per_chunk)
        assert rank["counts"]["top-k", "unequal", name] == (1 + 3 * 2, 0, 3 * 2)


@pytest.mark.parametrize("case", ONE_OF_EACH, ids=name_of)
@pytest.mark.parametrize("ranks", [4], indirect=True, ids=["TP2 x CP2"])
def test_context_parallel_ranks_with_few_or_no_tokens(ranks, case):
    layout = ranks[0]["TP x CP"]["layout"]
    name, params = case
    value, gradient = value_and_gradient(
        token_divergence, layout.logits("student"), layout.logits("teacher"),
        upstream=random_logits(6, seed=3, spread=1.0), divergence=name, **layout.vocabularies, **params,
    )  # fmt: skip
    for first in (6, 4):
        found = [rank["TP x CP"]["results"][first, name_of(case)] for rank in ranks]
        assert_close(torch.cat([found[0][0], found[2][0]]), value)
        rows = [torch.cat([found[i][1], found[i + 1][1]], 1) for i in (0, 2)]
        assert_close(torch.cat(rows)[:, : layout.student_vocab], gradient)
