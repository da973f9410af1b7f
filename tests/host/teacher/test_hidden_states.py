"""Which models' logits are hidden states @ weight, and what goes into their output layers."""

import pytest
import torch

from tests.gloo_ranks import run_distributed
from tests.launching.commands import HAS_GPU

pytestmark = pytest.mark.skipif(HAS_GPU, reason="ranks without a GPU of their own")
HIDDEN, VOCABULARY = 16, 32


def start(stages: int = 1):
    from swift_kd_plugin.cpu import switch_on

    switch_on()
    from megatron.core import mpu
    from megatron.core.tensor_parallel.random import model_parallel_cuda_manual_seed

    mpu.initialize_model_parallel(torch.distributed.get_world_size() // stages, stages)
    model_parallel_cuda_manual_seed(7)


def make_config(**changes):
    from megatron.core.transformer import TransformerConfig

    settings = {"num_layers": 1, "hidden_size": HIDDEN, "num_attention_heads": 2, "gradient_accumulation_fusion": False}
    sizes = {"tensor_model_parallel_size": torch.distributed.get_world_size()}
    return TransformerConfig(**settings, **{**sizes, **changes})


def make_layer(config, bias: bool = False):
    from megatron.core.tensor_parallel import ColumnParallelLinear

    return ColumnParallelLinear(
        HIDDEN, VOCABULARY, config=config, init_method=torch.nn.init.normal_, bias=bias, gather_output=False
    )


def make_model(layer, kind: type | None = None):
    """A model as far as its output layer; the layers before it have no say here."""
    from mcore_bridge.model import GPTModel

    model = (kind or GPTModel).__new__(kind or GPTModel)
    torch.nn.Module.__init__(model)
    model.post_process, model.output_layer = True, layer
    return model


def reasons_on_rank(rank: int) -> dict[str, str | None]:
    start()
    from mcore_bridge.model.mm_gpts.gemma4 import Gemma4TextGPTModel
    from mcore_bridge.model.mm_gpts.muse_glimmer import MuseGlimmerTextGPTModel

    from swift_kd_plugin.host.teacher.hidden_states import why_not_linear

    config = make_config()
    elsewhere = make_model(torch.nn.Linear(HIDDEN, VOCABULARY))
    elsewhere.post_process = False
    models = {
        "plain": make_model(make_layer(config)),
        "softcap": make_model(make_layer(config), Gemma4TextGPTModel),
        "scaled": make_model(make_layer(config), MuseGlimmerTextGPTModel),
        "bias": make_model(make_layer(config, bias=True)),
        "another layer": make_model(torch.nn.Linear(HIDDEN, VOCABULARY)),
        "an earlier stage": elsewhere,
    }
    return {name: why_not_linear(model) for name, model in models.items()}


def test_heads_of_another_kind_are_recognised():
    (reasons,) = run_distributed(reasons_on_rank, 1)
    assert reasons == {
        "plain": None,
        "softcap": "Gemma4TextGPTModel has an output layer of its own kind",
        "scaled": "MuseGlimmerTextGPTModel has an output layer of its own kind",
        "bias": "its output layer has a bias",
        "another layer": "its output layer is a Linear",
        "an earlier stage": None,
    }


def reason_on_stage(rank: int, bias: bool) -> str | None:
    """Of a model that two stages share, of which the last alone has the output layer."""
    start(stages=2)
    from swift_kd_plugin.host.teacher.hidden_states import reason_for_logits

    model = make_model(make_layer(make_config(tensor_model_parallel_size=1), bias))
    model.post_process = rank == 1
    return reason_for_logits([model])


def test_every_pipeline_stage_knows_what_the_last_one_sees():
    assert run_distributed(reason_on_stage, 2, True) == ["its output layer has a bias"] * 2
    assert run_distributed(reason_on_stage, 2, False) == [None, None]


def caught_on_rank(rank: int, sequence_parallel: bool) -> tuple[torch.Tensor, ...]:
    """Logits by the layer's own forward and from the head, and the gradient of the hidden states that were caught."""
    start()
    from swift_kd_plugin.host.teacher.hidden_states import stop_before_lm_head

    layer = make_layer(make_config(sequence_parallel=sequence_parallel))
    model = make_model(layer)
    torch.manual_seed(3)
    hidden = torch.randn(6, 1, HIDDEN)
    mine = hidden.chunk(2)[rank] if sequence_parallel else hidden
    mine.requires_grad_()
    with stop_before_lm_head(model) as caught:
        assert model._forward_output_layer(mine).numel() == 0
    caught.head.inputs[0].backward(hidden[:, 0].detach())
    with torch.no_grad():
        logits = caught.head.logits(out=torch.empty(6, caught.head.width))
        own = model._forward_output_layer(mine)[:, 0]
    return logits, own, mine.grad, mine.detach()


@pytest.mark.parametrize("sequence_parallel", [False, True])
def test_what_is_caught_makes_the_layers_own_logits(sequence_parallel):
    """The full gradient comes back whole, or as this rank's positions under sequence parallelism."""
    for logits, own, gradient, hidden in run_distributed(caught_on_rank, 2, sequence_parallel):
        torch.testing.assert_close(logits, own, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(gradient, hidden)
