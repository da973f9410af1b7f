"""Counts collectives: each function of torch.distributed that talks to other ranks is wrapped while a block runs."""

from contextlib import contextmanager
from functools import wraps

from torch import distributed as dist

from swift_kd_plugin.losses import token_divergence, topk_divergence
from tests.losses.divergence_cases import ONE_OF_EACH
from tests.losses.random_logits import random_logits, random_topk
from tests.losses.sharded_losses import Layout, padded, same

TALKING = (
    "all_reduce", "all_gather", "all_gather_into_tensor", "all_gather_object", "all_to_all", "all_to_all_single",
    "broadcast", "broadcast_object_list", "reduce", "reduce_scatter", "reduce_scatter_tensor", "gather", "scatter",
    "barrier", "send", "recv", "isend", "irecv", "batch_isend_irecv",
)  # fmt: skip
TOKENS, CHUNK = 7, 3  # three chunks


@contextmanager
def counted():
    """The names of the functions that were called, in order."""
    calls, stock = [], {name: getattr(dist, name) for name in TALKING}

    def counting(name):
        @wraps(stock[name])
        def call(*args, **kwargs):
            calls.append(name)
            return stock[name](*args, **kwargs)

        return call

    for name in TALKING:
        setattr(dist, name, counting(name))
    try:
        yield calls
    finally:
        for name, function in stock.items():
            setattr(dist, name, function)


def count_collectives(rank: int, size: int) -> dict[tuple, tuple[int, int, int]]:
    """By kind of shards and divergence: collectives of the loss, of its backward, and of a second backward."""
    equal = Layout("equal", **same((8,) * size, 8 * size), tokens=TOKENS)
    unequal = Layout("unequal", **padded(size, 50, 70), tokens=TOKENS)
    log_probs, ids = random_topk(TOKENS, 50, 4)
    counts = {}
    for name, _ in ONE_OF_EACH:
        for layout in (equal, unequal):
            options = {"divergence": name, "chunk_size": CHUNK, "group": dist.group.WORLD, **layout.vocabularies}
            student, teacher = layout.shard("student", rank).requires_grad_(), layout.shard("teacher", rank)
            counts["dense", layout.name, name] = of_one_loss(token_divergence, student, teacher, **options)
            if layout is unequal:
                counts["top-k", layout.name, name] = of_one_loss(topk_divergence, student, log_probs, ids, **options)
    return counts


def of_one_loss(loss, student, *teacher, **options) -> tuple[int, int, int]:
    numbers = []
    with counted() as calls:
        value = loss(student, *teacher, **options)
        numbers.append(len(calls))
        for _ in range(2):
            before = len(calls)
            value.backward(random_logits(TOKENS, seed=3), retain_graph=True)
            numbers.append(len(calls) - before)
    return tuple(numbers)
