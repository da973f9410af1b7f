"""What the pure-PyTorch Transformer Engine does not do. Each name refuses on use and says what to change."""

from typing import NoReturn


class NotOnCPUBackend(NotImplementedError):
    """An operation of Transformer Engine that has no pure-PyTorch form here."""


def refuse(operation: str, instead: str) -> NoReturn:
    """Raises NotOnCPUBackend naming the operation and the way out."""
    raise NotOnCPUBackend(f"{operation} is not available on the CPU backend: {instead}")


_INSTEAD = {
    "fuse_wgrad_accumulation": "set --gradient_accumulation_fusion false",
    "delay_wgrad_compute": "drop --delay_wgrad_compute",
    "symmetric_ar_type": "drop --symmetric_ar_type",
    "softmax_type": "only the vanilla softmax is implemented",
    "return_max_logit": "drop --qk_clip and --log_max_attention_logit",
    "num_splits": "drop --batch_invariant_mode",
}


def refuse_options(owner: str, options: dict[str, object], **neutral: object) -> None:
    """Refuses the first option that would change what is computed.

    An option is let through if it is None or False, or equal to the neutral value given for it.
    """
    for name, value in options.items():
        if value is None or value is False or (name in neutral and value == neutral[name]):
            continue
        instead = "drop --tp_comm_overlap" if name.startswith("ub_") else _INSTEAD.get(name, "leave it out")
        refuse(f"{owner}({name}={value!r})", instead)


def apply_rotary_pos_emb(*_args, **_kwargs) -> NoReturn:
    refuse("fused rotary embedding (apply_rotary_pos_emb)", "set --apply_rope_fusion false")


def initialize_ub(*_args, **_kwargs) -> NoReturn:
    refuse("overlapping tensor-parallel communication (initialize_ub)", "drop --tp_comm_overlap")


class FlashAttentionUtils:
    """No flash-attn version is installed: attention runs through torch's scaled_dot_product_attention."""

    is_installed = False
    v3_is_installed = False
    v4_is_installed = False


def _refused_function(name: str, instead: str):
    def refused(*_args, **_kwargs) -> NoReturn:
        refuse(name, instead)

    refused.__name__ = refused.__qualname__ = name
    return refused


def _refused_class(name: str, instead: str) -> type:
    def __init__(self, *_args, **_kwargs) -> None:
        refuse(name, instead)

    return type(name, (), {"__init__": __init__, "__module__": __name__, "__doc__": f"Refused: {instead}."})


_NO_GRAPHS = "drop --cuda_graph_impl and --enable_cuda_graph"
make_graphed_callables = _refused_function("make_graphed_callables", _NO_GRAPHS)
save_fp8_tensors = _refused_function("save_fp8_tensors", _NO_GRAPHS)
restore_fp8_tensors = _refused_function("restore_fp8_tensors", _NO_GRAPHS)
set_capture_start = _refused_function("set_capture_start", _NO_GRAPHS)
set_capture_end = _refused_function("set_capture_end", _NO_GRAPHS)
make_weak_ref = _refused_function("make_weak_ref", _NO_GRAPHS)

_NO_OPS = "drop --use_transformer_engine_op_fuser and --use_te_activation_func"
Sequential = _refused_class("te.pytorch.ops.Sequential", _NO_OPS)
FusibleOperation = _refused_class("te.pytorch.ops.FusibleOperation", _NO_OPS)
BasicLinear = _refused_class("te.pytorch.ops.BasicLinear", _NO_OPS)
Bias = _refused_class("te.pytorch.ops.Bias", _NO_OPS)
ReduceScatter = _refused_class("te.pytorch.ops.ReduceScatter", _NO_OPS)
AllReduce = _refused_class("te.pytorch.ops.AllReduce", _NO_OPS)
LayerNormOp = _refused_class("te.pytorch.ops.LayerNorm", _NO_OPS)
RMSNormOp = _refused_class("te.pytorch.ops.RMSNorm", _NO_OPS)
GELU = _refused_class("te.pytorch.ops.GELU", _NO_OPS)
ReLU = _refused_class("te.pytorch.ops.ReLU", _NO_OPS)
GEGLU = _refused_class("te.pytorch.ops.GEGLU", _NO_OPS)
ReGLU = _refused_class("te.pytorch.ops.ReGLU", _NO_OPS)
SwiGLU = _refused_class("te.pytorch.ops.SwiGLU", _NO_OPS)
LayerNormMLP = _refused_class("te.pytorch.LayerNormMLP", "build it from LayerNormLinear and Linear")
