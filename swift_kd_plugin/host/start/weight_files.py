"""Whether the files of a model's weights are there and whole, told by their names and headers."""

import json
import os
from pathlib import Path

from swift_kd_plugin.errors import KDError
from swift_kd_plugin.generation.adapters import opened

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"


def check_weight_files(flag: str, path: str) -> None:
    """Raises KDError for a folder in which Megatron would find no weights, damaged ones, or those of another model.

    Args:
        path: of a folder; of an id of a hub nothing is known.
    """
    folder = Path(os.path.expanduser(path))
    single, index = folder / SINGLE, folder / INDEX
    shards = sorted(file.name for file in folder.glob("*-of-*.safetensors"))
    if not index.is_file():
        if shards and not single.is_file():
            raise KDError(
                f"--{flag} {path} holds {shards[0]} and no {INDEX}, which says what stands in which shard; get the "
                "whole model again."
            )
        names = {SINGLE} if single.is_file() else set()
    else:
        names = set(read_object(str(index)).get("weight_map", {}).values())
        if single.is_file() and names and SINGLE not in names:
            raise KDError(
                f"--{flag} {path} holds two models: {SINGLE}, which transformers reads, and {min(names)} with its "
                f"fellows, which Megatron reads by {INDEX}; remove one of them."
            )
    for name in sorted(names):
        _check_file(f"--{flag} {path}", folder / name)


def _check_file(model: str, file: Path) -> None:
    if not file.is_file():
        raise KDError(f"{model} lacks {file.name}, which {INDEX} names; get the whole model again.")
    with opened(file):
        pass


def read_object(file: str) -> dict:
    try:
        with open(file, encoding="utf-8") as stream:
            content = json.load(stream)
    except OSError as error:
        raise KDError(f"{file} cannot be read: {error.strerror}.") from error
    except ValueError as error:
        raise KDError(f"{file} is not valid JSON: {error}.") from error
    if not isinstance(content, dict):
        raise KDError(f"{file} holds no object; give the folder of a Hugging Face model.")
    return content
