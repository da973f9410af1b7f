"""Whether Megatron turns queries and keys by the same angles as transformers' model of the same config.json."""

import importlib
import inspect
from typing import Any

import torch

TOLERANCE = 1e-5


def rotary_difference(hf: Any, built: Any, longest: int | None) -> str | None:
    """What differs, in words; None if nothing does, or where transformers has no single module to compare with."""
    rope = getattr(hf, "rope_parameters", None) or {}
    kind = rope.get("rope_type", rope.get("type", "default"))
    if built.multi_latent_attention:
        if getattr(hf, "rope_interleave", True) is False:
            return "rope_interleave false becomes true"
        if kind == "yarn" and not {"mscale", "mscale_all_dim"} <= rope.keys():
            return "rope_parameters of type yarn lack mscale and mscale_all_dim, without which nothing is built"
    if kind == "longrope" and (short := rope.get("original_max_position_embeddings")):
        known = built.original_max_position_embeddings or built.max_position_embeddings
        if known != short and (longest is None or longest > short):
            return f"longrope keeps its short factors beyond {short:,} tokens"
    module = _rotary_module(hf)
    if module is None or built.is_multimodal or built.position_embedding_type != "rope":
        return None
    return _compare(module(hf), built)


def _compare(theirs: Any, built: Any) -> str | None:
    from mcore_bridge.model.rope import get_rope_inv_freq

    mine, scaling = get_rope_inv_freq(built)
    if len(mine) != len(theirs.inv_freq):
        return (
            f"partial_rotary_factor turns {2 * len(theirs.inv_freq)} numbers of a head, and {2 * len(mine)} would be "
            "turned"
        )
    if not torch.allclose(mine.float(), theirs.inv_freq.float(), rtol=TOLERANCE, atol=0):
        return "rope_parameters give other frequencies"
    if abs(scaling - theirs.attention_scaling) > TOLERANCE:
        return f"rope_parameters scale attention by {theirs.attention_scaling:.4g}, and {scaling:.4g} would be used"
    return None


def _rotary_module(hf: Any) -> type | None:
    """transformers' own module for the model, which config.json's class stands beside."""
    name = type(hf).__module__
    if not name.startswith("transformers.models.") or "configuration_" not in name:
        return None
    modeling = importlib.import_module(name.replace("configuration_", "modeling_"))
    found = [
        kind
        for label, kind in inspect.getmembers(modeling, inspect.isclass)
        if label.endswith("RotaryEmbedding") and "Vision" not in label and kind.__module__ == modeling.__name__
    ]
    return found[0] if len(found) == 1 else None
