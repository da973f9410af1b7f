"""Whether Megatron builds the model of config.json. mcore-bridge leaves out what it has no place for, without a word.

Each rule compares what transformers' model does with what was built; all are held to logits by
tests/host/start/test_model_differences.py.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from swift_kd_plugin.host.start.checkpoint_weights import Weights
from swift_kd_plugin.host.start.ignored_keys import ignored_keys, is_read
from swift_kd_plugin.host.start.rotary_frequencies import rotary_difference

SILU = ("silu", "swish")
# What transformers' router does whatever config.json says; remote code reads `scoring_func`.
SIGMOID_ROUTERS = ("deepseek_v3", "deepseek_v32", "dots1", "glm4_moe", "glm4_moe_lite", "kimi_k2", "minimax_m2")
SOFTMAX_ROUTERS = ("deepseek_v2", "qwen2_moe", "qwen3_moe", "olmoe", "ernie4_5_moe")
# Keys that change outputs, that mcore-bridge does not read, and the values at which they change nothing.
UNREAD_KEYS: dict[str, tuple[Any, ...]] = {
    "clip_qkv": (None,),
    "router_jitter_noise": (None, 0),
    "attn_logit_softcapping": (None, 0),
    "attn_logit_softcap": (None, 0),
    "final_logit_softcapping": (None, 0),
    "logits_soft_cap": (None, 0),
    "logit_scale": (None, 1),
    "logits_scaling": (None, 1),
    "lm_head_multiplier": (None, 1),
    "embedding_multiplier": (None, 1),
    "residual_multiplier": (None, 1),
    "scale_emb": (None, 1),
    "query_pre_attn_scalar": (None,),
    "attention_multiplier": (None,),
    "alibi": (None, False),
    "parallel_attn": (None, False),
    "use_parallel_residual": (None, False),
    "resid_pdrop": (None, 0),
    "embd_pdrop": (None, 0),
    "hidden_dropout": (None, 0),
    "hidden_dropout_prob": (None, 0),
}
# What their code in mcore-bridge reads does not stand in its table of keys.
OWN_CODE = ("gemma4", "gemma4_unified", "muse_glimmer")
NEGLIGIBLE_NORM = 1e-6  # ERNIE's floor under the sum of a token's router weights


@dataclass(frozen=True)
class Described:
    """A model by its configuration, as Megatron has built it, and by the names of its weights."""

    hf: Any
    built: Any
    weights: Weights

    def has(self, key: str, default: Any = None) -> Any:
        value = getattr(self.hf, key, default)
        return default if value is None else value


def text_config(hf_config: Any) -> Any:
    """The part of a configuration that is about the language model."""
    for name in ("thinker_config", "text_config", "llm_config"):
        hf_config = getattr(hf_config, name, None) or hf_config
    return hf_config


def differences(model: Described, longest: int | None) -> list[str]:
    """What config.json asks for and Megatron does not do.

    Args:
        longest: of the sequences; None if nothing bounds them.
    """
    found = [*_window(model, longest), *_activation(model), *_small_weights(model)]
    if rotary := rotary_difference(model.hf, model.built, longest):
        found.append(rotary)
    found += [*_routers(model), *_moe_layers(model), *_unread_keys(model)]
    return [*found, *ignored_keys(model)]


def window_of(model: Described) -> int | None:
    """The shortest sliding window that Megatron leaves out, in tokens; None if there is none."""
    window, layers = model.has("sliding_window"), model.has("num_hidden_layers", 0)
    if not isinstance(window, int) or getattr(model.built, "csa_compress_ratios", None):
        return None
    slides = _sliding_layers(model, layers)
    if not any(slides) or _built_slides(model.built, window, layers) == slides:
        return None
    return window


def _sliding_layers(model: Described, layers: int) -> list[bool]:
    """Which layers transformers' model gives a window."""
    if not is_read(model.hf, "sliding_window"):
        return [False] * layers
    kinds = model.has("layer_types")
    if kinds:
        return ["sliding" in kind for kind in kinds[:layers]]
    used = getattr(model.hf, "use_sliding_window", None)
    if used is None:
        used = "sliding_window" in getattr(type(model.hf), "__dataclass_fields__", ())
    return [bool(used)] * layers


def _built_slides(built: Any, window: int, layers: int) -> list[bool]:
    size, pattern = built.window_size, built.window_attn_skip_freq
    if size is None or size[0] + 1 != window:
        return [False] * layers
    if pattern is None:
        return [True] * layers
    return (
        [bool(value) for value in pattern]
        if isinstance(pattern, list)
        else [(number + 1) % pattern != 0 for number in range(layers)]
    )


def _window(model: Described, longest: int | None) -> Iterator[str]:
    window = window_of(model)
    if window is not None and (longest is None or longest > window):
        bound = "whose length nothing bounds (give --max_length)" if longest is None else f"of up to {longest:,} tokens"
        yield f"sliding_window {window:,} is left out, and attention goes over all of a sequence {bound}"


def _activation(model: Described) -> Iterator[str]:
    asked = model.has("hidden_act", model.has("hidden_activation", "silu"))
    if model.built.swiglu and asked not in SILU:
        yield f"hidden_act {asked!r} becomes silu"


def _small_weights(model: Described) -> Iterator[str]:
    """Biases and norms that the checkpoint has and the model has not."""
    built = model.built
    if model.has("mlp_bias", False):
        yield "mlp_bias true cannot be loaded"
    for pattern, is_built in (
        (r"self_attn\.[qkv]_proj\.bias", built.add_qkv_bias),
        (r"self_attn\.(o_proj|dense)\.bias", built.add_bias_linear),
        (r"mlp\.(.*\.)?(gate|up|down)_proj\.bias", built.add_bias_linear),
        (r"self_attn\.(q_a|kv_a)_proj(_with_mqa)?\.bias", not built.multi_latent_attention),
    ):
        if not is_built and (name := model.weights.find(rf"layers\.\d+\.{pattern}")):
            yield f"the bias {name} is left out"
    qk_norm = built.qk_layernorm or built.qk_l2_norm or built.multi_latent_attention
    if not qk_norm and (name := model.weights.find(r"layers\.\d+\.self_attn\.(q|query)_(layer)?norm\.weight")):
        yield f'the norm {name} is left out (config.json lacks "use_qk_norm": true)'


def _routers(model: Described) -> Iterator[str]:
    built, kind = model.built, getattr(model.hf, "model_type", "")
    if not built.num_moe_experts:
        return
    scores = built.moe_router_score_function
    wanted = "sigmoid" if kind in SIGMOID_ROUTERS else "softmax" if kind in SOFTMAX_ROUTERS else scores
    if scores != wanted:
        yield f'the router\'s {wanted} becomes {scores} (config.json lacks "scoring_func": "{wanted}")'
    normalised = getattr(model.hf, "norm_topk_prob", True if kind in SIGMOID_ROUTERS else None)
    if kind == "deepseek_v2" and normalised:
        yield "norm_topk_prob true normalises the weights of a token's experts; transformers' deepseek_v2 does not"
    if scores == "sigmoid" and normalised is not None and normalised != (built.moe_router_topk > 1):
        done = "are" if built.moe_router_topk > 1 else "are not"
        yield f"norm_topk_prob {normalised} is left out: the weights of a token's experts {done} normalised"
    if model.has("topk_method") == "greedy" and (built.moe_router_num_groups or 1) > 1:
        yield f"topk_method 'greedy' becomes a choice within {built.moe_router_group_topk} groups"
    if model.has("moe_norm_min", 0) > NEGLIGIBLE_NORM:
        yield f"moe_norm_min {model.hf.moe_norm_min} is left out"
    if not built.moe_router_enable_expert_bias and (name := model.weights.find_nonzero(r"e_score_correction_bias$")):
        yield f"the router's correction {name} is left out"


def _moe_layers(model: Described) -> Iterator[str]:
    layers, built = model.has("num_hidden_layers", 0), model.built
    if not built.num_moe_experts:
        return
    step, dense = model.has("decoder_sparse_step", 1), model.has("mlp_only_layers", ())
    asked = [number not in dense and (number + 1) % step == 0 for number in range(layers)]
    keys = "decoder_sparse_step and mlp_only_layers"
    if not dense and step == 1:
        asked, keys = _other_moe_layers(model, layers)
    frequency = built.moe_layer_freq
    made = [number % frequency == 0 for number in range(layers)] if isinstance(frequency, int) else frequency
    if asked is not None and [bool(value) for value in made][:layers] != asked:
        yield f"{keys}: the experts would be in other layers"


def _other_moe_layers(model: Described, layers: int) -> tuple[list[bool] | None, str]:
    """Layers with experts by the keys of ERNIE and GLM; None where config.json has none of them."""
    if kinds := model.has("mlp_layer_types"):
        return [kind == "sparse" for kind in kinds[:layers]], "mlp_layer_types"
    interval = model.has("moe_layer_interval")
    if interval is None:
        return None, ""
    first, last = model.has("moe_layer_start_index", 0), model.has("moe_layer_end_index", -1)
    last = layers - 1 if last == -1 else last
    asked = [(number + 1) % interval == 0 and first <= number <= last for number in range(layers)]
    return asked, "moe_layer_interval and moe_layer_end_index"


def _unread_keys(model: Described) -> Iterator[str]:
    """Keys that the class of the configuration has; another class' key in config.json is read by nobody."""
    if model.built.hf_model_type in OWN_CODE:
        return
    kind = type(model.hf)
    declared = kind.__dataclass_fields__ if kind.__module__.startswith("transformers.") else UNREAD_KEYS
    for key, neutral in UNREAD_KEYS.items():
        value = getattr(model.hf, key, None)
        if key in declared and value not in neutral:
            yield f"{key} {value} is left out"
