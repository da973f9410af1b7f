"""Rows of a teacher find the ranks whose tokens they speak of, and wait there in the space of one block each."""

import pytest
import torch
from torch import distributed as dist

from swift_kd_plugin.losses.lm_head import LMHead
from swift_kd_plugin.losses.request import TopK
from swift_kd_plugin.teacher.teacher_outputs import HiddenOutputs, LogitsOutputs, TeacherOutputs, TopKOutputs
from tests.gloo_ranks import run_distributed

HIDDEN = 3


def hidden_outputs(numbers: torch.Tensor) -> HiddenOutputs:
    """Row i says which token it belongs to."""
    rows = (numbers[:, None] * 10 + torch.arange(HIDDEN)).bfloat16()
    return HiddenOutputs((rows,), numbers + 100, (torch.ones(5, HIDDEN),))


def exchange_on_rank(rank: int, made: list[list[int]], wanted: list[list[int]]) -> tuple:
    numbers, mine = torch.tensor(made[rank], dtype=torch.long), torch.tensor(wanted[rank], dtype=torch.long)
    outputs = hidden_outputs(numbers).exchange(numbers, mine, dist.group.WORLD)
    assert outputs.rows[0].dtype == torch.bfloat16
    return outputs.rows[0].float(), outputs.token_ids


@pytest.mark.parametrize(
    ("made", "wanted"),
    [
        pytest.param([[0, 3, 4], [1, 2]], [[0, 1], [2, 3, 4]], id="uneven"),
        pytest.param([[2, 0, 1], []], [[], [1, 2, 0]], id="one rank made all, the other needs all"),
        pytest.param([[], []], [[], []], id="no response token"),
        pytest.param([[0], [1]], [[1, 0], [0, 1]], id="both need all"),
    ],
)
def test_rows_go_to_the_ranks_that_need_them(made, wanted):
    for (rows, token_ids), mine in zip(run_distributed(exchange_on_rank, 2, made, wanted), wanted, strict=True):
        expected = hidden_outputs(torch.tensor(mine, dtype=torch.long))
        assert torch.equal(rows, expected.rows[0].float())
        assert torch.equal(token_ids, expected.token_ids)


def test_one_rank_puts_rows_in_its_own_order():
    numbers = torch.tensor([2, 0, 1])
    outputs = hidden_outputs(numbers).exchange(numbers, torch.tensor([1, 2]), None)
    assert outputs.token_ids.tolist() == [101, 102]
    assert outputs.rows[0][:, 0].tolist() == [10.0, 20.0]


def store_on_rank(rank: int, tokens: int, pinned: bool) -> tuple:
    outputs = hidden_outputs(torch.arange(tokens))
    stored = outputs.store(dist.group.WORLD, pinned)
    loaded = stored.load("cpu")
    logits = LogitsOutputs((torch.full((tokens, 4), float(rank)),), outputs.token_ids)
    assert torch.equal(logits.store(dist.group.WORLD, pinned).load("cpu").rows[0], logits.rows[0])
    return stored.bytes, torch.equal(loaded.rows[0], outputs.rows[0]), torch.equal(loaded.token_ids, outputs.token_ids)


@pytest.mark.parametrize("pinned", [False, True])
@pytest.mark.parametrize("tokens", [0, 1, 5, 8])
def test_each_rank_keeps_its_block(tokens, pinned):
    for kept, same_rows, same_ids in run_distributed(store_on_rank, 2, tokens, pinned):
        assert kept == -(-tokens // 2) * HIDDEN * 2
        assert same_rows
        assert same_ids


def test_a_block_does_not_keep_the_whole():
    outputs = hidden_outputs(torch.arange(8))
    (kept,) = run_distributed(storage_of_block, 1, outputs)
    assert kept == 8 * HIDDEN * 2


def storage_of_block(rank: int, outputs: TeacherOutputs) -> int:
    longer = outputs.map(lambda rows: torch.cat([rows, rows])[: len(rows)])
    return longer.store(dist.group.WORLD, False).outputs.rows[0].untyped_storage().nbytes()


def test_hidden_states_cost_a_thirty_seventh_of_logits():
    """H = 4096 and V = 151,936: 8,192 bytes a response token in bf16 against 303,872."""
    tokens, hidden, vocabulary = 16, 4096, 151_936
    ids = torch.zeros(tokens, dtype=torch.long)
    payload = HiddenOutputs((torch.zeros(tokens, hidden, dtype=torch.bfloat16),), ids).store(None, False)
    logits = LogitsOutputs((torch.zeros(tokens, vocabulary, dtype=torch.bfloat16),), ids).store(None, False)
    assert payload.bytes / tokens == 8192 == HiddenOutputs.bytes_per_token(hidden, vocabulary, 0)
    assert logits.bytes / tokens == 303_872 == LogitsOutputs.bytes_per_token(hidden, vocabulary, 0)


def test_what_the_losses_take():
    rows, ids = torch.zeros(2, 4), torch.arange(2)
    assert isinstance(HiddenOutputs((rows,), ids, (rows,)).as_teacher(), LMHead)
    topk = TopKOutputs((rows, rows.long()), ids, temperature=2.0).as_teacher()
    assert isinstance(topk, TopK)
    assert topk.temperature == 2.0
    assert LogitsOutputs((rows,), ids).as_teacher() is rows
