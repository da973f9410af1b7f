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
    *("wandb_exp_name", "swanlab_exp_name", "hub_token", "kd_console"),
)
PREFIXES = ("SWIFT_KD_", "NVTE_", "MCORE_", "MEGATRON_", "VIDEO_", "FPS", "IMAGE_")
VARIABLES = (
    *("MAX_PIXELS", "MIN_PIXELS", "USE_MCORE_GDN", "SPATIAL_MERGE_SIZE", "CUDA_DEVICE_MAX_CONNECTIONS"),
    *("NVIDIA_TF32_OVERRIDE", "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE", "CUBLAS_WORKSPACE_CONFIG"),
)
HARMLESS = (
    "SWIFT_KD_TRACEBACK",
    "SWIFT_KD_LOG",
    "SWIFT_KD_LOG_NAME",
    "MEGATRON_LM_PATH",
    "NVTE_DEBUG",
    "NVTE_DEBUG_LEVEL",
)
PACKAGES = ("swift-kd-plugin", "ms-swift", "mcore-bridge", "megatron-core", "torch", "transformers")
FILES = ("dataset", "val_dataset", "kd_datasets")
# A machine may have its own copy in a place of its own.
MODELS = ("model", "teacher_model")
MODEL_FILES = (".json", ".safetensors", ".bin")
MEGABYTE = 2**20
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
    for name in MODELS:
        folder = Path(flags.get(name) or "").expanduser()
        if flags.get(name) and folder.is_dir():
            said[f"--{name}"] = _describe_model(folder)
    for file in (file for name in FILES for file in as_list(flags.get(name))):
        if Path(file).is_file():
            said[f"what {file} holds"] = _describe_file(Path(file))
    return said | {f"the version of {name}": version(name) for name in PACKAGES}


def _describe_file(file: Path) -> str:
    size = file.stat().st_size
    with file.open("rb") as content:
        ends = content.read(MEGABYTE)
        content.seek(max(0, size - MEGABYTE))
        ends += content.read(MEGABYTE)
    return f"{size:,} bytes (digest of its ends: {hashlib.sha256(ends).hexdigest()[:8]})"


def _describe_model(folder: Path) -> str:
    files = [file for file in folder.iterdir() if file.suffix in MODEL_FILES and file.is_file()]
    config = folder / "config.json"
    digest = hashlib.sha256(config.read_bytes()).hexdigest()[:8] if config.is_file() else "none"
    return f"a model of {sum(file.stat().st_size for file in files):,} bytes (digest of its config.json: {digest})"


def compare(said: dict[str, str]) -> None:
    """Raises KDError on every rank if one of them was started with something else, or without the plugin."""
    rank, size = dist.get_rank(), dist.get_world_size()
    if size == 1:
        return
    store = dist.PrefixStore("kd_arguments", _get_default_store())
    text = json.dumps(said, sort_keys=True)
    store.set(f"values {rank}", text)
    store.set(f"digest {rank}", hashlib.sha256(text.encode()).hexdigest())
    silent: list[int] = []
    if rank == 0:
        silent = _silent(store, size)
        store.set("verdict", _no_word_of(silent[0]) if silent else _judge(store, said, size))
    if not (_there(store, ["digest 0"], PATIENCE) and _there(store, ["verdict"], 2 * PATIENCE)):
        raise KDError(_no_word_of(0))
    verdict = store.get("verdict").decode()
    store.set(f"heard {rank}", "")
    if not verdict:
        return
    if rank == 0:  # which may hold the store
        _there(store, [f"heard {other}" for other in range(size) if other not in silent], PATIENCE)
    raise KDError(verdict)


def _silent(store: dist.Store, size: int) -> list[int]:
    """The ranks that do not say what they were started with; they come out of the start of the group together."""
    keys = {f"digest {rank}": rank for rank in range(1, size)}
    return [] if _there(store, [*keys], PATIENCE) else [rank for key, rank in keys.items() if not store.check([key])]


def _no_word_of(rank: int) -> str:
    return (
        f"rank {rank} did not say what it was started with; start all ranks with --external_plugins swift_kd_plugin "
        "and look at its own message."
    )


def _judge(store: dist.Store, mine: dict[str, str], size: int) -> str:
    """What differs from rank 0, in one sentence; empty if nothing does."""
    own = store.get("digest 0")
    others = {
        rank: json.loads(store.get(f"values {rank}")) for rank in range(1, size) if store.get(f"digest {rank}") != own
    }
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


def _there(store: dist.Store, keys: list[str], patience: timedelta) -> bool:
    try:
        store.wait(keys, patience)
    except RuntimeError:  # of the store: it is too late, or its rank is gone
        return False
    return True


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str, sort_keys=True)
