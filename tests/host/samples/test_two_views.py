"""Two views of one response under context parallelism: whose row is whose, in stock ms-swift and here."""

import random
from itertools import chain, starmap
from types import SimpleNamespace

import pytest
import torch

from tests.gloo_ranks import run_distributed
from tests.launching.commands import HAS_GPU

pytestmark = pytest.mark.skipif(HAS_GPU, reason="ranks without a GPU of their own")
CASES = 200


def make_case(seed: int, packed: bool) -> dict:
    """Responses of 1 to 3 samples behind prompts of other lengths in each view, collated as ms-swift does."""
    rng = random.Random(seed)
    responses = [[rng.randrange(1000) for _ in range(rng.randint(1, 12))] for _ in range(rng.randint(1, 3))]
    return {"responses": responses, **{side: collate(responses, rng, packed) for side in ("student", "teacher")}}


def collate(responses: list[list[int]], rng: random.Random, packed: bool) -> dict[str, torch.Tensor]:
    """Labels and positions of one view: each sample is as long as context parallelism's 2 * 2 parts ask for."""
    rows = [[-100] * rng.randint(1, 30) + response for response in responses]
    length = None if packed else -(-max(map(len, rows)) // 4) * 4
    rows = [row + [-100] * ((length or -(-len(row) // 4) * 4) - len(row)) for row in rows]
    positions = [list(range(len(row))) for row in rows]
    if packed:
        rows, positions = [list(chain(*rows))], [list(chain(*positions))]
    return {"labels": torch.tensor(rows), "position_ids": torch.tensor(positions)}


def start(partition: str, packed: bool) -> SimpleNamespace:
    from swift_kd_plugin.cpu import switch_on

    switch_on()
    from megatron.core import mpu

    mpu.initialize_model_parallel(context_parallel_size=2)
    return SimpleNamespace(context_parallel_size=2, padding_free=packed, cp_partition_mode=partition)


def pair_on_rank(rank: int, partition: str, packed: bool) -> list[tuple]:
    """For each case: how many of this rank's student tokens meet their own teacher row, and how many there are."""
    args = start(partition, packed)
    from swift_kd_plugin.host.samples.responses import cut_for_context_rank, number_tokens
    from swift_kd_plugin.host.teacher.local_teacher import context_group
    from swift_kd_plugin.teacher.teacher_outputs import LogitsOutputs

    results = []
    for seed in range(CASES):
        case = make_case(seed, packed)
        cut = {}
        for side in ("student", "teacher"):
            batch = case[side]
            numbers = cut_for_context_rank(args, batch, number_tokens(batch["labels"])).flatten()
            labels = cut_for_context_rank(args, batch, torch.roll(batch["labels"], -1, dims=-1)).flatten()
            assert torch.equal(numbers >= 0, labels != -100)
            cut[side] = numbers[numbers >= 0], labels[labels != -100]
        (wanted, labels), (made, ids) = cut["student"], cut["teacher"]
        signal = LogitsOutputs((made[:, None].float(),), ids).exchange(made, wanted, context_group())
        right = (signal.rows[0][:, 0].long() == wanted) & (signal.token_ids == labels)
        results.append((int(right.sum()), len(wanted)))
    return results


@pytest.mark.parametrize("packed", [True, False], ids=["padding-free", "padded"])
@pytest.mark.parametrize("partition", ["zigzag", "contiguous"])
def test_every_token_meets_its_own_row(partition, packed):
    if partition == "contiguous" and not packed:
        pytest.skip("ms-swift cuts contiguous parts of a packed row only")
    ranks = run_distributed(pair_on_rank, 2, partition, packed)
    for seed, parts in enumerate(zip(*ranks, strict=True)):
        right, tokens = map(sum, zip(*parts, strict=True))
        assert right == tokens == sum(map(len, make_case(seed, packed)["responses"])), f"case {seed}"


def stock_on_rank(rank: int) -> list[tuple]:
    """For each case, what stock's own cut leaves: the labels of either view on this rank."""
    args = start("zigzag", True)
    from swift_kd_plugin.host.samples.responses import cut_for_context_rank

    kept = []
    for seed in range(CASES):
        case = make_case(seed, packed=True)
        rolled = [(case[side], torch.roll(case[side]["labels"], -1, dims=-1)) for side in ("student", "teacher")]
        kept.append(tuple(cut_for_context_rank(args, batch, labels) for batch, labels in rolled))
    return kept


def stock_loss(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    from swift.rlhf_trainers.gkd_loss import TeacherOutput, gkd_loss

    logits = [torch.zeros(1, labels.shape[1], 10) for labels in (student, teacher)]
    return gkd_loss(logits[0], TeacherOutput(full_logits=logits[1], labels=teacher), student, 0.5, 1.0)


@pytest.mark.usefixtures("cpu_backend")
def test_stock_pairs_by_rank_and_stops_or_is_wrong():
    """Both views are cut on their own: ranks then hold other response tokens of either, and stock pairs by position."""
    stopped = wrong = 0
    for parts in zip(*run_distributed(stock_on_rank, 2), strict=True):
        if any(len(s[s != -100]) != len(t[t != -100]) for s, t in parts):
            with pytest.raises(AssertionError, match="Label count mismatch"):
                list(starmap(stock_loss, parts))
            stopped += 1
            continue
        list(starmap(stock_loss, parts))
        wrong += any(not torch.equal(s[s != -100], t[t != -100]) for s, t in parts)
    assert stopped > 0.8 * CASES
    assert wrong >= 1
