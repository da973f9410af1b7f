"""Logits of tiny models, transformers' against Megatron's: equal, or what differs is said.

24 tokens pass a window of 4 and one of 23, and not one of 24.
"""

import pytest

from tests.gloo_ranks import run_distributed
from tests.host.bridge_models import compare_cases
from tests.launching.commands import HAS_GPU

pytestmark = pytest.mark.skipif(HAS_GPU, reason="ranks without a GPU of their own")
OLMOE = {"num_experts": 4, "num_experts_per_tok": 2}
EXPERTS = OLMOE | {"moe_intermediate_size": 32}
SHARED = EXPERTS | {"shared_expert_intermediate_size": 48}
ROUTED = {
    **{"n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "n_shared_experts": 1},
    **{"n_group": 1, "topk_group": 1, "first_k_dense_replace": 1},
}
LATENT = {
    **{"q_lora_rank": 32, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 16, "v_head_dim": 16},
    **{"num_key_value_heads": 4, "head_dim": 8},
}
V3 = ROUTED | LATENT | {"scoring_func": "sigmoid"}
V2 = ROUTED | LATENT | {"n_group": None, "topk_group": None}
ERNIE = {"moe_num_experts": 4, "moe_k": 2, "moe_intermediate_size": 32, "moe_num_shared_experts": 1}
LOCAL = {"num_local_experts": 4, "num_experts_per_tok": 2}
MINIMAX = LOCAL | {"use_qk_norm": True, "scoring_func": "sigmoid"}
WINDOW = {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 0}
SLIDING = {"layer_types": ["sliding_attention"] * 2}


def rope(**parameters) -> dict:
    return {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, **parameters}}


YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
LLAMA3 = {
    **{"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
    "original_max_position_embeddings": 32,
}
LONG = {"rope_type": "longrope", "factor": 4.0, "short_factor": [1.1] * 8, "long_factor": [2.0] * 8}
EQUAL = [
    *(("qwen2", {}), ("qwen3", {}), ("llama", {}), ("glm4", {}), ("ernie4_5", {}), ("qwen2_moe", SHARED)),
    *(("qwen3_moe", EXPERTS), ("olmoe", OLMOE), ("deepseek_v2", V2), ("deepseek_v3", V3)),
    ("dots1", ROUTED | {"norm_topk_prob": True}),
    *(("glm4_moe", ROUTED), ("glm4_moe_lite", ROUTED | LATENT), ("minimax_m2", MINIMAX), ("ernie4_5_moe", ERNIE)),
    *(("llama", {"hidden_act": "swish"}), ("llama", {"tie_word_embeddings": True}), ("llama", {"rms_norm_eps": 0.1})),
    *(("llama", {"sliding_window": 4}), ("llama", rope(rope_theta=1234.5)), ("llama", {"head_dim": 32})),
    *(("llama", rope(rope_type="linear", factor=4.0)), ("llama", rope(**YARN)), ("llama", rope(**LLAMA3))),
    ("llama", rope(rope_type="dynamic", factor=4.0) | {"max_position_embeddings": 16}),
    ("llama", rope(**LONG, original_max_position_embeddings=64)),
    *(("qwen3", WINDOW | {"use_sliding_window": False}), ("qwen3", WINDOW | {"max_window_layers": 2})),
    *(("qwen3", WINDOW | {"sliding_window": 24}), ("qwen2_moe", SHARED | {"norm_topk_prob": True})),
    *(("qwen3_moe", EXPERTS | {"norm_topk_prob": True}), ("glm4", {"attention_bias": True})),
    *(("glm4_moe", ROUTED | {"n_group": 2}), ("deepseek_v3", V3 | {"q_lora_rank": None})),
    ("deepseek_v3", V3 | rope(**YARN, mscale=0.7, mscale_all_dim=1.0)),
    ("deepseek_v2", V2 | {"topk_method": "group_limited_greedy", "n_group": 2, "topk_group": 1}),
    ("minimax_m2", MINIMAX | {"rotary_dim": 8}),
    # transformers' Llama has no window, and knows none of these keys.
    *(("llama", {"sliding_window": 4, **more}) for more in (SLIDING, {"use_sliding_window": True})),
    *(("llama", {key: 2}) for key in ("routed_scaling_factor", "n_group", "moe_topk", "first_k_dense_replace")),
    *(("llama", {"rope_interleave": False}), ("llama", {"shared_expert_intermediate_size": 64})),
    *(("qwen3", {"use_qk_norm": True}), ("qwen3_moe", EXPERTS | {"routed_scaling_factor": 1.0})),
    *(("qwen3_moe", EXPERTS | {"n_group": 1, "topk_group": 1}), ("qwen2", {"head_dim": 32})),
    *(("llama", {"qkv_bias": True, "use_bias": True}), ("ernie4_5_moe", ERNIE | {"num_experts_per_tok": 3})),
    *(("qwen2", {"qkv_bias": True}), ("deepseek_v3", V3 | {"num_nextn_predict_layers": 1, "aux_loss_alpha": 0.1})),
    *(("ernie4_5", {"rope_interleave": True}), ("llama", {"qk_norm": False, "q_lora_rank": None})),
]
DIFFERENT = [
    *(("qwen2", WINDOW, "sliding_window 4"), ("qwen3", WINDOW | {"max_window_layers": 1}, "sliding_window 4")),
    *(("qwen3", WINDOW | {"sliding_window": 23}, "sliding_window 23"), ("qwen3_moe", EXPERTS | WINDOW, "of up to 24")),
    ("qwen2_moe", SHARED | WINDOW | SLIDING, "sliding_window 4"),
    ("dots1", ROUTED | SLIDING | {"sliding_window": 4}, "sliding_window 4"),
    *(("llama", {"hidden_act": act}, f"hidden_act '{act}'") for act in ("gelu", "gelu_pytorch_tanh", "relu")),
    ("qwen3_moe", EXPERTS | {"hidden_act": "gelu"}, "hidden_act 'gelu'"),
    *(("llama", {"attention_bias": True}, "o_proj.bias"), ("qwen3", {"attention_bias": True}, "o_proj.bias")),
    *(("qwen2", {"attention_bias": False}, "_proj.bias"), ("ernie4_5", {"use_bias": True}, "mlp.down_proj.bias")),
    ("llama", {"mlp_bias": True}, "mlp_bias true cannot be loaded"),
    ("deepseek_v3", V3 | {"attention_bias": True}, "kv_a_proj_with_mqa.bias"),
    ("llama", {"partial_rotary_factor": 0.5}, "partial_rotary_factor turns 16 numbers of a head, and 8 would be"),
    ("glm4", rope(partial_rotary_factor=0.25), "partial_rotary_factor turns 4 numbers"),
    ("llama", rope(**LONG, original_max_position_embeddings=16), "longrope"),
    ("deepseek_v3", V3 | rope(**YARN), "lack mscale"),
    ("deepseek_v3", V3 | {"rope_interleave": False}, "rope_interleave"),
    *(("deepseek_v3", ROUTED | LATENT, '"scoring_func": "sigmoid"'), ("minimax_m2", LOCAL, "q_norm.weight")),
    ("deepseek_v3", V3 | {"num_experts_per_tok": 1}, "norm_topk_prob True"),
    ("dots1", ROUTED | {"norm_topk_prob": False}, "norm_topk_prob False"),
    ("deepseek_v2", V2 | {"norm_topk_prob": True}, "norm_topk_prob true"),
    ("deepseek_v2", V2 | {"topk_method": "greedy", "n_group": 2, "topk_group": 1}, "topk_method"),
    ("olmoe", OLMOE | {"clip_qkv": 0.5}, "clip_qkv 0.5"),
    ("qwen3_moe", EXPERTS | {"decoder_sparse_step": 2}, "decoder_sparse_step"),
    ("qwen3_moe", EXPERTS | {"mlp_only_layers": [0]}, "mlp_only_layers"),
    ("ernie4_5_moe", ERNIE | {"moe_layer_interval": 2, "moe_layer_start_index": 0}, "moe_layer_interval"),
    ("ernie4_5_moe", ERNIE | {"moe_norm_min": 0.9}, "moe_norm_min 0.9"),
    ("ernie4_5_moe", ERNIE | {"correction": 1.0}, "e_score_correction_bias"),
    ("qwen3_moe", EXPERTS | {"routed_scaling_factor": 2.0}, "routed_scaling_factor 2.0 would take effect"),
    ("qwen3_moe", EXPERTS | {"router_scaling_factor": 2.0}, "router_scaling_factor 2.0"),
    ("qwen3_moe", EXPERTS | {"n_group": 2, "topk_group": 1}, "n_group 2"),
    ("qwen3_moe", EXPERTS | {"first_k_dense_replace": 1}, "first_k_dense_replace 1"),
    ("qwen3_moe", EXPERTS | {"moe_layer_start_index": 1}, "moe_layer_start_index 1"),
    ("qwen3_moe", EXPERTS | {"shared_expert_intermediate_size": 64}, "shared_expert_intermediate_size 64"),
    ("qwen3_moe", EXPERTS | {"n_shared_experts": 1}, "n_shared_experts 1"),
    ("qwen3_moe", EXPERTS | {"scoring_func": "sigmoid"}, "scoring_func"),
    ("olmoe", OLMOE | {"routed_scaling_factor": 2.0}, "routed_scaling_factor 2.0"),
    *(("llama", {"rope_interleave": True}, "rope_interleave True"), ("qwen3", {"rope_interleave": True}, "rope_inter")),
    *(("llama", {key: True}, f"{key} True") for key in ("use_qk_norm", "qk_norm")),
    *(("llama", {key: 4}, f"{key} 4") for key in ("num_experts", "n_routed_experts", "kv_lora_rank", "q_lora_rank")),
    ("llama", {"swiglu_limit": 0.2}, "swiglu_limit 0.2"),
    ("ernie4_5_moe", ERNIE | {"n_group": 2, "topk_group": 1}, "n_group 2"),
    *((kind, {}, "no such model") for kind in ("mistral", "gemma2", "phi3", "granite")),
]


@pytest.fixture(scope="module")
def compared():
    (results,) = run_distributed(compare_cases, 1, [*EQUAL, *[case[:2] for case in DIFFERENT]])
    return results


@pytest.mark.parametrize("number", range(len(EQUAL)))
def test_a_model_that_is_built_as_it_is(compared, number):
    distance, said = compared[number]
    assert distance < 1e-4, EQUAL[number]
    assert said == [], EQUAL[number]


@pytest.mark.parametrize("number", range(len(DIFFERENT)))
def test_a_model_that_would_be_another(compared, number):
    distance, said = compared[len(EQUAL) + number]
    assert isinstance(distance, str) or distance > 1e-2, DIFFERENT[number]
    assert DIFFERENT[number][2] in "; ".join(said), said
