"""Matched layers of a real Megatron model in float64: all gradients are those of the loss in plain PyTorch."""

from types import SimpleNamespace

import pytest
import torch

from tests.gloo_ranks import run_distributed
from tests.losses.loss_checks import assert_close

LENGTH, BATCH, WIDE = 8, 2, 96
PAIRS = [(1, 2), (2, 3)]
WEIGHT = 0.7
ARGS = {
    **{"kd_feature_pairs": PAIRS, "kd_feature_sizes": (64, WIDE), "kd_feature_loss": "mse", "tuner_type": "full"},
    **{"kd_feature_weight": WEIGHT, "kd_feature_weight_final": None, "kd_schedule": "constant", "seed": 1},
    **{"context_parallel_size": 1},
}
CASES = {
    "plain": {},
    "sequence parallelism": {"sequence_parallel": True},
    "recomputed": {"recompute_granularity": "full", "recompute_method": "uniform", "recompute_num_layers": 2},
}


def differences_on_rank(rank: int, tensor_parallel: int) -> dict[str, list[tuple]]:
    """Of each case what was found and what plain PyTorch says: losses, and gradients by name."""
    from swift_kd_plugin.cpu import switch_on

    switch_on()
    from megatron.core import mpu
    from megatron.core.tensor_parallel.random import model_parallel_cuda_manual_seed

    mpu.initialize_model_parallel(tensor_parallel)
    model_parallel_cuda_manual_seed(7)
    cases = CASES if tensor_parallel > 1 else {name: CASES[name] for name in ("plain", "recomputed")}
    return {name: _run(rank, tensor_parallel, settings) for name, settings in cases.items()}


def _run(rank: int, tensor_parallel: int, settings: dict) -> list[tuple]:
    from swift_kd_plugin.host.teacher.parallel_groups import tensor_group
    from swift_kd_plugin.host.train.feature_matching import FeatureMatching
    from swift_kd_plugin.teacher.teacher_outputs import FeatureRows
    from tests.host import small_gpt

    config = small_gpt.make_config()
    config.params_dtype, config.bf16, config.tensor_model_parallel_size = torch.float64, False, tensor_parallel
    config.hidden_dropout = config.attention_dropout = 0.0
    vars(config).update(settings)
    torch.manual_seed(rank)
    model = small_gpt.make_model(config).double().train()
    args = SimpleNamespace(**ARGS)
    matching = FeatureMatching(args, [model])
    draw = torch.Generator().manual_seed(3)
    numbers = torch.tensor([[-1, -1, 0, 1, 2, -1, -1, -1], [-1, 3, 4, 5, 6, 7, 8, -1]])
    scale = torch.rand(BATCH, LENGTH, generator=draw, dtype=torch.float64)
    teacher = [torch.randn(9, WIDE, generator=draw, dtype=torch.float64) for _ in PAIRS]
    ids = torch.randint(0, small_gpt.VOCABULARY, (BATCH, LENGTH), generator=draw)
    mask = torch.ones(LENGTH, LENGTH, dtype=torch.bool).triu(1)[None, None]
    given = {"input_ids": ids, "position_ids": torch.arange(LENGTH).expand(BATCH, -1), "attention_mask": mask}

    stored = {
        index: FeatureRows((rows,), torch.arange(9)).store(tensor_group(), False) for index, rows in enumerate(teacher)
    }
    data = {"teacher_features": stored, "loss_scale": scale}
    with matching.of(matching.read(args, data, SimpleNamespace(number=numbers), 0.0)):
        logits = model(**given)
    above = torch.randn(logits.shape, generator=draw, dtype=torch.float64)
    found = _backward(model, (logits * above).sum())
    (metrics,) = matching.collect()

    hidden = {}
    config.recompute_granularity = None
    for layer in model.decoder.layers:
        layer.register_forward_hook(lambda layer, _, output: hidden.update({layer.layer_number: output[0]}))
    loss = (model(**given) * above).sum()
    weighed = _plain_loss(rank, config, model, hidden, numbers, scale, teacher)
    true = _backward(model, loss + weighed.sum())
    pairs = [(found[name], true[name]) for name in true]
    return [(len(found), len(true)), (metrics["loss"][0], weighed.detach().sum()), *pairs]


def _plain_loss(rank: int, config, model, hidden: dict, numbers, scale, teacher: list) -> torch.Tensor:
    """Of the tokens whose positions lie here, one after the other."""
    part = LENGTH // config.tensor_model_parallel_size if config.sequence_parallel else LENGTH
    start = rank * part if config.sequence_parallel else 0
    losses = []
    for index, (student, of_teacher) in enumerate(PAIRS):
        projection = model.kd_features[f"{student}_{of_teacher}"].weight
        for sample in range(BATCH):
            for position in range(start, start + part):
                if (number := numbers[sample, position]) >= 0:
                    row = projection @ hidden[student][position - start, sample]
                    loss = torch.nn.functional.mse_loss(row, teacher[index][number])
                    # The label, and with it its loss_scale, stands one position further on.
                    losses.append(WEIGHT / len(PAIRS) * scale[sample, (position + 1) % LENGTH] * loss)
    return torch.stack(losses)


def _backward(model, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}


@pytest.mark.parametrize("tensor_parallel", [1, 2])
def test_values_and_gradients_are_plain_pytorchs(tensor_parallel):
    ranks = run_distributed(differences_on_rank, tensor_parallel, tensor_parallel)
    for case in ranks[0]:
        shared = case == "sequence parallelism"
        expected = sum(rank[case][1][1] for rank in ranks) if shared else ranks[0][case][1][1]
        for rank in ranks:
            (found, true), (loss, _), *gradients = rank[case]
            assert found == true > 20, case
            assert_close(loss, expected.float(), 1e-6, case)  # metrics are float32
            for ours, truth in gradients:
                assert_close(ours, truth, 1e-10, case)
