"""Which names the hosts find below `transformer_engine`, and where they live in this folder.

A module or name that is left out makes the host take its own fallback: `pytorch.permutation`, `pytorch.cross_entropy`,
`pytorch.cpu_offload`, `pytorch.cpp_extensions`, `attention.rope.apply_fused_qkv_rotary_pos_emb`, `tensor.utils` and
`transformer_engine_torch` are imported by Megatron-Core under try/except, and their fused paths are then off.
"""

VERSION = "2.6.0"  # from 2.7 on, Megatron-Core imports Transformer Engine's MoE routers

_NORMS = {"LayerNorm": "norm.LayerNorm", "RMSNorm": "norm.RMSNorm"}
_LINEARS = {
    "Linear": "linear.Linear",
    "LayerNormLinear": "layernorm_linear.LayerNormLinear",
    "GroupedLinear": "grouped_linear.GroupedLinear",
    "LayerNormMLP": "unsupported.LayerNormMLP",
}
_FP8_CONTEXTS = {
    "fp8_autocast": "fp8.fp8_autocast",
    "fp8_model_init": "fp8.fp8_model_init",
    "Fp8Padding": "fp8.Fp8Padding",
    "Fp8Unpadding": "fp8.Fp8Unpadding",
}
_ROPE = {"apply_rotary_pos_emb": "unsupported.apply_rotary_pos_emb"}
_QUANTIZED = {"QuantizedTensor": "fp8.QuantizedTensor"}

# public module -> {public name: "file.object" in this folder}
MODULES: dict[str, dict[str, str]] = {
    "transformer_engine": {"__version__": "public_names.VERSION"},
    "transformer_engine.common": {},
    "transformer_engine.common.recipe": {
        name: f"fp8.{name}"
        for name in (
            "Recipe",
            "Format",
            "DelayedScaling",
            "Float8CurrentScaling",
            "Float8BlockScaling",
            "MXFP8BlockScaling",
            "NVFP4BlockScaling",
        )
    },
    "transformer_engine.pytorch": {
        **_NORMS,
        **_LINEARS,
        **_FP8_CONTEXTS,
        "DotProductAttention": "attention.DotProductAttention",
        "checkpoint": "checkpoint.checkpoint",
        "CudaRNGStatesTracker": "rng.CudaRNGStatesTracker",
    },
    "transformer_engine.pytorch.attention": {
        **_ROPE,
        "DotProductAttention": "attention.DotProductAttention",
        "_SplitAlongDim": "split.SplitAlongDim",
    },
    "transformer_engine.pytorch.attention.rope": _ROPE,
    "transformer_engine.pytorch.attention.dot_product_attention": {
        "DotProductAttention": "attention.DotProductAttention"
    },
    "transformer_engine.pytorch.attention.dot_product_attention.utils": {
        "FlashAttentionUtils": "unsupported.FlashAttentionUtils"
    },
    "transformer_engine.pytorch.distributed": {
        "CudaRNGStatesTracker": "rng.CudaRNGStatesTracker",
        "get_all_rng_states": "rng.get_all_rng_states",
        "checkpoint": "checkpoint.checkpoint",
        "activation_recompute_forward": "checkpoint.activation_recompute_forward",
        "is_fp8_activation_recompute_enabled": "checkpoint.is_fp8_activation_recompute_enabled",
    },
    "transformer_engine.pytorch.fp8": {
        "FP8GlobalStateManager": "fp8.FP8GlobalStateManager",
        "fp8_autocast": "fp8.fp8_autocast",
        "fp8_model_init": "fp8.fp8_model_init",
    },
    "transformer_engine.pytorch.graph": {
        name: f"unsupported.{name}"
        for name in (
            "make_graphed_callables",
            "save_fp8_tensors",
            "restore_fp8_tensors",
            "set_capture_start",
            "set_capture_end",
        )
    },
    "transformer_engine.pytorch.module": {**_NORMS, **_LINEARS},
    "transformer_engine.pytorch.module.base": {
        "TransformerEngineBaseModule": "base.TransformerEngineBaseModule",
        "initialize_ub": "unsupported.initialize_ub",
    },
    "transformer_engine.pytorch.ops": {
        name: f"unsupported.{name}"
        for name in (
            "Sequential",
            "FusibleOperation",
            "BasicLinear",
            "Bias",
            "ReduceScatter",
            "AllReduce",
            "GELU",
            "ReLU",
            "GEGLU",
            "ReGLU",
            "SwiGLU",
        )
    }
    | {"LayerNorm": "unsupported.LayerNormOp", "RMSNorm": "unsupported.RMSNormOp"},
    "transformer_engine.pytorch.optimizers": {
        "FusedAdam": "optimizers.FusedAdam",
        "FusedSGD": "optimizers.FusedSGD",
        "multi_tensor_applier": "multi_tensor.multi_tensor_applier",
        "multi_tensor_l2norm": "multi_tensor.multi_tensor_l2norm",
        "multi_tensor_scale": "multi_tensor.multi_tensor_scale",
    },
    "transformer_engine.pytorch.tensor": _QUANTIZED,
    "transformer_engine.pytorch.tensor.float8_tensor": {**_QUANTIZED, "Float8Tensor": "fp8.Float8Tensor"},
    "transformer_engine.pytorch.tensor.mxfp8_tensor": {"MXFP8Tensor": "fp8.MXFP8Tensor"},
    "transformer_engine.pytorch.utils": {
        "SplitAlongDim": "split.SplitAlongDim",
        "make_weak_ref": "unsupported.make_weak_ref",
    },
}
