"""Which adapters can be merged into a teacher, told by flags and files: nothing is loaded, so the launcher can ask."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import safe_open

from swift_kd_plugin.errors import KDError
from swift_kd_plugin.generation.adapters import CONFIG, PREFIX, WEIGHTS, adapts_tied_weights, changes_the_base

SIDES = (".lora_A.weight", ".lora_B.weight")
# Settings that change what an adapter means beyond W + scale * B @ A; a teacher's with any other value is refused.
MERGEABLE: Mapping[str, tuple] = {
    "use_dora": (False, None),
    "modules_to_save": (None, []),
    "trainable_token_indices": (None, [], {}),
    "target_parameters": (None, []),
    "layer_replication": (None, []),
    "fan_in_fan_out": (False,),
    "lora_bias": (False, None),
    "bias": ("none",),
}


def check_teacher_adapters(args) -> None:
    """Raises KDError if the student without its adapter is not the base model, or --kd_teacher_adapters cannot be
    merged into the teacher."""
    if args.rlhf_type != "gkd" or args.teacher_model is None:
        return
    own_teacher = args.tuner_type == "lora" and args.teacher_model == args.model
    if own_teacher and args.lora_bias != "none":
        raise KDError(
            f"--lora_bias {args.lora_bias} trains biases of the base model, and with LoRA and the same --teacher_model "
            "the teacher is the student without its adapter, whose biases move; give the teacher as another folder."
        )
    if own_teacher and args.kd_teacher_adapters:
        raise KDError(
            "--kd_teacher_adapters: with LoRA and the same --teacher_model as --model, the teacher is the student "
            "without its adapters, and there is no model to merge others into; give the teacher as another folder."
        )
    for folder in args.kd_teacher_adapters:
        read_settings(folder)
        refuse_tied(folder, args.teacher_model)


def read_settings(folder: str) -> dict[str, Any]:
    """adapter_config.json of a teacher's adapter. Raises KDError if it is not LoRA that a merge holds wholly."""
    if not os.path.isdir(folder):
        raise KDError(f"--kd_teacher_adapters: {folder} is not a folder; give the folder of a PEFT adapter.")
    for name in (CONFIG, WEIGHTS):
        if not os.path.exists(os.path.join(folder, name)):
            raise KDError(f"--kd_teacher_adapters: {folder} has no {name}; give the folder of a PEFT LoRA adapter.")
    with open(os.path.join(folder, CONFIG), encoding="utf-8") as stream:
        settings = json.load(stream)
    if settings.get("peft_type") != "LORA":
        raise KDError(f"--kd_teacher_adapters: {folder} is {settings.get('peft_type')}, and only LoRA can be merged.")
    for name, allowed in MERGEABLE.items():
        if settings.get(name, allowed[0]) not in allowed:
            raise KDError(
                f"--kd_teacher_adapters: {folder} has {name} {settings[name]!r}, which cannot be merged here; merge it "
                "with PEFT's merge_and_unload and give the result as --teacher_model."
            )
    if start := changes_the_base(settings):
        raise KDError(
            f"--kd_teacher_adapters: {folder} was started from {start}, which changes the base model; convert it to "
            "plain LoRA with PEFT, or merge it and give the result as --teacher_model."
        )
    return settings


def read_targets(folder: str) -> list[str]:
    """Names of the modules that a teacher's adapter changes. Raises KDError for a tensor that is not lora_A or lora_B
    of a linear layer."""
    with safe_open(os.path.join(folder, WEIGHTS), framework="pt") as file:
        keys = list(file.keys())
    if strange := [key for key in keys if not key.startswith(PREFIX) or not key.endswith(SIDES)]:
        raise KDError(
            f"--kd_teacher_adapters: {folder} holds {strange[0]}, which is not a LoRA matrix of a linear layer and "
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
            f"--kd_teacher_adapters: {folder} changes {name}, and the teacher {model} has one tensor for embedding and "
            "output, so that a merge would change both; serve it with PEFT, or untie it first."
        )
