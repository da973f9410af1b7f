"""Process groups without NCCL: every group is a gloo group, and arguments that only NCCL knows are dropped."""

from functools import wraps

import torch
from torch import distributed as dist

from swift_kd_plugin.ledger import Undo, replace_attribute, undo_all


def use_gloo(function):
    """Wraps `init_process_group` or `new_group`."""

    @wraps(function)
    def with_gloo(*args, **kwargs):
        if function.__name__ == "init_process_group":
            args = args[1:]
        kwargs.pop("device_id", None)
        kwargs.pop("pg_options", None)
        kwargs["backend"] = "gloo"
        return function(*args, **kwargs)

    return with_gloo


def accept_tensor_splits(function):
    """Wraps `all_to_all_single`: NCCL's callers pass split sizes as tensors, gloo wants lists."""

    @wraps(function)
    def all_to_all_single(output, input, output_split_sizes=None, input_split_sizes=None, *args, **kwargs):
        splits = [s.tolist() if isinstance(s, torch.Tensor) else s for s in (output_split_sizes, input_split_sizes)]
        return function(output, input, *splits, *args, **kwargs)

    return all_to_all_single


def replace_collectives(module) -> Undo:
    undo = [
        replace_attribute(dist, "init_process_group", use_gloo(dist.init_process_group)),
        replace_attribute(dist, "new_group", use_gloo(dist.new_group)),
        replace_attribute(dist, "all_to_all_single", accept_tensor_splits(dist.all_to_all_single)),
    ]
    return undo_all(undo)
