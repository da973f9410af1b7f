"""The examples of `kd_loss`, in plain PyTorch and in a Trainer: they run, learn, and weigh every token alike."""

import pytest
import torch

from examples.python import hf_trainer, plain_pytorch, views
from tests.losses.loss_checks import assert_close


def test_plain_pytorch_learns():
    losses = plain_pytorch.train(14)
    assert min(losses[-3:]) < 0.6 * losses[0], losses


def test_micro_batches_change_nothing_in_plain_pytorch():
    found = [torch.tensor(plain_pytorch.train(2, micro_batches=parts)) for parts in (1, 3)]
    assert_close(*found, 1e-5)


def test_the_trainer_learns(tmp_path):
    losses, _ = hf_trainer.train(14, str(tmp_path))
    assert min(losses[-3:]) < 0.6 * losses[0], losses


def test_accumulation_changes_nothing_in_the_trainer(tmp_path, monkeypatch):
    """Also where the micro-batches count different numbers of tokens."""
    pairs = views.read_pairs()[:32]
    pairs = [
        [[*view[:-1], {**view[-1], "content": view[-1]["content"][: 1 + one % 4]}] for view in pair]
        for one, pair in enumerate(pairs)
    ]
    monkeypatch.setattr(hf_trainer, "read_pairs", lambda: pairs)
    (losses, student), (same, other) = (hf_trainer.train(2, str(tmp_path), 8, parts) for parts in (1, 4))
    assert losses == pytest.approx(same, abs=2e-4)
    for one, two in zip(student.parameters(), other.parameters(), strict=True):
        assert_close(one.detach(), two.detach(), 1e-4)
