"""Adapters that would make another model: told from their files, by what PEFT itself makes of them."""

from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

from swift_kd_plugin.errors import KDError
from swift_kd_plugin.generation.adapters import adapts_tied_weights, check_adapter, is_tied
from tests.tiny_models import make_dense

QUESTION = torch.arange(1, 9)[None]


def adapt(model: Path, folder: Path, **settings) -> Path:
    """A trained adapter of a model."""
    torch.manual_seed(0)
    adapted = get_peft_model(
        AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32), LoraConfig(r=4, **settings)
    )
    with torch.no_grad():
        for name, weight in adapted.named_parameters():
            if "lora_" in name:
                weight.add_(0.2 * torch.randn_like(weight))
    adapted.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> dict[bool, Path]:
    folder = tmp_path_factory.mktemp("models")
    return {tied: make_dense(folder / str(tied), tie_word_embeddings=tied) for tied in (True, False)}


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("layer", ["embed_tokens", "lm_head", "q_proj"])
def test_it_is_refused_where_a_merge_makes_another_model(models, layer, tied, tmp_path):
    folder = adapt(models[tied], tmp_path / "adapter", target_modules=[layer])
    adapted = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(models[tied], dtype=torch.float32), folder)
    with torch.no_grad():
        before = adapted(QUESTION).logits
        after = adapted.merge_and_unload()(QUESTION).logits
    is_another = not torch.allclose(before, after, atol=1e-3)
    assert is_another == (tied and layer != "q_proj")
    if not is_another:
        check_adapter(folder, models[tied], "vllm")
        return
    with pytest.raises(KDError, match="of a model that has one tensor for embedding and output, with which vLLM ans"):
        check_adapter(folder, models[tied], "vllm")
    check_adapter(folder, models[tied], "transformers")  # which keeps it beside the weights


@pytest.mark.parametrize("start", ["pissa", "olora"])
def test_it_is_refused_where_its_start_changed_the_base(models, start, tmp_path):
    folder = adapt(models[False], tmp_path / "adapter", target_modules=["q_proj"], init_lora_weights=start)
    with pytest.raises(
        KDError, match=f"was started from {start}, which changes the base model, with which vLLM answers"
    ):
        check_adapter(folder, models[False], "vllm")


def test_a_tied_model_is_known_by_its_files(models, tmp_path):
    assert is_tied(models[True])
    assert not is_tied(models[False])
    assert not is_tied(tmp_path)
    assert adapts_tied_weights(["model.layers.0.self_attn.q_proj.weight"], models[True]) is None
    assert adapts_tied_weights(["lm_head.weight"], models[True]) == "lm_head.weight"
