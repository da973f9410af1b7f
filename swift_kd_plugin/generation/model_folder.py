"""What can be said of a model's folder without loading anything: that it is a model's, and has a tokenizer."""

import os
from pathlib import Path

from swift_kd_plugin.data.files import is_local
from swift_kd_plugin.data.near_checkpoints import near_checkpoint
from swift_kd_plugin.errors import KDError, suggest
from swift_kd_plugin.generation.adapters import CONFIG

TOKENIZERS = ("tokenizer*", "tokenization*", "vocab*", "*.tiktoken", "*.model", "tekken.json")


def check_model_folder(model: str | Path) -> None:
    """Raises KDError for a path that is no model's folder, and for a name that is no id of a hub (OWNER/NAME)."""
    folder = Path(model)
    if folder.is_dir():
        _check_files(folder)
    elif is_local(str(model)) or folder.parent.is_dir():
        if checkpoint := near_checkpoint(folder):
            raise KDError(f"{model} is no folder of a model; did you mean {checkpoint}?")
        raise KDError(f"{model} is no folder of a model{_near_name(folder)}; check the path.")


def has_tokenizer(folder: Path) -> bool:
    """Without one transformers would make an empty one."""
    return any(any(folder.glob(name)) for name in TOKENIZERS)


def no_tokenizer(folder: str | Path) -> str:
    """The sentence for a folder without one."""
    return f"{folder} has no tokenizer; copy its files (tokenizer.json, ...) from the base model's folder."


def _near_name(folder: Path) -> str:
    try:
        names = [entry.name for entry in os.scandir(folder.parent) if entry.is_dir()]
    except OSError:  # not there, or may not be listed
        return ""
    return suggest(folder.name, sorted(names))


def _check_files(model: Path) -> None:
    has_config = (model / "config.json").is_file()
    if (model / CONFIG).is_file() and not has_config:
        raise KDError(
            f"{model} is a LoRA adapter; give its base model, and the adapter to --adapters, or the folder "
            f"{model.name}-merged that training writes beside it."
        )
    if not has_config and (checkpoint := near_checkpoint(model)):
        raise KDError(f"{model} is the folder of a run; did you mean {checkpoint}?")
    if not has_tokenizer(model):
        raise KDError(no_tokenizer(model))
