"""A Qwen3 of Megatron-Core with its optimizer, whose memory is measured in processes of their own."""

LAYERS, HIDDEN, FFN, VOCABULARY = 2, 64, 128, 384
HEADS, GROUPS, HEAD = 4, 2, 32


def make_model(config):
    from megatron.core.models.gpt import GPTModel
    from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_with_transformer_engine_spec

    return GPTModel(
        config,
        get_gpt_layer_with_transformer_engine_spec(qk_layernorm=True),
        vocab_size=VOCABULARY,
        max_sequence_length=64,
        share_embeddings_and_output_weights=False,
        position_embedding_type="rope",
    ).bfloat16()


def make_config():
    import torch
    from megatron.core.transformer import TransformerConfig

    return TransformerConfig(
        num_layers=LAYERS,
        hidden_size=HIDDEN,
        ffn_hidden_size=FFN,
        num_attention_heads=HEADS,
        num_query_groups=GROUPS,
        kv_channels=HEAD,
        params_dtype=torch.bfloat16,
        bf16=True,
        normalization="RMSNorm",
        qk_layernorm=True,
        gated_linear_unit=True,
        activation_func=torch.nn.functional.silu,
        add_bias_linear=False,
        gradient_accumulation_fusion=False,
        bias_activation_fusion=False,
        masked_softmax_fusion=False,
        bias_dropout_fusion=False,
    )


def measure(rank):
    """Expected and real bytes with the plain and with the distributed optimizer."""
    from swift_kd_plugin.cpu import switch_on

    switch_on()
    from megatron.core import parallel_state
    from megatron.core.tensor_parallel.random import model_parallel_cuda_manual_seed

    parallel_state.initialize_model_parallel()
    model_parallel_cuda_manual_seed(7)
    return [measure_optimizer(distributed) for distributed in (False, True)]


def measure_optimizer(distributed):
    from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig
    from megatron.core.optimizer import OptimizerConfig, get_megatron_optimizer

    from swift_kd_plugin.host.train.memory_report import gradient_bytes, optimizer_bytes, weight_bytes

    config = make_config()
    model = make_model(config)
    settings = DistributedDataParallelConfig(grad_reduce_in_fp32=True, use_distributed_optimizer=distributed)
    wrapped = DistributedDataParallel(config, settings, model)
    optimizer = get_megatron_optimizer(
        OptimizerConfig(optimizer="adam", lr=1e-3, bf16=True, use_distributed_optimizer=distributed), [wrapped]
    )
    expected, on_host = optimizer_bytes(optimizer, [model])
    got = {
        "weights": weight_bytes([model, model]),
        "trainable": weight_bytes([model], trainable=True),
        "gradients": gradient_bytes([wrapped]),
        "expected": expected,
        "on_host": on_host,
    }
    step(wrapped, optimizer)
    got["held"] = held_bytes(optimizer)
    model.output_layer.requires_grad_(False)
    return got | {"frozen": weight_bytes([model], trainable=True)}


def step(wrapped, optimizer):
    optimizer.zero_grad()
    for buffer in wrapped.buffers:
        buffer.grad_data.fill_(0.01)
    optimizer.step()


def held_bytes(optimizer):
    """What a step has really left behind: main weights and the tensors of the states."""
    count = 0
    for part in getattr(optimizer, "chained_optimizers", [optimizer]):
        for param, state in part.optimizer.state.items():
            tensors = [param, *(value for value in state.values() if getattr(value, "dim", int)())]
            count += sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    return count
