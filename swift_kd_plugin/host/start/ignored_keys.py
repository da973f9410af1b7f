"""Keys of config.json that mcore-bridge reads of every kind of model, though this one has no such key."""

import inspect
import re
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

Differs = Callable[[Any, Any], bool]


def is_read(hf: Any, key: str) -> bool:
    """Whether transformers' model reads a key: its configuration has it, or its code looks for it. Remote code may."""
    kind = type(hf)
    return (
        not kind.__module__.startswith("transformers.models.")
        or key in kind.__dataclass_fields__
        or re.search(rf"\b{key}\b", _code_of(kind)) is not None
    )


@cache
def _code_of(kind: type) -> str:
    file = Path(inspect.getfile(kind))
    modeling = file.with_name(file.name.replace("configuration_", "modeling_"))
    return modeling.read_text(encoding="utf-8") if modeling.is_file() else ""


def _lacks(pattern: str) -> Differs:
    """Asks for weights that the checkpoint does not have."""
    return lambda value, model: bool(value and model.weights.file_of and not model.weights.find(pattern))


def _of_experts(differs: Differs) -> Differs:
    return lambda value, model: bool(model.built.num_moe_experts and differs(value, model))


def _turns_otherwise(value: Any, model: Any) -> bool:
    """Some kinds turn pairs that lie side by side in any case."""
    in_any_case = model.built.multi_latent_attention or model.built.llm_model_type in INTERLEAVED
    return bool(value) and not in_any_case


INTERLEAVED = ("ernie4_5", "ernie4_5_moe", "glm4")
# By the setting of Megatron that such a key becomes: whether its value makes another model.
SETTINGS: dict[str, Differs] = {
    "rotary_interleaved": _turns_otherwise,
    "activation_func_clamp_value": lambda value, model: bool(value),
    "num_moe_experts": _lacks(r"experts\."),
    "q_lora_rank": _lacks(r"\.(q_a|kv_a)_proj"),
    "kv_lora_rank": _lacks(r"\.(q_a|kv_a)_proj"),
    "qk_layernorm": _lacks(r"(q|query|q_a)_?(layer)?norm"),
    "add_qkv_bias": _lacks(r"(q|qkv|query_key_value|c_attn)(_proj)?\.bias"),
    "first_k_dense_replace": _of_experts(lambda value, model: value > 0 and not hasattr(model.hf, "mlp_layer_types")),
    "moe_router_num_groups": _of_experts(lambda value, model: value > 1),
    "moe_router_topk_scaling_factor": _of_experts(lambda value, model: value != 1),
    "moe_shared_expert_intermediate_size": _of_experts(_lacks(r"shared_expert")),
    "n_shared_experts": _of_experts(_lacks(r"shared_expert")),
}


def ignored_keys(model: Any) -> Iterator[str]:
    """What would take effect in Megatron alone.

    Args:
        model: as `model_differences.Described`.
    """
    from mcore_bridge.config.parser import config_mapping

    for setting, differs in SETTINGS.items():
        given = {key: value for key in config_mapping[setting] if (value := getattr(model.hf, key, None)) is not None}
        meant = [value for key, value in given.items() if is_read(model.hf, key)]
        key, value = next(iter(given.items()), (None, None))
        if key and not is_read(model.hf, key) and value not in meant and differs(value, model):
            yield f"{key} {value} would take effect, which transformers' {model.hf.model_type} does not know"
