"""The tiny models of examples/tiny_models.py with a tokenizer of sums: small enough to train in seconds on a CPU."""

import random
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from examples import tiny_models
from examples.tiny_models import make_adapter, make_pictures
from tests.json_lines import write_json_lines

__all__ = ["make_adapter", "make_dense", "make_moe", "make_pictures", "make_sums", "make_vision_model"]
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


def make_dense(folder: Path, hidden: int = 64, seed: int = 0, **changes) -> Path:
    """A Qwen3 with 4 layers, grouped-query attention and an output layer of its own."""
    return tiny_models.make_dense(folder, make_tokenizer(), hidden, seed, **{"vocab_size": VOCABULARY, **changes})


def make_moe(folder: Path, hidden: int = 64, seed: int = 0, active: int = 2) -> Path:
    """A Qwen3-MoE with 4 experts, `active` of them used by each token."""
    return tiny_models.make_moe(folder, make_tokenizer(), hidden, seed, active, vocab_size=VOCABULARY)


def make_vision_model(folder: Path, kind: str, hidden: int = 64, seed: int = 0) -> Path:
    """A Qwen2.5-VL or Qwen3-VL with 2 language and 2 vision layers."""
    return tiny_models.make_vision_model(folder, kind, make_tokenizer(), hidden, seed)


def make_sums(file: Path, rows: int = 32, seed: int = 0) -> Path:
    """Questions and answers of unequal lengths, as ms-swift `messages` rows."""
    rng = random.Random(seed)
    pairs = []
    for _ in range(rows):
        terms = [rng.randint(0, 59) for _ in range(rng.randint(2, 6))]
        question = f"What is {' plus '.join(map(str, terms))}?"
        messages = [
            {"role": "user", "content": question},
            {"role": "assistant", "content": f"The answer is {sum(terms)}."},
        ]
        pairs.append({"messages": messages})
    return write_json_lines(file, pairs)
