"""LoRA adapters, told by their files before anything is loaded: what they are, and whether they belong to a model."""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from swift_kd_plugin.data.near_checkpoints import did_you_mean
from swift_kd_plugin.errors import KDError

# How an adapter may be started that changes the base weights.
CHANGES_THE_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX, SUFFIX = "base_model.model.", ".lora_A.weight"
# Settings that change what an adapter means beyond W + scale * B @ A, and the values with which they do not.
PLAIN_SETTINGS: Mapping[str, tuple] = {
    "use_dora": (False, None),
    "modules_to_save": (None, []),
    "trainable_token_indices": (None, [], {}),
    "target_parameters": (None, []),
    "layer_replication": (None, []),
    "alora_invocation_tokens": (None, []),
    "fan_in_fan_out": (False,),
    "lora_bias": (False, None),
    "bias": ("none",),
}


def check_adapter(adapter: Path, folder: Path, engine: str) -> None:
    """Refuses an adapter for layers that a model does not have, which PEFT and vLLM would leave out, and for vLLM one
    that is more than matrices beside a model's own weights.

    Only names that both sides write alike are compared, but for the number of the layer: libraries rename and fuse
    modules when they load a model. Shapes are compared by whoever loads them.

    Args:
        folder: of the base model.
        engine: that loads both.

    Raises:
        KDError: it is no adapter, or belongs to another base model, or vLLM would answer as another model.
    """
    settings = read_settings(adapter, "--adapters")
    if engine == "vllm" and (why := _more_than_matrices(settings, adapter, folder)):
        raise KDError(
            f"The adapter {adapter} {why}, with which vLLM answers as another model; use --engine transformers."
        )
    adapted = {name.removeprefix(PREFIX).removesuffix(SUFFIX) for name in _names(adapter) if name.endswith(SUFFIX)}
    modules = {name.removesuffix(".weight") for name in _names(folder)}
    known = {_any_layer(name) for name in modules}
    strange = sorted(name for name in adapted - modules if _any_layer(name) in known)
    if strange:
        raise KDError(
            f"The adapter {adapter} does not fit {folder}: it changes {strange[0]}, which the model does not have; it "
            "belongs to another base model."
        )


def read_settings(adapter: Path, flag: str) -> dict[str, Any]:
    """A folder's adapter_config.json.

    Raises:
        KDError: naming the flag that gave the folder, if that is none of an adapter.
    """
    meant = did_you_mean(adapter, CONFIG, "give the folder of a PEFT adapter.")
    if not adapter.is_dir():
        raise KDError(f"{flag} {adapter} is no folder; {meant}")
    try:
        settings = json.loads((adapter / CONFIG).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise KDError(f"{flag} {adapter} has no {CONFIG}; {meant}") from None
    except (OSError, ValueError) as error:
        raise KDError(f"{flag}: {adapter / CONFIG} cannot be read ({error}); copy it again.") from error
    if not isinstance(settings, dict):
        raise KDError(f"{flag}: {adapter / CONFIG} is no JSON object; copy it again.")
    return settings


def why_more_than_matrices(settings: dict[str, Any]) -> str | None:
    """What a LoRA adapter has or does beyond W + scale * B @ A with the base model's own W; None for a plain one."""
    if settings.get("peft_type") != "LORA":
        return f"is {settings.get('peft_type')} and not LoRA"
    for name, plain in PLAIN_SETTINGS.items():
        if settings.get(name, plain[0]) not in plain:
            return f"has {name} {settings[name]!r}"
    start = changes_the_base(settings)
    return f"was started from {start}, which changes the base model" if start else None


@contextmanager
def opened(file: Path) -> Iterator[Any]:
    """A safetensors file. Raises KDError if it is damaged or not there."""
    try:
        with safe_open(file, framework="pt") as weights:
            yield weights
    except (OSError, SafetensorError) as error:
        raise KDError(f"{file} cannot be read ({' '.join(str(error).split())}); copy it again.") from error


def changes_the_base(settings: dict[str, Any]) -> str | None:
    """How an adapter was started, if that changed the base model's weights: the change is not in the adapter."""
    start = str(settings.get("init_lora_weights", "")).lower()
    return start if start.startswith(CHANGES_THE_BASE) else None


def adapts_tied_weights(names: Iterable[str], folder: Path) -> str | None:
    """The name of an embedding or output layer that an adapter changes, if the model has one tensor for both.

    A merge would change the other one, too.

    Args:
        names: of the adapter's matrices.
        folder: of the base model.
    """
    ends = [name for name in names if re.search(r"\b(embed_tokens|wte|lm_head|embed_out)\.(lora_|weight)", name)]
    return ends[0] if ends and is_tied(folder) else None


def is_tied(folder: Path) -> bool:
    """Whether a model's output layer is its embedding."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    setting = config.get("tie_word_embeddings", config.get("text_config", {}).get("tie_word_embeddings"))
    return setting if setting is not None else not any("lm_head" in name for name in _names(folder))


def _more_than_matrices(settings: dict[str, Any], adapter: Path, folder: Path) -> str | None:
    if start := changes_the_base(settings):
        return f"was started from {start}, which changes the base model"
    if name := adapts_tied_weights(_names(adapter), folder):
        return f"changes {name} of a model that has one tensor for embedding and output"
    return None


def _names(folder: Path) -> Iterator[str]:
    for file in sorted(folder.glob("*.safetensors")):
        with opened(file) as weights:
            yield from weights.keys()


def _any_layer(name: str) -> str:
    return re.sub(r"\.\d+(?=\.)", ".*", name)
