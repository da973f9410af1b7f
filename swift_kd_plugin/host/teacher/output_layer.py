"""The output layer of a teacher of which nothing else is loaded."""

from pathlib import Path

import torch
from mcore_bridge.utils.safetensors import SafetensorLazyLoader
from megatron.core import mpu
from swift.megatron.model.utils import get_mcore_model_config
from torch import Tensor
from transformers import AutoConfig

from swift_kd_plugin.errors import KDError
from swift_kd_plugin.host.teacher.local_teacher import as_teachers_kind, without_interleaving
from swift_kd_plugin.host.teacher.teacher_adapters import merged_weight, read_adapters


def read_teacher_config(args, folder: str):
    """What Megatron would build of the teacher in a folder."""
    with without_interleaving(args), as_teachers_kind(args):
        return get_mcore_model_config(args, AutoConfig.from_pretrained(folder, trust_remote_code=True))


def load_output_layer(config, folder: str, adapters: list[str], device) -> Tensor:
    """This tensor-parallel rank's rows [v, H] of the teacher's output weight, with adapters merged.

    Args:
        config: `read_teacher_config` of the folder.

    Raises:
        KDError: the folder has no such weight.
    """
    key = config.bridge.hf_lm_head_key if config.untie_embeddings_and_output_weights else config.bridge.hf_embed_key
    ranks, rank = mpu.get_tensor_model_parallel_world_size(), mpu.get_tensor_model_parallel_rank()
    width = -(-config.padded_vocab_size // ranks)
    deltas = read_adapters(adapters).get(key)
    with SafetensorLazyLoader(folder) as loader:
        stored = loader.get_state_dict().get(key)
        if stored is None:
            raise KDError(
                f"the teacher {Path(folder)} has no weight {key}, which the rows of a teacher cache need; store its "
                "most probable tokens instead (--kd_topk)."
            )
        rows = slice(rank * width, (rank + 1) * width)
        found = merged_weight(key, stored, deltas)[rows] if deltas else stored.load_slice((rows,))
    weight = torch.zeros(width, config.hidden_size, dtype=config.params_dtype, device=device)
    weight[: len(found)] = found
    return weight
