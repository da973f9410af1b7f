"""The objective from heads: loss, parts and gradients are those of the logits, whatever is mixed with whatever."""

import pytest
import torch
from torch import Tensor
from torch import distributed as dist

from swift_kd_plugin.losses.lm_head import LMHead
from swift_kd_plugin.losses.objective import Settings, TokenPolicy
from swift_kd_plugin.losses.objective_loss import Tokens, objective_loss
from swift_kd_plugin.losses.overlap import topk_overlap
from swift_kd_plugin.losses.policies import POLICIES
from swift_kd_plugin.losses.request import TAILS, TopK
from swift_kd_plugin.losses.shards import shards_of
from swift_kd_plugin.losses.topk import teacher_topk
from tests.gloo_ranks import run_distributed
from tests.losses.divergence_cases import ONE_OF_EACH, name_of
from tests.losses.loss_checks import assert_close
from tests.losses.random_logits import random_logits

TOKENS, STUDENT, TEACHER = 9, 40, 33  # and numbers of ids
SIZES = {"student_vocab": STUDENT, "teacher_vocab": TEACHER}
FORMS = [("head", "head"), ("head", "logits"), ("head", "top-k"), ("logits", "head")]


def some_tokens(**fields) -> Tokens:
    labels = torch.arange(TOKENS) * 7 % STUDENT
    labels[2::4] = -100
    given = {
        "labels": labels,
        "student_rows": torch.tensor([0, 1, 2, 4, 5, 6, 8, 9, 10]),
        "teacher_rows": torch.arange(TOKENS).flip(0) + 1,
        "sample": torch.tensor([0, 0, 0, 1, 1, 1, 1, 2, 2]),
        "ce": torch.tensor([True, False, True] * 3),
        "scale": random_logits(TOKENS, seed=5).abs(),
    }
    return Tokens(**given | fields)


class Models:
    """A student with an adapter on its head, and a teacher of another size; leaves that learn or are frozen."""

    def __init__(self, dtype: torch.dtype = torch.float64):
        shapes = {"x": (TOKENS + 3, 5), "base": (STUDENT, 5), "low": (5, 2), "up": (STUDENT, 2)}
        shapes |= {"y": (TOKENS + 2, 7), "teacher": (TEACHER, 7)}
        tensors = {n: random_logits(*s, seed=i, spread=0.8, dtype=dtype) for i, (n, s) in enumerate(shapes.items())}
        self.tensors = {name: tensor.to(dtype) for name, tensor in tensors.items()}
        self.leaves = [self.tensors[name].requires_grad_() for name in ("x", "low", "up")]

    def student(self, kind: str, columns: slice = slice(None)) -> Tensor | LMHead:
        x, base, low, up = (self.tensors[name] for name in ("x", "base", "low", "up"))
        head = LMHead((x, x @ low), (base[columns], up[columns]))
        return head if kind == "head" else x @ base[columns].T + (x @ low) @ up[columns].T

    def teacher(self, kind: str, columns: slice = slice(None)) -> Tensor | LMHead | TopK:
        hidden, weight = self.tensors["y"], self.tensors["teacher"]
        if kind == "top-k":
            return TopK(*(hidden @ weight.T).log_softmax(-1).topk(6, dim=-1))
        return LMHead((hidden,), (weight[columns],)) if kind == "head" else hidden @ weight[columns].T


def objective(models: Models, student, teacher, settings: Settings, tokens: Tokens, **options):
    """Loss, parts, and the gradients in what the student's hidden states, base and adapter are made of."""
    loss, parts = objective_loss(settings, student, teacher, tokens, **SIZES, **options)
    return loss.detach(), parts, torch.autograd.grad(2 * loss, models.leaves)


def compare(forms, settings: Settings, tokens: Tokens, tolerance=1e-12, **options):
    models = Models()
    expected = objective(
        models, models.student("logits"), models.teacher("top-k" if forms[1] == "top-k" else "logits"), settings,
        tokens,
        statistics=options.get("statistics", True),
    )  # fmt: skip
    found = objective(models, models.student(forms[0]), models.teacher(forms[1]), settings, tokens, **options)
    assert_close(found[0], expected[0], tolerance, "loss")
    assert found[1].keys() == expected[1].keys()
    for name, values in expected[1].items():
        assert found[1][name].dtype == values.dtype
        assert_close(found[1][name], values, tolerance, name)
    for leaf, gradient, truth in zip(("x", "low", "up"), found[2], expected[2], strict=True):
        assert truth.any()
        assert_close(gradient, truth, tolerance, leaf)


@pytest.mark.parametrize("forms", FORMS, ids=" and ".join)
@pytest.mark.parametrize("policy", POLICIES)
def test_token_policies(policy, forms):
    params = {"clip": 0.05} if policy == "clip" else {}
    settings = Settings("jsd", params, 1.7, weight=1.3, ce_weight=0.4, policy=TokenPolicy(policy, rho=0.5))
    for fields in ({}, {"scale": None}):
        for statistics in (True, False):
            compare(forms, settings, some_tokens(**fields), chunk_size=4, statistics=statistics)
    compare(forms, settings, some_tokens())


@pytest.mark.parametrize("forms", FORMS, ids=" and ".join)
@pytest.mark.parametrize("case", ONE_OF_EACH, ids=name_of)
def test_divergences(case, forms):
    compare(forms, Settings(*case, 2.0, weight=0.7 * 4, ce_weight=0.3), some_tokens(), chunk_size=2)


@pytest.mark.parametrize("tail", TAILS)
def test_tails(tail):
    for chunk_size in (1, 3, 8, 9, 10):
        compare(("head", "top-k"), Settings("skew_kl", {}, 1.7, tail=tail), some_tokens(), chunk_size=chunk_size)


@pytest.mark.parametrize("forms", FORMS, ids=" and ".join)
def test_in_place(forms):
    compare(forms, Settings("reverse_kl", {}, 1.0), some_tokens(), inplace_grad=True)


@pytest.mark.parametrize("policy", ["teacher_entropy", "student_top_rho"])
def test_no_tokens(policy):
    empty = torch.zeros(0, dtype=torch.long)
    tokens = Tokens(empty, empty, empty, empty, empty.bool())
    models = Models()
    settings = Settings("jsd", {}, 1.0, ce_weight=0.5, policy=TokenPolicy(policy))
    loss, _, gradients = objective(models, models.student("head"), models.teacher("head"), settings, tokens)
    assert loss == 0
    assert not any(gradient.any() for gradient in gradients)


def test_evaluation_takes_one_pass(monkeypatch):
    models, made = Models(), []
    stock = LMHead.logits
    monkeypatch.setattr(LMHead, "logits", lambda self, out: made.append(len(out)) or stock(self, out))
    settings = Settings("jsd", {}, 1.0, policy=TokenPolicy("student_top_rho"))
    with torch.no_grad():
        loss, _ = objective_loss(settings, models.student("head"), models.teacher("head"), some_tokens(), **SIZES)
    assert loss.grad_fn is None
    assert made == [TOKENS, TOKENS]
    objective(models, models.student("head"), models.teacher("head"), settings, some_tokens())
    assert made == [TOKENS] * 6  # the entropies first


def test_the_most_probable_tokens_of_a_head():
    models = Models()
    logits, head = models.teacher("logits"), models.teacher("head")
    shard, _ = shards_of(head, None, None, TEACHER, None)
    for found, expected in zip(teacher_topk(head, 5, shard, 1.7), teacher_topk(logits, 5, shard, 1.7), strict=True):
        assert_close(found, expected)
    rows = torch.arange(TOKENS).flip(0)
    sides = [models.student(kind)[rows] for kind in ("logits", "head")]
    own, shard = shards_of(sides[0], TEACHER, None, STUDENT, TEACHER)
    ids = [teacher_topk(teacher[rows], 5, shard)[1] for teacher in (logits, head)]
    expected = topk_overlap(sides[0], ids[0], own)
    assert 0 < expected.mean() < 1
    for student in sides:
        assert all(torch.equal(topk_overlap(student, of_teacher, own), expected) for of_teacher in ids)


def test_blocks_of_the_most_probable_tokens(monkeypatch):
    models = Models()
    expected = teacher_topk(models.teacher("logits"), 5, shards_of(models.teacher("head"), None, None, None, None)[0])
    monkeypatch.setattr("swift_kd_plugin.losses.request.CPU_BLOCK_ELEMENTS", 4 * TEACHER)
    monkeypatch.setattr("swift_kd_plugin.losses.request.CPU_CHUNK_ELEMENTS", 2 * TEACHER)
    shard, _ = shards_of(models.teacher("head"), None, None, None, None)
    assert_close(teacher_topk(models.teacher("head"), 5, shard)[0], expected[0])
    assert torch.equal(teacher_topk(models.teacher("head"), 5, shard)[1], expected[1])
    empty = teacher_topk(models.teacher("head")[:0], 5, shard)
    assert [tuple(part.shape) for part in empty] == [(0, 5), (0, 5), (0,)]


def run_rank(rank: int, size: int) -> list:
    """Every policy on shards of unequal vocabularies, of which the last of the student's is the smallest."""
    models, found = Models(), []
    student_width, teacher_width = -(-STUDENT // size) + 1, -(-TEACHER // size)
    mine, theirs = (slice(rank * width, (rank + 1) * width) for width in (student_width, teacher_width))
    for policy in POLICIES:
        settings = Settings("jsd", {}, 1.7, weight=1.3, ce_weight=0.4, policy=TokenPolicy(policy, rho=0.5))
        sides = models.student("head", mine), models.teacher("head", theirs)
        found.append(objective(models, *sides, settings, some_tokens(), group=dist.group.WORLD, chunk_size=4))
    return found


@pytest.mark.parametrize("size", [2, 4], ids=["TP2", "TP4"])
def test_ranks(size):
    ranks, models = run_distributed(run_rank, size, size), Models()
    for index, policy in enumerate(POLICIES):
        settings = Settings("jsd", {}, 1.7, weight=1.3, ce_weight=0.4, policy=TokenPolicy(policy, rho=0.5))
        loss, parts, gradients = objective(
            models, models.student("logits"), models.teacher("logits"), settings, some_tokens()
        )
        for rank in ranks:
            assert_close(rank[index][0], loss, note=policy)
            for name, values in parts.items():
                assert_close(rank[index][1][name], values, note=f"{name}, {policy}")
            for gradient, truth in zip(rank[index][2][:2], gradients[:2], strict=True):
                assert_close(gradient, truth, note=policy)  # whole on every rank
        assert_close(sum(rank[index][2][2] for rank in ranks), gradients[2], note=policy)
