"""The benchmark of the fused losses runs through on tiny tensors and writes what it measured."""

import json
from pathlib import Path

import pytest
import torch
import typer

from scripts.dev import bench_fused
from scripts.dev.bench_fused import Shape

SHAPE = Shape(8, 60, 4)


@pytest.fixture
def given_rivals(monkeypatch):
    """What a way takes, instead of processes for each measurement; and a line over few tokens."""
    found = {
        "ours": {"seconds": 1.0, "extra_mib": 2.0, "value": 3.0},
        "stock": {"seconds": 2.0, "extra_mib": 100.0, "value": 3.0},
    }
    monkeypatch.setattr(bench_fused, "measure", lambda name, *_: found[name])
    monkeypatch.setattr(bench_fused, "LINE_TOKENS", (2, 4, 8))
    return found


def run_bench(output: Path, **options) -> dict:
    options = {"device": bench_fused.Device.cpu, "threads": 0, "check": False, "longest": 8} | options
    bench_fused.main(tokens=SHAPE.tokens, vocab=SHAPE.vocab, hidden=SHAPE.hidden, repeats=1, output=output, **options)
    return json.loads(output.read_text())


def test_everything_is_measured(tmp_path: Path, given_rivals, capsys):
    result = run_bench(tmp_path / "bench.json")
    assert result["payload"] == {"ours": 8200, "stock": 303872, "target": 8300, "holds": True}
    cpu = result["cpu"]
    assert cpu["shape"] == cpu["asked"] == "8 tokens x 4 hidden x 60 ids, float32"
    assert [(row["divergence"], row["way"]) for row in cpu["ways"]] == [
        (divergence, way) for divergence in ("jsd", "forward_kl") for way in ("ours", "stock")
    ]
    ratios = {row["what"]: (row["ratio"], row["holds"]) for row in cpu["targets"]}
    assert ratios == {"time": (0.5, True), "memory": (0.02, True)}
    for row in cpu["differences"]:
        assert max(row["value"], row["hidden"], row["weight"]) < 1e-4, row
    assert cpu["line"]["tokens"] == [2, 4, 8]
    assert min(cpu["line"]["seconds"]) > 0
    printed = capsys.readouterr().out
    assert all(word in printed for word in ("8,200 of hidden", "at most", "microseconds per token", "all targets hold"))


def test_a_missed_target_is_an_error_on_request(tmp_path: Path, given_rivals):
    given_rivals["ours"]["seconds"] = 1.5
    with pytest.raises(typer.Exit) as stop:
        run_bench(tmp_path / "bench.json", check=True)
    assert stop.value.exit_code == 1


def test_a_line_is_fitted():
    line = bench_fused.fit_line([1, 2, 3], [5.0, 7.0, 9.0])
    assert (line["slope"], line["intercept"], line["r_squared"]) == pytest.approx((2.0, 3.0, 1.0))
    assert bench_fused.fit_line([1, 2, 3], [5.0, 9.0, 7.0])["r_squared"] == pytest.approx(0.25)


def test_tokens_are_halved_until_they_fit():
    shape = Shape(2**40, 1000, 10)
    fits = bench_fused.fitting(shape)
    assert fits.tokens < shape.tokens
    assert (2**40 / fits.tokens).is_integer()
    assert bench_fused.fitting(SHAPE) == SHAPE


def test_memory_is_without_the_gradients_that_are_asked_for():
    """Ours takes a few blocks, and whole logits are several times larger; both gradients are neither's."""
    shape, threads = Shape(4096, 20_000, 8), torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        found = {name: bench_fused.measure(name, "forward_kl", shape, repeats=1) for name in ("ours", "stock")}
    finally:
        torch.set_num_threads(threads)
    logits = shape.tokens * shape.vocab * 4 / 2**20
    assert found["stock"]["extra_mib"] > 2 * logits
    assert found["ours"]["extra_mib"] < 1.2 * logits  # two blocks of 2**25 elements and the chunks' tensors
    assert found["ours"]["value"] == pytest.approx(found["stock"]["value"], rel=1e-4)
