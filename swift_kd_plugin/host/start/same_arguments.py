"""Compares what the ranks were started with, once, as soon as they can speak to each other.

Ranks of other shells or machines with another flag would train on and average what differs. The ranks talk through the
store of the process group: no collective, which ranks with other layouts could not finish.
"""

import hashlib
import json
from collections.abc import Mapping
from datetime import timedelta
from importlib.metadata import version
from pathlib import Path
from typing import Any

from torch import distributed as dist
from torch.distributed.distributed_c10d import _get_default_store

from swift_kd_plugin.errors import KDError
from swift_kd_plugin.host.start.launch_checks import as_list

# They are a process's own, or change nothing that is trained.
OF_A_PROCESS = (
    *("local_rank", "ddp_timeout", "dataset_num_proc", "dataloader_num_workers", "tensorboard_dir", "logging_dir"),
    *("wandb_exp_name", "swanlab_exp_name", "hub_token"),
)
PREFIXES = ("SWIFT_KD_", "NVTE_", "MCORE_", "MEGATRON_", "VIDEO_", "FPS", "IMAGE_")
VARIABLES = (
    *("MAX_PIXELS", "MIN_PIXELS", "USE_MCORE_GDN", "SPATIAL_MERGE_SIZE", "CUDA_DEVICE_MAX_CONNECTIONS"),
    *("NVIDIA_TF32_OVERRIDE", "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE", "CUBLAS_WORKSPACE_CONFIG"),
)
HARMLESS = ("SWIFT_KD_TRACEBACK", "MEGATRON_LM_PATH", "NVTE_DEBUG", "NVTE_DEBUG_LEVEL")
PACKAGES = ("swift-kd-plugin", "ms-swift", "mcore-bridge", "megatron-core", "torch", "transformers")
FILES = ("dataset", "val_dataset", "kd_datasets")
PATIENCE = timedelta(seconds=120)
SHOWN = 3


def collect(flags: dict[str, Any], env: Mapping[str, str]) -> dict[str, str]:
    """What a rank was started with, by the names that a user knows."""
    said = {f"--{name}": _text(value) for name, value in flags.items() if name not in OF_A_PROCESS}
    said |= {
        name: value
        for name, value in env.items()
        if (name.startswith(PREFIXES) or name in VARIABLES) and name not in HARMLESS
    }
    for file in (file for name in FILES for file in as_list(flags.get(name))):
        if Path(file).is_file():
            said[f"the size of {file}"] = f"{Path(file).stat().st_size:,} bytes"
    return said | {f"the version of {name}": version(name) for name in PACKAGES}


def compare(said: dict[str, str]) -> None:
    """Raises KDError on every rank if one of them was started with something else. All ranks must call it."""
    rank, size = dist.get_rank(), dist.get_world_size()
    if size == 1:
        return
    store = dist.PrefixStore("kd_arguments", _get_default_store())
    text = json.dumps(said, sort_keys=True)
    store.set(f"values {rank}", text)
    store.set(f"digest {rank}", hashlib.sha256(text.encode()).hexdigest())
    if rank == 0:
        store.set("verdict", _judge(store, said, size))
    _wait(store, ["verdict"], "rank 0")
    verdict = store.get("verdict").decode()
    store.set(f"heard {rank}", "")
    if not verdict:
        return
    if rank == 0:  # which may hold the store
        _wait(store, [f"heard {other}" for other in range(size)], "another rank")
    raise KDError(verdict)


def _judge(store: dist.Store, mine: dict[str, str], size: int) -> str:
    """What differs from rank 0, in one sentence; empty if nothing does."""
    own, others = store.get("digest 0"), {}
    for rank in range(1, size):
        _wait(store, [f"digest {rank}"], f"rank {rank}")
        if store.get(f"digest {rank}") != own:
            others[rank] = json.loads(store.get(f"values {rank}"))
    return describe(mine, others)


def describe(mine: dict[str, str], others: dict[int, dict[str, str]]) -> str:
    """The first differences between rank 0 and others, each with the ranks that it concerns."""
    ranks: dict[tuple[str, str], list[int]] = {}
    for rank, theirs in others.items():
        for name in sorted(mine.keys() | theirs.keys()):
            if mine.get(name) != theirs.get(name):
                ranks.setdefault((name, theirs.get(name, "unset")), []).append(rank)
    if not ranks:
        return ""
    found = [
        f"{name} is {theirs} on rank {', '.join(map(str, who[:SHOWN]))}{' and more' if who[SHOWN:] else ''} and "
        f"{mine.get(name, 'unset')} on rank 0"
        for (name, theirs), who in ranks.items()
    ]
    more = f"; and {len(found) - SHOWN} more" if found[SHOWN:] else ""
    return f"the ranks were started differently: {'; '.join(found[:SHOWN])}{more}. Start all with the same command."


def _wait(store: dist.Store, keys: list[str], who: str) -> None:
    try:
        store.wait(keys, PATIENCE)
    except RuntimeError as error:
        raise KDError(
            f"{who} did not say what it was started with; start all ranks with --external_plugins swift_kd_plugin and "
            "look at its own message."
        ) from error


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str, sort_keys=True)
