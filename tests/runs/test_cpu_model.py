"""A model with LayerNorm, honest memory figures and refusals on the CPU backend.

No text model of mcore-bridge 1.6.5 has LayerNorm: `ModelConfig.normalization` is RMSNorm by default, and neither its
parser of Hugging Face configurations nor any of its model files sets another. ms-swift reaches the field through
--megatron_extra_kwargs only.
"""

import json
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import psutil
import pytest
import torch
from torch import nn
from transformers import Qwen3ForCausalLM
from transformers.models.qwen3.modeling_qwen3 import Qwen3RMSNorm

from tests.launching.commands import megatron_rlhf
from tests.machine import needs_cpu_backend
from tests.recorders.recorded_runs import Recorded, read_probe, relative_distance, train_and_record

pytestmark = needs_cpu_backend


def replace_norms(model: nn.Module) -> nn.Module:
    """Every RMSNorm becomes a LayerNorm with the same weight and no bias: what Megatron makes of these weights."""
    for parent in list(model.modules()):
        for name, norm in parent.named_children():
            if isinstance(norm, Qwen3RMSNorm):
                new = nn.LayerNorm(norm.weight.shape, eps=norm.variance_epsilon, bias=False)
                new.weight = norm.weight
                setattr(parent, name, new)
    return model


class Peak:
    """The highest resident memory of any rank below this process, in GiB."""

    gib = 0.0

    def look(self) -> None:
        for process in psutil.Process(os.getpid()).children(recursive=True):
            try:
                if any(part.endswith("rlhf.py") for part in process.cmdline()[1:3]):
                    self.gib = max(self.gib, process.memory_info().rss / 2**30)
            except psutil.Error:
                continue  # it ended meanwhile


@contextmanager
def watch_memory() -> Iterator[Peak]:
    peak, ended = Peak(), threading.Event()

    def watch() -> None:
        while not ended.wait(0.2):
            peak.look()

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield peak
    finally:
        ended.set()
        watcher.join()


@pytest.fixture(scope="module")
def watched(flags, tmp_path_factory) -> tuple[Recorded, Peak]:
    """Three steps with LayerNorm in student and teacher, and the memory that was seen from outside."""
    folder = tmp_path_factory.mktemp("model") / "run"
    changes = {"megatron_extra_kwargs": json.dumps({"normalization": "LayerNorm"}), "train_iters": 3, "lr": 1e-3}
    with watch_memory() as peak:
        return train_and_record(folder, flags, literal=True, no_save_optim=True, **changes), peak


def test_layer_norm_computes_and_learns(material, watched):
    recorded, _ = watched
    rank = recorded.ranks[0]
    model = Qwen3ForCausalLM.from_pretrained(material / "student").float()
    with_rms_norm = read_probe(model)
    assert relative_distance(read_probe(replace_norms(model)), rank["first"]) < 0.02
    assert relative_distance(with_rms_norm, rank["first"]) > 0.05

    biases = {name: bias for name, bias in rank["trained"].items() if "norm" in name and name.endswith("bias")}
    assert len(biases) == 4 * 4 + 1
    assert all(torch.count_nonzero(bias) for bias in biases.values())
    assert recorded.run.losses == sorted(recorded.run.losses, reverse=True)


def test_logged_memory_is_the_ranks_own(watched):
    recorded, peak = watched
    logged = [step["memory(GiB)"] for step in recorded.run.steps]
    assert logged[0] > 0.1
    assert logged == sorted(logged)
    assert logged[-1] == pytest.approx(peak.gib, rel=0.2)


def test_cuda_graphs_are_refused_by_name(flags, tmp_path):
    extra = json.dumps({"cuda_graph_impl": "local"})
    run = megatron_rlhf(tmp_path, {**flags, "megatron_extra_kwargs": extra}, timeout=90)
    assert run.code == 1
    message = "cuda_graph_impl in --megatron_extra_kwargs: capturing CUDA graphs is not available on the CPU backend"
    assert f"swift_kd_plugin [rank 0]: error: {message}" in run.log, run.log[-3000:]
    assert "Traceback" not in run.log
