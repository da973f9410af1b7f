"""Whether a folder is that of a model with its tokenizer, told by the names of its files."""

from pathlib import Path

TOKENIZERS = ("tokenizer*", "tokenization*", "vocab*", "*.tiktoken", "*.model", "tekken.json")


def has_tokenizer(folder: Path) -> bool:
    """Without one transformers would make an empty one."""
    return any(any(folder.glob(name)) for name in TOKENIZERS)


def no_tokenizer(folder: str | Path) -> str:
    """The sentence for a folder without one."""
    return f"{folder} has no tokenizer; copy its files (tokenizer.json, ...) from the base model's folder."
