"""The memory table: arithmetic by hand, and sizes of real Megatron models and optimizers before and after a step."""

from dataclasses import replace

import pytest

from swift_kd_plugin.memory.memory_table import (
    MemoryPlan,
    MemoryRow,
    loss_bytes,
    memory_table,
    payload_bytes,
    render_memory,
    total_row,
)
from swift_kd_plugin.teacher.teacher_outputs import HiddenOutputs, LogitsOutputs, TopKOutputs
from tests.gloo_ranks import run_distributed
from tests.host.small_gpt import FFN as F
from tests.host.small_gpt import GROUPS, HEAD, HEADS, LAYERS, measure
from tests.host.small_gpt import HIDDEN as H
from tests.host.small_gpt import VOCABULARY as V

pytestmark = pytest.mark.usefixtures("cpu_backend")
LAYER = (HEADS + 2 * GROUPS) * HEAD * H + H * HEADS * HEAD + 3 * F * H + 2 * H + 2 * HEAD
QWEN3 = 2 * V * H + LAYERS * LAYER + H  # embedding and output layer, layers, last norm
BASE = MemoryPlan(
    weights=1000,
    trainable=1000,
    gradients=2000,
    optimizer=6000,
    optimizer_on_host=0,
    teacher=3000,
    teacher_offloaded=False,
    outputs="hidden",
    output_bytes=8192,
    outputs_by_columns=False,
    payload_tokens=10,
    payload_on_host=False,
    batch_tokens=100,
    fused=True,
    hidden=64,
    vocabulary=151936,
    chunk=8,
    block=16,
)


@pytest.mark.parametrize(
    ("form", "tp", "tokens", "expected"),
    [
        (HiddenOutputs, 1, 1, 8192),
        (HiddenOutputs, 2, 3, 2 * 8192),
        (LogitsOutputs, 1, 1, 303_872),
        (LogitsOutputs, 2, 1, 151_936),
        (TopKOutputs, 1, 1, 12 * 64),
        (TopKOutputs, 2, 5, 3 * 12 * 64),
    ],
)
def test_payload(form, tp, tokens, expected):
    kept = {"output_bytes": form.bytes_per_token(4096, 151936, 64), "outputs_by_columns": form.by_columns}
    assert payload_bytes(replace(BASE, **kept, tensor_parallel=tp), tokens) == expected


def test_fused_loss_holds_a_block_a_chunk_and_the_gradients_of_head_and_hidden_states():
    block, chunk = 2 * 16 * 151936 * 2, 6 * 8 * 151936 * 4
    assert loss_bytes(BASE) == block + chunk + 151936 * 64 * (4 + 2) + 100 * 64 * 2


def test_logits_loss_holds_the_students_logits_and_those_that_wait_elsewhere():
    plan = replace(BASE, fused=False, output_bytes=303_872, outputs_by_columns=True, tensor_parallel=2, vocabulary=1001)
    chunk, own = 6 * 8 * 501 * 4, 100 * 501 * 2
    assert loss_bytes(plan) == chunk + own
    assert loss_bytes(replace(plan, payload_on_host=True)) == chunk + own + 100 * 75968 * 2


def test_a_rank_without_the_output_layer_has_no_loss():
    assert loss_bytes(replace(BASE, batch_tokens=0)) == 0


@pytest.mark.parametrize("on_host", [False, True])
def test_features_lie_where_the_teachers_outputs_do(on_host):
    plan = replace(BASE, feature_bytes=512, feature_tokens=7, tensor_parallel=2, payload_on_host=on_host)
    (row,) = [row for row in memory_table(plan) if row.name == "teacher's features"]
    assert (row.device, row.host) == ((0, 4 * 512) if on_host else (4 * 512, 0))
    assert row.note == "at most: 7 tokens a cycle of 256 bytes"
    assert "teacher's features" not in {row.name for row in memory_table(BASE)}


def test_the_table_adds_up():
    rows = {row.name: row for row in memory_table(replace(BASE, optimizer_on_host=50, payload_on_host=True))}
    assert rows["optimizer"] == MemoryRow("optimizer", 6000, 50)
    assert rows["teacher's outputs"] == MemoryRow("teacher's outputs", 0, 10 * 8192)
    assert total_row(list(rows.values())).device == 1000 + 2000 + 6000 + 3000 + loss_bytes(BASE)
    assert total_row(list(rows.values())).host == 50 + 10 * 8192


def test_an_offloaded_teacher_is_on_both_sides():
    rows = memory_table(replace(BASE, teacher_offloaded=True))
    assert MemoryRow("teacher", 3000, 3000) in rows


def test_a_quantised_teacher_says_so():
    rows = {row.name: row for row in memory_table(replace(BASE, teacher_bits=4, teacher_offloaded=True))}
    assert rows["teacher"].note == "linear weights in 4 bits; offloaded, on the device for its forward"
    assert {row.name: row for row in memory_table(replace(BASE, teacher_bits=4, teacher=0))}["teacher"].note == ""


def test_it_reads_as_a_table():
    rows = [MemoryRow("weights", 3 * 2**30, 0, "all"), MemoryRow("optimizer", 5 * 2**20, 2**29)]
    assert render_memory(rows, 8 * 2**30, 4 * 2**30).splitlines() == [
        "                 device       CPU",
        "weights        3.00 GiB         -  all",
        "optimizer      5.00 MiB  0.50 GiB",
        "total          3.00 GiB  0.50 GiB  37.6% of 8.00 GiB, without activations",
        "measured peak  4.00 GiB            50.0% of 8.00 GiB, with activations",
    ]
    assert "measured" not in render_memory(rows, 2**33)


def test_sizes_of_a_real_model_and_optimizer():
    for whole, sharded in run_distributed(measure, 2):
        for got, shares in ((whole, 1), (sharded, 2)):
            assert got["weights"] == 2 * QWEN3
            assert 4 * QWEN3 <= got["gradients"] < 4.2 * QWEN3  # DDP pads its buckets
            assert got["expected"] == pytest.approx(12 * QWEN3 / shares, rel=0.02)
            assert got["expected"] == got["held"]
            assert got["on_host"] == 0
            assert got["trainable"] - got["frozen"] == 2 * V * H
