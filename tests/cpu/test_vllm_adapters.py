"""vLLM's LoRA beside a trainer whose weights lie on the same device."""

import pytest
import torch

pytestmark = pytest.mark.usefixtures("cpu_backend")


def test_the_trainers_adapter_keeps_its_scale():
    from vllm.lora.lora_weights import LoRALayerWeights

    matrices = torch.ones(4, 6), torch.ones(6, 4)
    adapter = LoRALayerWeights("layer", 4, 16, *matrices)
    made = adapter.optimize()
    assert (made.lora_b == 4).all()
    assert made.scaling == 1
    assert (matrices[1] == 1).all()
