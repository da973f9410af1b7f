"""LoRA adapters of the teacher, merged into the weights that the local Megatron teacher loads.

They are merged as Hugging Face tensors on their way through the bridge, so that it cuts the merged weight as it cuts
any other: exact in every layout. ms-swift's own LoRA modules would not do: they fuse q, k and v (and gate and up)
under one lora_A, which adapters trained elsewhere do not have.
"""

import math
import os
from collections import defaultdict
from dataclasses import dataclass
from functools import partial

import torch
from mcore_bridge.utils.safetensors import LazyTensor
from peft import LoraConfig
from peft.utils.other import get_pattern_key
from safetensors import safe_open
from swift.utils import get_logger
from torch import Tensor

from swift_kd_plugin.errors import KDError
from swift_kd_plugin.generation.adapters import PREFIX, WEIGHTS
from swift_kd_plugin.host.samples.host_trainer import HostTrainer
from swift_kd_plugin.host.teacher.adapter_files import read_mergeable, read_targets, refuse_tied

logger = get_logger()
SCALES = ("r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern")


@dataclass(frozen=True)
class Delta:
    """What one adapter adds to one weight: scale * B @ A, read from disk when asked for."""

    folder: str
    key: str
    scale: float

    def shape(self) -> tuple[int, int]:
        a, b = self._read()
        return b.shape[0], a.shape[1]

    def compute(self) -> Tensor:
        """float32 [out, in]."""
        a, b = self._read()
        return self.scale * (b.float() @ a.float())

    def _read(self) -> tuple[Tensor, Tensor]:
        with safe_open(os.path.join(self.folder, WEIGHTS), framework="pt") as file:
            return file.get_tensor(f"{self.key}.lora_A.weight"), file.get_tensor(f"{self.key}.lora_B.weight")


class AdapterMerge:
    """The adapters of --kd_teacher_adapters, merged in order into what is loaded of a teacher; without the flag nothing
    is changed.

    Raises:
        KDError: an adapter cannot be read or has parts that cannot be merged.
    """

    def __init__(self, args):
        self.folder, self.count = args.teacher_model_dir, len(args.kd_teacher_adapters)
        for folder in args.kd_teacher_adapters:
            refuse_tied(folder, self.folder)
        self.deltas = read_adapters(args.kd_teacher_adapters)
        self.merged: set[str] = set()

    def convert(self, key: str, value: LazyTensor) -> tuple[str, LazyTensor]:
        """A tensor of the teacher's files as it is to be loaded: the bridge's `converter`."""
        if key in self.deltas:
            self.merged.add(key)
            value = LazyTensor(loader=partial(merged_weight, key, value, self.deltas[key]))
        return key, value

    def finish(self) -> None:
        """To be called when all is loaded. Raises KDError for an adapter of another model."""
        if missing := sorted(self.deltas.keys() - self.merged):
            raise KDError(
                f"The adapter {self.deltas[missing[0]][0].folder} changes {missing[0]}, which the teacher "
                f"{self.folder} does not have; it belongs to another base model."
            )
        if self.count:
            logger.info(f"Merged {self.count} adapters into {len(self.deltas)} weights of the teacher.")


def merge_adapters(trainer: HostTrainer) -> None:
    """Loads the teacher's weights anew with its adapters merged into them.

    To be called when the base weights are loaded and before they are offloaded; without the flag it does nothing.

    Raises:
        KDError: an adapter cannot be read, has parts that cannot be merged, or does not fit the teacher.
    """
    if not trainer.args.kd_teacher_adapters:
        return
    merge = AdapterMerge(trainer.args)
    trainer.teacher_config.bridge.load_weights(
        trainer.teacher_models, trainer.args.teacher_model_dir, converter=merge.convert
    )
    merge.finish()


def read_adapters(folders: list[str]) -> dict[str, list[Delta]]:
    """Which deltas, in order, belong to which weight of the base model, by its name there.

    Raises:
        KDError: an adapter cannot be read or has parts that cannot be merged.
    """
    deltas = defaultdict(list)
    for folder in folders:
        settings = read_mergeable(folder)
        config = LoraConfig(**{name: settings[name] for name in SCALES if settings.get(name) is not None})
        for key in read_targets(folder):
            deltas[f"{key.removeprefix(PREFIX)}.weight"].append(Delta(folder, key, scale_of(config, key)))
    return dict(deltas)


def scale_of(config: LoraConfig, key: str) -> float:
    """alpha / r, or alpha / sqrt(r) under rsLoRA, where patterns may name other values for some modules."""
    module = key.removeprefix(PREFIX)
    rank = config.rank_pattern.get(get_pattern_key(config.rank_pattern, module), config.r)
    alpha = config.alpha_pattern.get(get_pattern_key(config.alpha_pattern, module), config.lora_alpha)
    return alpha / (math.sqrt(rank) if config.use_rslora else rank)


def merged_weight(key: str, value: LazyTensor, deltas: list[Delta]) -> Tensor:
    """A weight with what adapters add to it. Raises KDError if it is quantised or of another shape than theirs."""
    weight = value.load()
    if weight.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        raise KDError(
            f"The teacher's {key} is stored as {weight.dtype}, and an adapter cannot be merged into it; give a teacher "
            "in bfloat16, or serve it with vLLM (--teacher_model_server)."
        )
    merged = weight.float()
    for delta in deltas:
        if delta.shape() != tuple(weight.shape):
            raise KDError(
                f"The adapter {delta.folder} changes {key} as {list(delta.shape())}, and the teacher's is "
                f"{list(weight.shape)}; it belongs to another base model."
            )
        merged = merged + delta.compute()
    return merged.to(weight.dtype)
