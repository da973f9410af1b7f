"""What each rank of a tensor-parallel group does in the tests, and what one rank alone makes of the same logits."""

from dataclasses import dataclass
from itertools import accumulate, product

import torch
from torch import distributed as dist

from swift_kd_plugin.losses import token_divergence, topk_divergence
from swift_kd_plugin.losses.request import TAILS
from swift_kd_plugin.losses.shards import VocabShard
from swift_kd_plugin.losses.topk import teacher_topk
from tests.losses import measured_losses
from tests.losses.divergence_cases import CLIPPED_CASES, DENSE_CASES, ONE_OF_EACH, name_of
from tests.losses.loss_checks import value_and_gradient
from tests.losses.random_logits import F64, random_logits

ENTRIES = 6  # of a top-k teacher


@dataclass(frozen=True)
class Layout:
    """How many columns each rank holds of either side, padding included, and how many of them are ids.

    Args:
        thorough: try every parameter of every divergence, and clips, instead of one of each kind.
    """

    name: str
    student_widths: tuple[int, ...]
    teacher_widths: tuple[int, ...]
    student_vocab: int
    teacher_vocab: int
    tokens: int = 5
    chunk_size: int | None = None
    thorough: bool = False

    @property
    def dense_cases(self) -> list:
        return DENSE_CASES + CLIPPED_CASES[::3] if self.thorough else ONE_OF_EACH

    @property
    def sparse_cases(self) -> list:
        """Divergences and what becomes of the tail."""
        if self.thorough:
            return [(case, tail) for case in DENSE_CASES for tail in TAILS]
        return [(case, TAILS[index % 3]) for index, case in enumerate(ONE_OF_EACH)]

    @property
    def vocabularies(self) -> dict[str, int]:
        return {"student_vocab": self.student_vocab, "teacher_vocab": self.teacher_vocab}

    def logits(self, side: str) -> torch.Tensor:
        """All logits of a side, without padding: [tokens, vocabulary]. On every other token the sides are alike."""
        student = random_logits(self.tokens, self.student_vocab, seed=1)
        if side == "student":
            return student
        teacher = random_logits(self.tokens, self.teacher_vocab, seed=2)
        both = min(self.student_vocab, self.teacher_vocab)
        teacher[::2, :both] = student[::2, :both] + 0.1 * teacher[::2, :both]
        return teacher

    def shard(self, side: str, rank: int) -> torch.Tensor:
        """The columns of a rank; those that are no ids hold large numbers."""
        widths = self.student_widths if side == "student" else self.teacher_widths
        logits = self.logits(side)
        garbage = random_logits(self.tokens, sum(widths) - logits.shape[1], seed=rank + 50, spread=300)
        stop = list(accumulate(widths))[rank]
        return torch.cat([logits, garbage], 1)[:, stop - widths[rank] : stop]

    def entries(self) -> tuple[torch.Tensor, torch.Tensor]:
        """What a top-k teacher tells: log-probabilities and ids [tokens, ENTRIES]."""
        return self.logits("teacher").log_softmax(-1).topk(ENTRIES, dim=-1)

    def upstream(self) -> torch.Tensor:
        return random_logits(self.tokens, seed=3, spread=1.0)


def same(widths: tuple[int, ...], vocab: int) -> dict:
    return {"student_widths": widths, "teacher_widths": widths, "student_vocab": vocab, "teacher_vocab": vocab}


def padded(size: int, student: int, teacher: int) -> dict:
    """Both vocabularies, each padded to a multiple of 8 times the ranks, as models are."""
    multiple = 8 * size
    return {
        "student_widths": (-(-student // multiple) * 8,) * size,
        "teacher_widths": (-(-teacher // multiple) * 8,) * size,
        "student_vocab": student,
        "teacher_vocab": teacher,
    }


LAYOUTS = (
    "equal shards", "uneven shards", "the first rank without columns", "the last rank without columns",
    "padding only on a rank", "teacher larger", "teacher smaller", "one id more", "student on one rank", "no tokens",
    "chunks of 1", "chunks of 3", "chunks of 6", "chunks of 7", "chunks of 8",
)  # fmt: skip


def layouts(size: int) -> list[Layout]:
    even, odd, holes = (16,) * size, (16, 15, 4, 11)[:size], (0, 19, 7, 0)[:size]
    unequal = padded(size, 1000, 1064)
    found = [
        Layout("equal shards", **same(even, sum(even))),
        Layout("uneven shards", **same(odd, sum(odd)), thorough=size == 2),
        Layout("the first rank without columns", **same(holes, sum(holes))),
        Layout("the last rank without columns", **same(holes[::-1], sum(holes))),
        Layout("padding only on a rank", **same(even, 13)),
        Layout("teacher larger", **unequal, thorough=True),
        Layout("teacher smaller", **padded(size, 1064, 1000)),
        Layout("one id more", **padded(size, 64, 65)),
        Layout("student on one rank", (40, *[0] * (size - 1)), (16,) * size, 37, 16 * size - 3),
        Layout("no tokens", **unequal, tokens=0),
    ]
    chunks = [(f"chunks of {chunk}", chunk) for chunk in (1, 3, 6, 7, 8)]
    found += [Layout(name, **padded(size, 50, 70), tokens=7, chunk_size=chunk) for name, chunk in chunks]
    assert tuple(layout.name for layout in found) == LAYOUTS
    return found


def dense(layout: Layout, case, student, teacher, group=None):
    name, params = case
    options = {"group": group, "chunk_size": layout.chunk_size, **layout.vocabularies, **params}
    return value_and_gradient(
        token_divergence, student, teacher, upstream=layout.upstream(), divergence=name, **options
    )


def sparse(layout: Layout, case, tail, student, group=None):
    name, params = case
    log_probs, ids = layout.entries()
    if layout.tokens:
        log_probs[1, :2] = -torch.inf
    options = {"group": group, "chunk_size": layout.chunk_size, **layout.vocabularies, **params}
    return value_and_gradient(
        topk_divergence, student, log_probs, ids,
        upstream=layout.upstream(), divergence=name, tail=tail, temperature=1.7, **options,
    )  # fmt: skip


def statistics(layout: Layout, student, teacher, group=None) -> tuple[dict, ...]:
    """The loss with cross-entropy and everything that is measured beside it, of a dense and of a top-k teacher.

    Of each once more at temperature 1 and without a cross-entropy in the loss.
    """
    found, plain = [], {"temperature": 1.0, "ce_weights": None}
    sides = ((measured_losses.dense, (teacher,)), (measured_losses.sparse, layout.entries()))
    for (loss, other), changes in product(sides, ({}, plain)):
        sizes = (layout.student_vocab, layout.teacher_vocab)

        def measured(logits, loss=loss, other=other, sizes=sizes, changes=changes):
            value, parts = loss(logits, *other, *sizes, group=group, chunk_size=2, **changes)
            found.append(parts)
            return value

        value, gradient = value_and_gradient(measured, student, upstream=layout.upstream())
        found[-1] |= {"loss": value, "gradient": gradient}
    return tuple(found)


def all_losses(rank: int, size: int) -> dict:
    """What a rank of a group of `size` gets: value and its columns of the gradient, by kind, layout and case."""
    group, results = dist.group.WORLD, {}
    for layout in layouts(size):
        student, teacher = layout.shard("student", rank), layout.shard("teacher", rank)
        for case in layout.dense_cases:
            results["dense", layout.name, name_of(case)] = dense(layout, case, student, teacher, group)
        for case, tail in layout.sparse_cases:
            results[tail, layout.name, name_of(case)] = sparse(layout, case, tail, student, group)
        shard = VocabShard(layout.student_widths, rank, layout.student_vocab, group)
        if layout.thorough:
            results["statistics", layout.name] = statistics(layout, student, teacher, group)
        results["entries", layout.name] = teacher_topk(student, ENTRIES, shard, temperature=1.7)
    return results


def many_tokens(rank: int, size: int) -> dict:
    """Uneven shards and more tokens than fit into a chunk, whose size nobody gave."""
    layout = Layout("many", **same((61, 50, 70, 0)[:size], sum((61, 50, 70, 0)[:size])), tokens=3000)
    group, case = dist.group.WORLD, ("forward_kl", {})
    student, teacher = layout.shard("student", rank), layout.shard("teacher", rank)
    shard = VocabShard(layout.student_widths, rank, layout.student_vocab, group)
    whole, whole_teacher = layout.logits("student"), layout.logits("teacher")
    entries = teacher_topk(student, ENTRIES, shard)[0]
    one = VocabShard((layout.student_vocab,), 0, layout.student_vocab)
    return {
        "dense": (dense(layout, case, student, teacher, group)[0], dense(layout, case, whole, whole_teacher)[0]),
        "sparse": (sparse(layout, case, "bucket", student, group)[0], sparse(layout, case, "bucket", whole)[0]),
        "entries": (entries, teacher_topk(whole, ENTRIES, one)[0]),
    }


def uneven_head(rank: int, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """AKL where the first rank holds all of the teacher's head, which is wider than what ranks exchange at first."""
    width = 200
    student, teacher = (random_logits(3, width * size, seed=seed, spread=0.01) for seed in (1, 2))
    teacher[:, :width] += 1
    mine = slice(rank * width, (rank + 1) * width)
    options = {"divergence": "adaptive_kl", "head_mass": 0.3}
    return (
        token_divergence(student[:, mine], teacher[:, mine], group=dist.group.WORLD, **options),
        token_divergence(student, teacher, **options),
    )


def unequal_tokens(rank: int) -> list[str]:
    """What is raised where the ranks hold different numbers of tokens."""
    student, teacher = torch.zeros(3 + rank % 2, 4, dtype=F64), torch.zeros(3 + rank % 2, 4, dtype=F64)
    messages = []
    for loss in (
        lambda: token_divergence(student, teacher, group=dist.group.WORLD),
        lambda: topk_divergence(student, teacher[:, :2], teacher[:, :2].long(), group=dist.group.WORLD),
    ):
        try:
            loss()
        except ValueError as error:
            messages.append(str(error))
    return messages


def with_context_parallelism(rank: int) -> dict:
    """Two tensor-parallel groups of two ranks that hold different tokens of one response; the second may hold none."""
    groups = [dist.new_group([0, 1]), dist.new_group([2, 3])]
    layout = Layout("TP x CP", **padded(2, 50, 70), tokens=6)
    results = {}
    for first in (6, 4):
        mine = slice(0, first) if rank < 2 else slice(first, 6)
        student, teacher = (layout.shard(side, rank % 2)[mine] for side in ("student", "teacher"))
        for case in ONE_OF_EACH:
            name, params = case
            options = {"divergence": name, "group": groups[rank // 2], **layout.vocabularies, **params}
            results[first, name_of(case)] = value_and_gradient(
                token_divergence, student, teacher, upstream=layout.upstream()[mine], **options
            )
    return {"layout": layout, "results": results}
