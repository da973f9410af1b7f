"""Products of half precision through fp32: rounded once, in slabs, with torch's own refusals."""

import warnings

import pytest
import torch

from swift_kd_plugin.cpu import half_matmul

DTYPES = (torch.bfloat16, torch.float16)


@pytest.fixture
def replaced(monkeypatch):
    monkeypatch.setattr(half_matmul, "slow_dtypes", lambda: set(DTYPES))
    monkeypatch.setattr(half_matmul, "LEAST", 0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        undo = half_matmul.replace_products(torch)
    yield
    undo()


@pytest.fixture(params=[2**22, 40])
def slab(request, monkeypatch):
    monkeypatch.setattr(half_matmul, "SLAB_ELEMENTS", request.param)


def rounded(product: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """What a product in float64 is in `dtype`, or its neighbour: sums in fp32 may end on the other side of a half."""
    return pytest.approx(product.to(dtype).double(), rel=2 * torch.finfo(dtype).eps, abs=1e-3)


def matrices(dtype: torch.dtype, rows: int, inner: int, columns: int, *batch: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = [(*batch, rows, inner), (*batch, inner, columns), (rows, columns)]
    return [torch.empty(shape).normal_(generator=generator).to(dtype) for shape in shapes]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("sizes", [(50, 3, 7), (3, 50, 7), (3, 7, 50), (5, 5, 5), (0, 4, 3), (3, 0, 4), (3, 4, 0)])
def test_products_are_rounded_once(dtype, sizes, replaced, slab):
    a, b, given = matrices(dtype, *sizes)
    exact = a.double() @ b.double()
    assert (a @ b).double().numpy() == rounded(exact, dtype)
    assert torch.mm(a, b, out=a.new_empty(0)).double().numpy() == rounded(exact, dtype)
    sums = 0.5 * given.double() + 2 * exact
    assert torch.addmm(given, a, b, beta=0.5, alpha=2).double().numpy() == rounded(sums, dtype)
    assert given.clone().addmm_(a, b, beta=0.5, alpha=2).double().numpy() == rounded(sums, dtype)
    assert torch.addmm(torch.full_like(given, torch.nan), a, b, beta=0).double().numpy() == rounded(exact, dtype)
    left, right, _ = matrices(dtype, *sizes, 6)
    assert torch.bmm(left, right).double().numpy() == rounded(left.double() @ right.double(), dtype)


def test_transposed_matrices(replaced, slab):
    a, b, _ = matrices(torch.bfloat16, 9, 20, 30)
    assert (b.t() @ a.t()).double().numpy() == rounded(b.double().t() @ a.double().t(), torch.bfloat16)


def test_linear_and_its_gradients(replaced, slab):
    inputs, weight, _ = matrices(torch.bfloat16, 12, 20, 30)
    bias = torch.ones(30, dtype=torch.bfloat16)
    leaves = [inputs.requires_grad_(), weight.t().contiguous().requires_grad_(), bias.requires_grad_()]
    doubles = [leaf.detach().double().requires_grad_() for leaf in leaves]
    for given in (leaves, doubles):
        torch.nn.functional.linear(given[0].view(3, 4, 20), *given[1:]).sum().backward()
    for leaf, double in zip(leaves, doubles, strict=True):
        assert leaf.grad.dtype is torch.bfloat16
        assert leaf.grad.double().numpy() == rounded(double.grad, torch.bfloat16)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_other_types_are_torchs_own(dtype, replaced, monkeypatch):
    a, b, _ = matrices(dtype, 4, 5, 6)
    monkeypatch.setattr(half_matmul, "multiply", None)
    assert (a @ b).dtype is dtype


@pytest.mark.parametrize(
    ("call", "shapes"),
    [
        (torch.mm, [(2, 3, 4), (2, 4, 5)]),
        (torch.mm, [(4,), (4,)]),
        (torch.mm, [(3, 4), ()]),
        (torch.bmm, [(3, 4), (4, 5)]),
        (torch.bmm, [(2, 2, 3, 4), (2, 2, 4, 5)]),
        (torch.addmm, [(3, 5), (2, 3, 4), (2, 4, 5)]),
        (torch.addmm, [(7,), (3, 4), (4, 5)]),
        (torch.Tensor.addmm_, [(5,), (6, 4), (4, 5)]),
    ],
)
def test_torch_says_what_it_refuses(call, shapes, request):
    """In its own words."""
    tensors = [torch.ones(shape, dtype=torch.bfloat16) for shape in shapes]
    with pytest.raises(RuntimeError) as own:
        call(*tensors)
    request.getfixturevalue("replaced")
    with pytest.raises(RuntimeError) as ours:
        call(*tensors)
    assert str(ours.value).split("\n")[0] == str(own.value).split("\n")[0]


@pytest.mark.parametrize("other", [torch.ones(5, 2, dtype=torch.bfloat16), torch.ones(4, 2)])
def test_what_torch_refuses_is_refused(other, replaced):
    with pytest.raises(RuntimeError, match=r"shapes cannot be multiplied|same dtype"):
        torch.ones(3, 4, dtype=torch.bfloat16) @ other


def test_small_products_are_torchs_own(replaced, monkeypatch):
    monkeypatch.setattr(half_matmul, "LEAST", 4 * 5 * 6 + 1)
    monkeypatch.setattr(half_matmul, "multiply", None)
    a, b, _ = matrices(torch.bfloat16, 4, 5, 6)
    assert (a @ b).dtype is torch.bfloat16
    monkeypatch.setattr(half_matmul, "LEAST", 4 * 5 * 6)
    with pytest.raises(TypeError):
        a @ b


def test_torchs_own_come_back(monkeypatch):
    monkeypatch.setattr(half_matmul, "slow_dtypes", lambda: {torch.bfloat16})
    half_matmul.replace_products(torch)()
    monkeypatch.setattr(half_matmul, "multiply", None)
    a, b, _ = matrices(torch.bfloat16, 4, 5, 6)
    assert (a @ b).dtype is torch.bfloat16


def test_nothing_is_replaced_where_the_cpu_has_instructions(monkeypatch):
    monkeypatch.setattr(half_matmul, "slow_dtypes", set)
    monkeypatch.setattr(torch.library, "Library", None)
    half_matmul.replace_products(torch)()
