"""Tiny models made on the spot, with real tokenizers and real configs: small enough to train in seconds on a CPU."""

import json
import random
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

SPECIAL_TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>", "</think>"]
CHAT_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{m.role}}\n{{m.content}}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
VOCABULARY = 384


def make_tokenizer(special_tokens: list[str] = SPECIAL_TOKENS) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer trained on sums, with Qwen's chat tokens."""
    corpus = [f"What is {a} plus {b}? The answer is {a + b}." for a in range(60) for b in range(60)]
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - 4,
        special_tokens=special_tokens,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(corpus, trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def _shape(hidden: int, tokenizer: PreTrainedTokenizerFast, **changes) -> dict:
    # Weights are drawn wide: with small ones every distribution is uniform and no error can show.
    return {
        "vocab_size": VOCABULARY,
        "hidden_size": hidden,
        "intermediate_size": 2 * hidden,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "max_position_embeddings": 2048,
        "tie_word_embeddings": False,
        "initializer_range": 0.08,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": None,
        **changes,
    }


def _save(model: torch.nn.Module, tokenizer: PreTrainedTokenizerFast, folder: Path) -> Path:
    model.to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def make_dense(folder: Path, hidden: int = 64, seed: int = 0, **changes) -> Path:
    """A Qwen3 with 4 layers, grouped-query attention and an output layer of its own."""
    tokenizer = make_tokenizer()
    torch.manual_seed(seed)
    return _save(Qwen3ForCausalLM(Qwen3Config(**_shape(hidden, tokenizer, **changes))), tokenizer, folder)


def make_moe(folder: Path, hidden: int = 64, seed: int = 0, active: int = 2) -> Path:
    """A Qwen3-MoE with 4 experts, `active` of them used by each token."""
    tokenizer = make_tokenizer()
    torch.manual_seed(seed)
    config = Qwen3MoeConfig(
        **_shape(hidden, tokenizer),
        num_experts=4,
        num_experts_per_tok=active,
        moe_intermediate_size=hidden,
        decoder_sparse_step=1,
        norm_topk_prob=True,
    )
    return _save(Qwen3MoeForCausalLM(config), tokenizer, folder)


def make_adapter(folder: Path, model: Path, seed: int = 0) -> Path:
    """A LoRA adapter of rank 8 on every linear layer of `model`, both of its matrices random.

    Megatron fuses q, k and v, and gate and up: each of these groups has one lora_A.
    """
    torch.manual_seed(seed)
    config = LoraConfig(r=8, lora_alpha=32, lora_dropout=0.0, target_modules="all-linear", init_lora_weights=False)
    adapted = get_peft_model(Qwen3ForCausalLM.from_pretrained(model), config)
    for name, module in adapted.named_modules():
        if name.endswith(("self_attn", "mlp")):
            fused = ("q_proj", "k_proj", "v_proj") if name.endswith("self_attn") else ("gate_proj", "up_proj")
            first, *others = (getattr(module, projection).lora_A["default"].weight.data for projection in fused)
            for weight in others:
                weight.copy_(first)
    adapted.save_pretrained(folder)
    return folder


def make_sums(file: Path, rows: int = 32, seed: int = 0) -> Path:
    """Questions and answers of unequal lengths, as ms-swift `messages` rows."""
    rng = random.Random(seed)
    with file.open("w", encoding="utf-8") as out:
        for _ in range(rows):
            terms = [rng.randint(0, 59) for _ in range(rng.randint(2, 6))]
            question = f"What is {' plus '.join(map(str, terms))}?"
            messages = [
                {"role": "user", "content": question},
                {"role": "assistant", "content": f"The answer is {sum(terms)}."},
            ]
            out.write(json.dumps({"messages": messages}) + "\n")
    return file
