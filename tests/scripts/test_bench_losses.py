"""The benchmark of the losses runs through on tiny tensors and writes what it measured."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import typer

from scripts.dev import bench_losses
from scripts.dev.bench_tools import Shape, make_logits, run_interleaved, table
from swift_kd_plugin.losses import DIVERGENCES
from tests.launching.commands import HAS_GPU
from tests.paths import ROOT

SHAPE = Shape(4, 60)


def run_bench(output: Path, **options) -> dict:
    options = {"device": bench_losses.Device.cpu, "threads": 0, "check": False} | options
    bench_losses.main(tokens=SHAPE.tokens, vocab=SHAPE.vocab, repeats=1, output=output, **options)
    return json.loads(output.read_text())


@pytest.fixture
def given_memory(monkeypatch):
    """MiB of each loss, instead of one process for each measurement."""
    mib = {"ours": 1.0, "ours in place": 0.1, "stock": 10.0, "trl": 5.0}
    monkeypatch.setattr(bench_losses, "extra_memory", lambda cases, shape: {case: mib[case[0]] for case in cases})
    return mib


def test_everything_is_measured(tmp_path: Path, given_memory, capsys):
    result = run_bench(tmp_path / "new" / "bench.json")
    assert set(result["machine"]) == {"date", "torch", "cpu", "threads", "gpu"}
    cpu = result["cpu"]
    assert cpu["shape"] == [SHAPE.tokens, SHAPE.vocab]
    assert {(row["divergence"], row["loss"]) for row in cpu["losses"]} == {
        (divergence, loss) for divergence in bench_losses.BETAS for loss in given_memory
    }
    for row in cpu["losses"]:
        assert row["seconds"] > 0
        assert row["failed"] is None
        assert max(row["value_difference"], row["gradient_difference"]) < 1e-4, row
    assert {row["divergence"] for row in cpu["losses"] + cpu["others"]} == set(DIVERGENCES)
    for row in cpu["targets"]:
        assert row["holds"] == (row["ratio"] <= row["target"]), row
    memory = {(row["loss"], row["against"]): row["ratio"] for row in cpu["targets"] if row["what"] == "memory"}
    assert memory["ours in place", "trl"] == pytest.approx(0.02)
    assert memory["ours", "stock"] == pytest.approx(0.1)
    printed = capsys.readouterr().out
    assert all(word in printed for word in ("at most", "holds", "skew_rkl", "gradient differs"))


def test_our_errors_are_small(tmp_path: Path, given_memory):
    for row in run_bench(tmp_path / "bench.json")["cpu"]["numerics"]:
        if row["loss"] == "ours":
            assert row["equal_float32"] == row["equal_bfloat16"] == 0, row
            assert max(row["model_value"], row["far_value"], row["far_gradient"]) < 1e-5, row


def test_a_missed_target_is_an_error_on_request(tmp_path: Path, given_memory):
    given_memory["ours"] = 100.0
    with pytest.raises(typer.Exit) as stop:
        run_bench(tmp_path / "bench.json", check=True)
    assert stop.value.exit_code == 1
    assert (tmp_path / "bench.json").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["bench.json"]


@pytest.mark.skipif(HAS_GPU, reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_refused(tmp_path: Path):
    # In a process of its own: the CPU backend of other tests says that there is a GPU.
    argv = [sys.executable, "-m", "scripts.dev.bench_losses", "--device", "cuda"]
    argv += ["--output", str(tmp_path / "bench.json")]
    result = subprocess.run(argv, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    assert result.returncode == 2
    assert "no CUDA device" in " ".join(result.stderr.split())


def test_extra_memory_is_that_of_a_fresh_process():
    """Without inplace_grad there is one gradient more; both have a few chunks."""
    shape = Shape(128, 100_000)
    gradient = shape.tokens * shape.vocab * 4 / 2**20
    extra = bench_losses.extra_memory([("ours", "tvd"), ("ours in place", "tvd")], shape)
    assert 0 < extra["ours in place", "tvd"] < 0.7 * gradient
    saved = extra["ours", "tvd"] - extra["ours in place", "tvd"]
    assert saved == pytest.approx(gradient, rel=0.3)


def test_a_loss_that_runs_out_of_memory_is_reported():
    def fail(student, teacher):
        if len(student) > 8:
            raise torch.OutOfMemoryError
        return (student * teacher).sum()

    losses = {"ours": lambda student, teacher: (student * teacher).sum(), "stock": fail}
    runs = run_interleaved(losses, *make_logits(Shape(9, 60)), repeats=2)
    assert runs["ours"].seconds > 0
    assert runs["ours"].gradient_difference == 0
    assert (runs["stock"].failed, runs["stock"].seconds, runs["stock"].value_difference) == (
        "out of memory",
        None,
        None,
    )
    assert "out of memory" in table([vars(runs["stock"])], {"seconds": "seconds:.2f", "failed": "failed"})


def test_logits_are_as_peaked_as_they_say():
    def head(kind: str) -> float:
        probabilities = make_logits(Shape(8, 151_936), kind)[1].softmax(-1).sort(-1, descending=True).values
        return (probabilities.cumsum(-1) < 0.5).sum(-1).double().mean().item()

    assert head("peaked") < 10
    assert 100 < head("broad") < 400
    assert 20_000 < head("flat") < 30_000
