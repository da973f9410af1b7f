"""What all ranks of a run must agree on."""

import torch
from torch import distributed as dist


def any_rank(here: bool) -> bool:
    """Whether it holds on any rank of the run."""
    return most_of_all_ranks(int(here)) > 0


def most_of_all_ranks(number: int) -> int:
    """The largest of the ranks' numbers."""
    largest = torch.tensor(number, device=torch.cuda.current_device())
    dist.all_reduce(largest, dist.ReduceOp.MAX)
    return int(largest.item())
