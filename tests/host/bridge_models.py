"""Tiny models of many architectures: their logits by transformers and by Megatron, loaded through mcore-bridge."""

import shutil
import tempfile
from pathlib import Path

import torch

TOKENS, VOCABULARY = 24, 96
SIZES = {
    **{"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "head_dim": 16, "vocab_size": VOCABULARY},
    **{"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128},
    **{"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2},
}
Case = tuple[str, dict]


def compare_cases(rank: int, cases: list[Case]) -> list[tuple[float | str, list[str]]]:
    """Of each case the relative distance of Megatron's logits (or the error that loading ends with), and what is said.

    transformers' models come first: mcore-bridge changes how they are made.
    """
    from swift_kd_plugin.cpu import switch_on

    switch_on()
    from megatron.core import mpu
    from megatron.core.tensor_parallel.random import model_parallel_cuda_manual_seed

    mpu.initialize_model_parallel()
    model_parallel_cuda_manual_seed(7)
    folders = [Path(tempfile.mkdtemp()) for _ in cases]
    try:
        theirs = [_make(folder, *case) for folder, case in zip(folders, cases, strict=True)]
        return [_compare(folder, *made) for folder, made in zip(folders, theirs, strict=True)]
    finally:
        for folder in folders:
            shutil.rmtree(folder)


def _make(folder: Path, kind: str, settings: dict) -> tuple[torch.Tensor, torch.Tensor]:
    """A model with random weights, biases and norms among them, and its logits."""
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(3)
    settings = dict(settings)
    correction = settings.pop("correction", 0.0)
    config = AutoConfig.for_model(kind, **{**SIZES, **settings})
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").float().eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "correction_bias" in name:
                parameter.normal_(0, 1).mul_(correction)
            elif parameter.dim() == 1:
                parameter.add_(torch.randn_like(parameter) * 0.2)
            else:
                parameter.normal_(0, parameter.shape[-1] ** -0.5 if parameter.dim() == 2 else 0.15)
        ids = torch.randint(3, VOCABULARY, (1, TOKENS))
        logits = model(ids).logits[0]
    model.save_pretrained(folder)
    return ids, logits


def _compare(folder: Path, ids: torch.Tensor, theirs: torch.Tensor) -> tuple[float | str, list[str]]:
    from mcore_bridge import hf_to_mcore_config
    from mcore_bridge.model.register import get_mcore_model_type, get_model_meta
    from transformers import AutoConfig

    from swift_kd_plugin.host.start.checkpoint_weights import Weights
    from swift_kd_plugin.host.start.model_differences import Described, differences, text_config

    hf = AutoConfig.from_pretrained(folder)
    kind = get_mcore_model_type(hf.model_type)
    if kind is None:
        return "no such model in mcore-bridge", ["no such model in mcore-bridge"]
    off = ("gradient_accumulation_fusion", "masked_softmax_fusion", "bias_dropout_fusion", "apply_rope_fusion")
    settings = {**hf_to_mcore_config(hf), **dict.fromkeys(off, False), "bias_activation_fusion": False}
    config = get_model_meta(kind).config_cls(**settings, mcore_model_type=kind, params_dtype=torch.float32)
    said = differences(Described(text_config(hf), config, Weights(folder)), TOKENS)
    try:
        ours = _megatron_logits(config, folder, ids)
    except (KeyError, AssertionError, RuntimeError, AttributeError, TypeError) as error:
        return repr(error), said
    return ((ours - theirs).norm() / theirs.norm()).item(), said


@torch.no_grad()
def _megatron_logits(config, folder: Path, ids: torch.Tensor) -> torch.Tensor:
    from mcore_bridge import get_mcore_model

    (model,) = get_mcore_model(config)
    config.bridge.load_weights([model], str(folder))
    mask = torch.ones(TOKENS, TOKENS, dtype=torch.bool).triu(1)[None, None]
    positions = torch.arange(TOKENS)[None]
    return model.float().eval()(input_ids=ids, position_ids=positions, attention_mask=mask)[0, :, :VOCABULARY].float()
