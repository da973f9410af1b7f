"""Does a LoRA adapter belong to a model? Told by names on disk, before anything is loaded."""

import re
from collections.abc import Iterator
from pathlib import Path

from safetensors import safe_open

from swift_kd_plugin.errors import KDError

PREFIX, SUFFIX = "base_model.model.", ".lora_A.weight"


def check_adapter(adapter: Path, folder: Path) -> None:
    """Refuses an adapter for layers that a model does not have: PEFT and vLLM would leave them out.

    Only names that both sides write alike are compared, but for the number of the layer: libraries rename and fuse
    modules when they load a model. Shapes are compared by whoever loads them.

    Args:
        folder: of the base model.

    Raises:
        KDError: it is no folder, or belongs to another base model.
    """
    if not adapter.is_dir():
        raise KDError(f"--adapters {adapter} is no folder; give the folder of a LoRA adapter.")
    adapted = {name.removeprefix(PREFIX).removesuffix(SUFFIX) for name in _names(adapter) if name.endswith(SUFFIX)}
    modules = {name.removesuffix(".weight") for name in _names(folder)}
    known = {_any_layer(name) for name in modules}
    strange = sorted(name for name in adapted - modules if _any_layer(name) in known)
    if strange:
        raise KDError(
            f"The adapter {adapter} does not fit {folder}: it changes {strange[0]}, which the model does not have; it "
            "belongs to another base model."
        )


def _names(folder: Path) -> Iterator[str]:
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as weights:
            yield from weights.keys()


def _any_layer(name: str) -> str:
    return re.sub(r"\.\d+(?=\.)", ".*", name)
