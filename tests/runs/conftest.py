"""Material for runs of the real command: tiny models and questions, made once."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from examples.tiny_models import main as make_tiny_models
from tests.paths import BASE_MODEL
from tests.tiny_models import make_dense, make_sums


@pytest.fixture(scope="session")
def material(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    make_dense(folder / "student", hidden=64, seed=0)
    make_dense(folder / "teacher", hidden=128, seed=1)
    make_sums(folder / "sums.jsonl")
    return folder


@pytest.fixture(scope="session")
def flags(material) -> dict[str, object]:
    """A plain off-policy run of two steps."""
    return {
        "rlhf_type": "gkd",
        "external_plugins": "swift_kd_plugin",
        "model": material / "student",
        "teacher_model": material / "teacher",
        "template": "qwen3",
        "model_type": "qwen3",
        "teacher_model_type": "qwen3",
        "dataset": material / "sums.jsonl",
        "micro_batch_size": 2,
        "global_batch_size": 4,
        "train_iters": 2,
        "lr": 1e-4,
        "max_length": 256,
        "lmbda": 0,
        "recompute_granularity": "none",
        "logging_steps": 1,
        "torch_dtype": "bfloat16",
        "dataset_num_proc": 1,
    }


@pytest.fixture(scope="session")
def blurred(tmp_path_factory) -> Path:
    """The base model with noise on its weights: it speaks, and not as the base model does."""
    folder = tmp_path_factory.mktemp("blurred") / "model"
    shutil.copytree(BASE_MODEL, folder)
    torch.manual_seed(0)
    weights = load_file(folder / "model.safetensors")
    weights = {name: weight + 0.05 * torch.randn_like(weight) for name, weight in weights.items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory) -> Path:
    """What examples/tiny_models.py makes."""
    folder = tmp_path_factory.mktemp("tiny_models")
    make_tiny_models(folder)
    return folder
