"""Runs a function on several gloo ranks, each a process of its own."""

import multiprocessing
import os
import tempfile
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import torch
from torch import distributed as dist
from torch import multiprocessing as mp

TIMEOUT = timedelta(seconds=60)  # a collective that waits longer fails, so a deadlock is a failed test


def run_distributed(fn: Callable, world_size: int, *args) -> list:
    """Calls fn(rank, *args) on every rank, inside a gloo process group, and returns what the ranks returned, in order.

    `fn` must be importable (a function of a module), its arguments and results must pickle. The first exception of a
    rank is raised here, with that rank's traceback.
    """
    with tempfile.TemporaryDirectory() as folder:
        # Forked from a process that has imported torch, once for each worker of the tests.
        multiprocessing.set_forkserver_preload(["torch", fn.__module__])
        mp.start_processes(_rank_main, (world_size, folder, fn, args), nprocs=world_size, start_method="forkserver")
        return [torch.load(_result(folder, rank), weights_only=False) for rank in range(world_size)]


def _result(folder: str, rank: int) -> Path:
    return Path(folder) / f"result-{rank}.pt"


def _rank_main(rank: int, world_size: int, folder: str, fn: Callable, args: tuple) -> None:
    torch.set_num_threads(1)
    os.environ.update(dict.fromkeys(("RANK", "LOCAL_RANK"), str(rank)))
    os.environ.update(dict.fromkeys(("WORLD_SIZE", "LOCAL_WORLD_SIZE"), str(world_size)))
    store = f"file://{folder}/store"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=world_size, timeout=TIMEOUT)
    try:
        torch.save(fn(rank, *args), _result(folder, rank))
        dist.barrier()
    finally:
        dist.destroy_process_group()
