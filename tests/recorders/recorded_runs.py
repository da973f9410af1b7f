"""Runs of the real command with a recorder as a second plugin, and what the recorder wrote."""

from dataclasses import dataclass
from pathlib import Path

import torch

from tests.launching.commands import Run, megatron_rlhf

MODEL_RECORDER = Path(__file__).with_name("record_model.py")
LOSS_RECORDER = Path(__file__).with_name("record_losses.py")


def probe_tokens() -> torch.Tensor:
    """Tokens [24] that every model of the tests knows; they mean nothing."""
    return torch.randint(0, 380, (24,), generator=torch.Generator().manual_seed(5))


@dataclass
class Recorded:
    """A finished run and what `record_model.py` wrote of each rank."""

    run: Run
    ranks: list[dict]

    @property
    def curve(self) -> dict[str, tuple[float, float, float]]:
        """Loss, gradient norm and learning rate, as logged, by `step/steps`."""
        return {step["iteration"]: (step["loss"], step["grad_norm"], step["learning_rate"]) for step in self.run.steps}


def train_and_record(
    folder: Path, flags: dict[str, object], processes: int = 1, literal: bool = False, **changes
) -> Recorded:
    """Trains with `flags`, `changes` and `record_model.py`; the run must succeed."""
    folder.mkdir(parents=True)
    flags = {**flags, "external_plugins": ["swift_kd_plugin", MODEL_RECORDER], **changes}
    torch.save(probe_tokens(), folder / "probe.pt")
    run = megatron_rlhf(folder, flags, processes, {"KD_TEST_RECORD": str(folder)}, literal=literal)
    run.expect_success()
    return Recorded(run, [torch.load(folder / f"rank{rank}.pt") for rank in range(processes)])


def train_and_record_losses(folder: Path, flags: dict, processes: int = 1, **changes):
    """A finished run and for each rank the list of its losses, in order. The student's logits are held, so that they
    and the gradient in them can be looked at, unless the changes say otherwise."""
    folder.mkdir(parents=True)
    flags = {**flags, "external_plugins": ["swift_kd_plugin", LOSS_RECORDER], "kd_fused_loss": False, **changes}
    run = megatron_rlhf(folder, flags, processes, {"KD_TEST_RECORD": str(folder)}).expect_success()
    return run, [torch.load(folder / f"losses{rank}.pt", weights_only=False) for rank in range(processes)]


def assert_same_weights(found: Recorded, truth: Recorded) -> None:
    """Every trainable weight of every rank is the same, bit by bit."""
    for rank, true_rank in zip(found.ranks, truth.ranks, strict=True):
        weights, true = rank["trained"], true_rank["trained"]
        assert weights.keys() == true.keys()
        assert [name for name in true if not torch.equal(weights[name], true[name])] == []


@torch.no_grad()
def read_probe(model: torch.nn.Module) -> torch.Tensor:
    """Logits [T, V] of `probe_tokens` from a transformers model."""
    return model.eval()(probe_tokens()[None]).logits[0].float()


def relative_distance(found: torch.Tensor, truth: torch.Tensor) -> float:
    """Norm of the difference over the norm of the truth; a transformers model may lack Megatron's vocabulary pad."""
    width = min(found.shape[-1], truth.shape[-1])
    found, truth = found[..., :width].double(), truth[..., :width].double()
    return ((found - truth).norm() / truth.norm()).item()
