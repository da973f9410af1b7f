"""Which adapters can be merged into a teacher, told by flags and files: nothing is loaded, so the launcher can ask."""

from pathlib import Path
from typing import Any

from swift_kd_plugin.errors import KDError
from swift_kd_plugin.generation.adapters import (
    PREFIX,
    WEIGHTS,
    adapts_tied_weights,
    opened,
    read_settings,
    why_more_than_matrices,
)

FLAG = "--kd_teacher_adapters"
SIDES = (".lora_A.weight", ".lora_B.weight")


def check_teacher_adapters(args) -> None:
    """Raises KDError if --kd_teacher_adapters cannot be merged into the teacher."""
    if args.rlhf_type != "gkd" or args.teacher_model is None or not args.kd_teacher_adapters:
        return
    if args.tuner_type == "lora" and args.teacher_model == args.model:
        raise KDError(
            f"{FLAG}: with LoRA and the same --teacher_model as --model, the teacher is the student "
            "without its adapters, and there is no model to merge others into; give the teacher as another folder."
        )
    for folder in args.kd_teacher_adapters:
        read_mergeable(folder)
        refuse_tied(folder, args.teacher_model)


def read_mergeable(folder: str) -> dict[str, Any]:
    """A teacher's adapter_config.json. Raises KDError if a merge would not hold the adapter wholly."""
    settings = read_settings(Path(folder), FLAG)
    if why := why_more_than_matrices(settings):
        raise KDError(
            f"{FLAG} {folder} {why}, which cannot be merged here; merge it with PEFT's merge_and_unload and give the "
            "result as --teacher_model."
        )
    if not (Path(folder) / WEIGHTS).is_file():
        raise KDError(f"{FLAG} {folder} has no {WEIGHTS}; give the folder of a PEFT LoRA adapter.")
    return settings


def read_targets(folder: str) -> list[str]:
    """Names of the modules that a teacher's adapter changes. Raises KDError for a tensor that is not lora_A or lora_B
    of a linear layer."""
    with opened(Path(folder) / WEIGHTS) as file:
        keys = list(file.keys())
    if strange := [key for key in keys if not key.startswith(PREFIX) or not key.endswith(SIDES)]:
        raise KDError(
            f"{FLAG} {folder} holds {strange[0]}, which is not a LoRA matrix of a linear layer and "
            "would be lost; merge it with PEFT's merge_and_unload and give the result as --teacher_model."
        )
    return sorted({key.removesuffix(SIDES[0]) for key in keys if key.endswith(SIDES[0])})


def refuse_tied(folder: str, model: str) -> None:
    """Raises KDError for a teacher's adapter of one end of a model whose embedding is its output layer.

    Args:
        model: a folder; of the id of a model on a hub, nothing is known.
    """
    if name := adapts_tied_weights((f"{target}.weight" for target in read_targets(folder)), Path(model)):
        raise KDError(
            f"{FLAG} {folder} changes {name}, and the teacher {model} has one tensor for embedding and "
            "output, so that a merge would change both; serve it with PEFT, or untie it first."
        )
