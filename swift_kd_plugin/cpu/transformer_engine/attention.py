"""`DotProductAttention`: softmax(scale q kᵀ) v in the layouts and with the masks that Megatron-Core uses."""

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch

from swift_kd_plugin.cpu.transformer_engine.attention_core import NO_LIMIT, AttentionSettings
from swift_kd_plugin.cpu.transformer_engine.base import TransformerEngineBaseModule, divide
from swift_kd_plugin.cpu.transformer_engine.context_parallel import attend_over_ranks
from swift_kd_plugin.cpu.transformer_engine.dense_attention import attend_dense, attend_padded, read_padding
from swift_kd_plugin.cpu.transformer_engine.packed_attention import Lengths, Run, attend_packed, find_runs
from swift_kd_plugin.cpu.transformer_engine.unsupported import refuse, refuse_options

MASK_TYPES = (
    "no_mask",
    "causal",
    "causal_bottom_right",
    "padding",
    "padding_causal",
    "padding_causal_bottom_right",
    "arbitrary",
)
LAYOUTS = ("sbhd", "bshd", "thd")


def forgive_extra_state(module: torch.nn.Module, incompatible_keys) -> None:
    """A checkpoint without the attention's extra state is whole."""
    keys = incompatible_keys.missing_keys
    keys[:] = [key for key in keys if not key.endswith("core_attention._extra_state")]


class DotProductAttention(TransformerEngineBaseModule):
    """Queries [.., h, d], keys [.., g, d] and values [.., g, e] to [.., h * e]; g divides h.

    Layouts: `sbhd` (sequence first), `bshd`, and `thd`, packed sequences whose bounds are in cu_seqlens. Under context
    parallelism each rank passes its zigzag part of every sequence, while cu_seqlens speak of whole sequences.

    Mask types as in Transformer Engine: "causal" aligns the first query with the first key, and the others the last
    query with the last key, which also tells where a window lies. In `thd`, "causal" and "no_mask" mean
    "padding_causal" and "padding". `window_size` is (left, right), -1 for no limit.

    Raises:
        ValueError: an unknown layout or mask type, or lengths that contradict the tensors.
        NotOnCPUBackend: another softmax than the vanilla one, max logits, ALiBi, inference caches; and under context
            parallelism masks of one's own, biases and hierarchical groups.
    """

    def __init__(
        self,
        num_attention_heads: int,
        kv_channels: int | tuple[int, int],
        num_gqa_groups: int | None = None,
        attention_dropout: float = 0.0,
        qkv_format: str = "sbhd",
        attn_mask_type: str = "causal",
        window_size: tuple[int, int] | None = None,
        sequence_parallel: bool = False,
        tp_size: int = 1,
        get_rng_state_tracker: Callable | None = None,
        tp_group=None,
        layer_number: int | None = None,
        attention_type: str = "self",
        cp_group=None,
        cp_global_ranks=None,
        cp_stream=None,
        cp_comm_type: str = "p2p",
        softmax_scale: float | None = None,
        **options,
    ) -> None:
        super().__init__()
        refuse_options("DotProductAttention", options, softmax_type="vanilla")
        self.join_tensor_parallel_group(tp_group, tp_size)
        k_channels, v_channels = kv_channels if isinstance(kv_channels, (tuple, list)) else (kv_channels, kv_channels)
        self.hidden_size_per_attention_head_k = k_channels
        self.hidden_size_per_attention_head_v = v_channels
        self.num_attention_heads = num_attention_heads
        self.num_gqa_groups = num_attention_heads if num_gqa_groups is None else num_gqa_groups
        divide(num_attention_heads, self.num_gqa_groups, "num_attention_heads")
        self.softmax_scale = 1 / math.sqrt(k_channels) if softmax_scale is None else softmax_scale
        self.attention_dropout = attention_dropout
        self.qkv_format = qkv_format
        self.attn_mask_type = attn_mask_type
        self.window_size = window_size
        self.attention_type = attention_type
        self.layer_number = layer_number
        # With sequence parallelism Transformer Engine draws from the default state, without it from the tracker's.
        self.get_rng_state_tracker = None if sequence_parallel else get_rng_state_tracker
        self.set_context_parallel_group(cp_group, cp_global_ranks, cp_stream, cp_comm_type)
        # As Transformer Engine: Megatron's sharded checkpoints hold none of attention's, and virtual stages are loaded
        # strictly.
        self.register_load_state_dict_post_hook(forgive_extra_state)

    def set_context_parallel_group(self, cp_group, cp_global_ranks=None, cp_stream=None, cp_comm_type="p2p") -> None:
        """Sets the group over which sequences are split; None switches context parallelism off.

        The ways of communication compute the same, so `cp_comm_type` is only remembered.
        """
        if isinstance(cp_group, (list, tuple)):
            refuse("hierarchical context parallelism (cp_comm_type='a2a+p2p')", "set --cp_comm_type p2p")
        self.cp_group = cp_group
        self.cp_global_ranks = cp_global_ranks
        self.cp_stream = cp_stream
        self.cp_comm_type = cp_comm_type

    def forward(
        self,
        query_layer: torch.Tensor,
        key_layer: torch.Tensor,
        value_layer: torch.Tensor,
        attention_mask: torch.Tensor | tuple[torch.Tensor, torch.Tensor] | None = None,
        qkv_format: str | None = None,
        cu_seqlens_q: torch.Tensor | None = None,
        cu_seqlens_kv: torch.Tensor | None = None,
        cu_seqlens_q_padded: torch.Tensor | None = None,
        cu_seqlens_kv_padded: torch.Tensor | None = None,
        max_seqlen_q: int | None = None,
        max_seqlen_kv: int | None = None,
        attn_mask_type: str | None = None,
        window_size: tuple[int, int] | None = None,
        core_attention_bias_type: str = "no_bias",
        core_attention_bias: torch.Tensor | None = None,
        fast_zero_fill: bool = True,
        pad_between_seqs: bool | None = None,
        **options,
    ) -> torch.Tensor:
        """[s, b, h * e], [b, s, h * e] or [t, h * e], as the layout; see the class.

        Args:
            attention_mask: True hides. "arbitrary": broadcastable to [b, h, q, k]; "padding": [b, 1, 1, q] or a pair
                for queries and keys; other mask types ignore it, as Transformer Engine does.
            cu_seqlens_*_padded: where sequences start if rows of padding lie between them; these rows give zeros.
            core_attention_bias: added to the scaled scores ("post_scale_bias").
        """
        refuse_options("DotProductAttention.forward", options, cp_partition_mode="zigzag")
        layout = qkv_format or self.qkv_format
        mask_type = _known_mask_type(attn_mask_type or self.attn_mask_type)
        if layout not in LAYOUTS:
            raise ValueError(f"qkv_format is {layout!r}: expected one of {LAYOUTS}")
        if core_attention_bias_type not in ("no_bias", "post_scale_bias"):
            refuse(f"core_attention_bias_type={core_attention_bias_type!r}", "use post_scale_bias")
        bias = None if core_attention_bias_type == "no_bias" else core_attention_bias
        settings = self._settings(mask_type, window_size)
        qkv = (query_layer, key_layer, value_layer)
        lengths = (cu_seqlens_q, cu_seqlens_kv, cu_seqlens_q_padded, cu_seqlens_kv_padded)
        with self._dropout_state(settings):
            if layout == "thd":
                return self._packed(qkv, lengths, mask_type, bias, settings)
            if self.cp_group is not None and self.cp_group.size() > 1:
                return self._split_sequences(qkv, layout, mask_type, bias, settings)
            return self._dense(qkv, layout, mask_type, attention_mask, lengths[:2], bias, settings)

    def _settings(self, mask_type: str, window_size: tuple[int, int] | None) -> AttentionSettings:
        left, right = window_size or self.window_size or (NO_LIMIT, NO_LIMIT)
        if "causal" in mask_type:
            if right not in (0, NO_LIMIT):
                raise ValueError(f"window_size ({left}, {right}) looks ahead, but the mask type is {mask_type}")
            right = 0
        return AttentionSettings(left, right, self.softmax_scale, self.attention_dropout if self.training else 0.0)

    def _dropout_state(self, settings: AttentionSettings) -> AbstractContextManager:
        if settings.dropout == 0.0 or self.get_rng_state_tracker is None:
            return nullcontext()
        return self.get_rng_state_tracker().fork()

    def _packed(self, qkv, lengths, mask_type: str, bias, settings: AttentionSettings) -> torch.Tensor:
        if mask_type == "arbitrary" or bias is not None:
            refuse("a mask or bias of one's own in the thd layout", "set --padding_free false and --packing false")
        runs = find_runs(*lengths)
        if self.cp_group is None or self.cp_group.size() == 1:
            out = attend_packed(*qkv, runs, settings, bottom_right=_aligns_ends(mask_type))
        else:
            out = attend_over_ranks(*qkv, runs, settings, self.cp_group)
        return out.contiguous().flatten(1)

    def _split_sequences(self, qkv, layout: str, mask_type: str, bias, settings: AttentionSettings) -> torch.Tensor:
        if mask_type.startswith("padding") or mask_type == "arbitrary" or bias is not None:
            refuse(
                f"attn_mask_type={mask_type!r} or a bias under context parallelism outside of packing",
                "set --padding_free true or --packing true",
            )
        # The batch is a pack of sequences of equal length.
        batch_first = [x.transpose(0, 1) if layout == "sbhd" else x for x in qkv]
        batch, rows = batch_first[0].shape[:2]
        length = rows * self.cp_group.size()
        runs = [Run(batch, Lengths(length, length, length, length))]
        out = attend_over_ranks(*(x.flatten(0, 1) for x in batch_first), runs, settings, self.cp_group)
        out = out.reshape(batch, rows, -1)
        return out.transpose(0, 1).contiguous() if layout == "sbhd" else out

    def _dense(self, qkv, layout: str, mask_type: str, attention_mask, lengths, bias, settings: AttentionSettings):
        order = (1, 2, 0, 3) if layout == "sbhd" else (0, 2, 1, 3)
        q, k, v = (x.permute(order) for x in qkv)
        bottom_right = _aligns_ends(mask_type)
        if mask_type.startswith("padding"):
            padding = read_padding(attention_mask, *lengths, q.shape[2], k.shape[2], q.device)
            out = attend_padded(
                q, k, v, settings, bottom_right=bottom_right, padding_bq=padding[0], padding_bk=padding[1], bias=bias
            )
        else:
            hidden = None
            if mask_type == "arbitrary":
                if attention_mask is None:
                    raise ValueError("attn_mask_type 'arbitrary' needs attention_mask")
                hidden = attention_mask.bool()
            out = attend_dense(q, k, v, settings, bottom_right=bottom_right, hidden=hidden, bias=bias)
        back = (2, 0, 1, 3) if layout == "sbhd" else (0, 2, 1, 3)
        return out.permute(back).contiguous().flatten(2)


def _aligns_ends(mask_type: str) -> bool:
    return mask_type not in ("causal", "padding_causal")


def _known_mask_type(name: str) -> str:
    known = name.replace("causal,padding", "padding_causal").replace("padding,causal", "padding_causal")
    if known not in MASK_TYPES:
        raise ValueError(f"attn_mask_type is {name!r}: expected one of {MASK_TYPES}")
    return known
