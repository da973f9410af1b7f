"""`fused_linear_divergence`: value and both gradients against the naive float64 reference, on 1, 2 and 4 ranks."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from swift_kd_plugin.losses import fused_linear_divergence, token_divergence
from swift_kd_plugin.losses.request import block_tokens
from tests.gloo_ranks import run_distributed
from tests.losses import fused_heads
from tests.losses.divergence_cases import DENSE_CASES, ONE_OF_EACH, name_of
from tests.losses.fused_heads import fused, naive, random_inputs, upstreams
from tests.losses.loss_checks import assert_close

SMOOTH = [case for case in ONE_OF_EACH if case[0] != "tvd"]


def compare(inputs, case, tolerance=1e-11, chunk_size=None, **options):
    name, params = case
    for kind, upstream in upstreams(inputs).items():
        found = fused(inputs, upstream, divergence=name, chunk_size=chunk_size, **params, **options)
        truth = naive(inputs, upstream, name, **params, **options)
        for what, values, expected in zip(("value", "hidden", "weight"), found, truth, strict=True):
            assert_close(values, expected, tolerance, f"{what}, {name_of(case)}, {kind}, {chunk_size}")


@pytest.mark.parametrize("case", DENSE_CASES, ids=name_of)
def test_value_and_gradients(case):
    compare(random_inputs(9, 31), case, chunk_size=4, temperature=1.7)


@pytest.mark.parametrize("case", ONE_OF_EACH, ids=name_of)
def test_blocks_change_nothing(case):
    for chunk_size in (None, 1, 3, 6, 7, 8):
        compare(random_inputs(7, 11), case, chunk_size=chunk_size)


@pytest.mark.parametrize("case", ONE_OF_EACH, ids=name_of)
def test_unequal_vocabularies(case):
    for student, teacher in ((40, 33), (33, 40)):
        compare(random_inputs(5, student, teacher), case, chunk_size=2)


def test_clip():
    compare(random_inputs(5, 20), ("jsd", {"beta": 0.3, "clip": 0.01}), chunk_size=2)


@pytest.mark.parametrize("case", SMOOTH, ids=name_of)
def test_gradcheck(case):
    name, params = case
    inputs = random_inputs(3, 6)

    def loss(hidden, weight):
        return fused_linear_divergence(
            hidden, weight, inputs.teacher_hidden, inputs.teacher_weight, divergence=name, chunk_size=2, **params
        )

    assert torch.autograd.gradcheck(loss, (inputs.hidden.requires_grad_(), inputs.weight.requires_grad_()))


def test_no_tokens():
    inputs = random_inputs(0, 9)
    value, hidden, weight = fused(inputs, inputs.upstream)
    assert value.shape == (0,)
    assert hidden.shape == (0, fused_heads.HIDDEN)
    assert weight.shape == (9, fused_heads.HIDDEN)
    assert not weight.any()


def test_a_weight_that_is_an_embedding_too():
    inputs, ids = random_inputs(6, 13), torch.tensor([0, 3, 3, 12, 5, 1])
    gradients = []
    for loss in (fused_linear_divergence, lambda x, w, tx, tw: token_divergence(x @ w.T, tx @ tw.T)):
        weight = inputs.weight.clone().requires_grad_()
        hidden = (weight[ids] + inputs.hidden).tanh()
        loss(hidden, weight, inputs.teacher_hidden, inputs.teacher_weight).mean().backward()
        gradients.append(weight.grad)
    assert_close(*gradients, 1e-13)


def test_backward_again():
    inputs = random_inputs(6, 13)
    leaves = inputs.hidden.requires_grad_(), inputs.weight.requires_grad_()
    value = fused_linear_divergence(*leaves, inputs.teacher_hidden, inputs.teacher_weight, chunk_size=4)
    for upstream in upstreams(inputs).values():
        first, second = (torch.autograd.grad(value, leaves, upstream, retain_graph=True) for _ in range(2))
        doubled = torch.autograd.grad(value, leaves, 2 * upstream, retain_graph=True)
        for one, again, twice in zip(first, second, doubled, strict=True):
            assert torch.equal(one, again)
            assert_close(twice, 2 * one, 1e-14)


def products(hidden_learns: bool, weight_learns: bool, upstream: str = "sum") -> float:
    """How many products of [T, H] with [v, H] a loss and its backward take; both sides have the same H."""
    inputs = random_inputs(8, 16, hidden=fused_heads.TEACHER_HIDDEN)
    inputs.hidden.requires_grad_(hidden_learns)
    inputs.weight.requires_grad_(weight_learns)
    in_place = {torch.ops.aten.addmm_: lambda _, a, b, out_shape=None: 2 * a[0] * a[1] * b[1]}
    with FlopCounterMode(display=False, custom_mapping=in_place) as counter:
        value = fused_linear_divergence(
            inputs.hidden, inputs.weight, inputs.teacher_hidden, inputs.teacher_weight, chunk_size=4
        )
        if value.requires_grad:
            value.backward(upstreams(inputs)[upstream])
    return counter.get_total_flops() / (2 * 8 * 16 * fused_heads.TEACHER_HIDDEN)


def test_one_pass_and_nothing_for_what_is_frozen():
    assert products(True, True) == 4
    assert products(True, False) == products(False, True) == 3
    assert products(False, False) == 2
    assert products(True, True, "each its own") == 8  # anew, with what came from above


def test_frozen_tensors_have_no_gradient():
    inputs = random_inputs(4, 9)
    hidden = inputs.hidden.requires_grad_()
    fused_linear_divergence(hidden, inputs.weight, inputs.teacher_hidden, inputs.teacher_weight).sum().backward()
    assert inputs.weight.grad is None
    assert_close(hidden.grad, naive(inputs, torch.ones(4), "forward_kl")[1], 1e-13)
    inputs.teacher_hidden.requires_grad_()
    with torch.no_grad():
        value = fused_linear_divergence(hidden, inputs.weight, inputs.teacher_hidden, inputs.teacher_weight)
    assert value.grad_fn is None


@pytest.mark.parametrize("case", ONE_OF_EACH, ids=name_of)
def test_fp32(case):
    compare(random_inputs(9, 31).to(torch.float32), case, tolerance=5e-6, chunk_size=4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("case", ONE_OF_EACH, ids=name_of)
def test_half_precision(case, dtype):
    """The loss is that of rounded logits; the gradient in them is rounded too, and so is what is made of it."""
    name, params = case
    inputs, eps = random_inputs(9, 31).to(dtype), torch.finfo(dtype).eps
    ones = torch.ones(9)
    value, *gradients = fused(inputs, ones, divergence=name, chunk_size=4, **params)
    logits = (inputs.hidden @ inputs.weight.T, inputs.teacher_hidden @ inputs.teacher_weight.T)
    assert value.dtype == torch.float32
    assert_close(value, token_divergence(*logits, divergence=name, **params), 1e-6)
    for found, expected in zip(gradients, naive(inputs, ones, name, **params)[1:], strict=True):
        assert found.dtype == dtype
        assert_close(found, expected, 8 * eps)


def test_the_weights_gradient_is_added_up_in_fp32():
    """1,000 tokens one by one: in bf16 the sum would stop growing."""
    inputs = random_inputs(1, 9).to(torch.bfloat16)
    one = fused(inputs, torch.ones(1), chunk_size=1)[2].double()
    inputs.hidden, inputs.teacher_hidden = inputs.hidden.expand(1000, -1), inputs.teacher_hidden.expand(1000, -1)
    many = fused(inputs, torch.ones(1000), chunk_size=1)[2].double()
    assert_close(many / 1000, one, 1.01 * torch.finfo(torch.bfloat16).eps)


class Largest(TorchDispatchMode):
    """The number of elements of the largest tensor that any operation gives back."""

    found = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        sizes = [
            leaf.untyped_storage().nbytes() // leaf.element_size()
            for leaf in tree_leaves(result)
            if isinstance(leaf, torch.Tensor)
        ]
        self.found = max(self.found, *sizes, 0)
        return result


@pytest.mark.parametrize("case", ONE_OF_EACH, ids=name_of)
def test_logits_of_all_tokens_are_never_there(case):
    name, params = case
    tokens, vocab, chunk = 64, 500, 4
    inputs = random_inputs(tokens, vocab)
    for upstream in upstreams(inputs).values():
        with Largest() as largest:
            fused(inputs, upstream, divergence=name, chunk_size=chunk, **params)
        assert largest.found <= max(2 * chunk * vocab, vocab * fused_heads.HIDDEN) < tokens * vocab / 4


def test_blocks_that_nobody_chose_are_bounded():
    for vocab in (1, 1000, 151_936, 10**9):
        for device, most in (("cpu", 2**25), ("cuda", 2**28)):
            assert block_tokens(vocab, torch.device(device)) * vocab <= max(most, vocab)


BAD_SHAPES = [
    ({"hidden": (3, 4)}, r"shape \(8, 5\) takes hidden states of 5 features; these have shape \(3, 4\)"),
    ({"teacher_hidden": (3, 4)}, r"shape \(8, 7\) takes hidden states of 7 features; these have shape \(3, 4\)"),
    ({"hidden": (1, 3, 5)}, r"A head needs inputs \[tokens, hidden size\].*the shapes are \[\(1, 3, 5\)\]"),
    ({"weight": (8,)}, r"as many weights \[vocabulary, hidden size\].*\[\(8,\)\]"),
    ({"teacher_hidden": (2, 7)}, "student has logits for 3 tokens and the teacher for 2"),
    ({"teacher_weight": (9, 7)}, "has 8 columns and the teacher's 9; pass student_vocab and teacher_vocab"),
]


@pytest.mark.parametrize(("shapes", "message"), BAD_SHAPES, ids=[str(shapes) for shapes, _ in BAD_SHAPES])
def test_shapes_that_are_refused(shapes, message):
    shapes = {"hidden": (3, 5), "weight": (8, 5), "teacher_hidden": (3, 7), "teacher_weight": (8, 7)} | shapes
    with pytest.raises(ValueError, match=message):
        fused_linear_divergence(*(torch.zeros(shape) for shape in shapes.values()))


@pytest.mark.parametrize("chunk_size", [0, -1])
def test_chunk_sizes_that_are_refused(chunk_size):
    with pytest.raises(ValueError, match="chunk_size must be at least 1 token"):
        fused(random_inputs(3, 8), torch.ones(3), chunk_size=chunk_size)


@pytest.fixture(scope="module", params=[2, 4], ids=["TP2", "TP4"])
def ranks(request) -> list[dict]:
    return run_distributed(fused_heads.run_rank, request.param, request.param)


@pytest.mark.parametrize("case", ONE_OF_EACH, ids=name_of)
def test_ranks(ranks, case):
    name, params = case
    for layout in fused_heads.layouts(len(ranks)):
        inputs = fused_heads.whole(layout)
        for kind in fused_heads.kinds(case):
            upstream = upstreams(inputs)[kind]
            value, hidden, weight = naive(inputs, upstream, name, **params)
            found = [rank["losses"][layout.name, name_of(case), kind] for rank in ranks]
            for rank_value, rank_hidden, _ in found:
                assert_close(rank_value, value, 1e-11, f"{layout.name}, {kind}")
                assert_close(rank_hidden, hidden, 1e-11, f"hidden, {layout.name}, {kind}")
            shards = torch.cat([rank_weight for *_, rank_weight in found])
            assert_close(shards[: layout.student_vocab], weight, 1e-11, f"weight, {layout.name}, {kind}")
            assert not shards[layout.student_vocab :].any()


def test_number_of_collectives(ranks):
    """One agrees on shapes, two a block, and one adds up the gradient of the hidden states."""
    for rank in ranks:
        assert rank["counts"] == {"loss": 1 + 3 * 2 + 1, "sum": 0, "each its own": 3 * 2 + 1}
