"""The Triton kernels against the chunked PyTorch path.

Without a GPU they run in Triton's interpreter, which must be switched on before triton is imported. So the checks are
functions named `interpreted_*` and `compiled_*`, which pytest collects in processes of their own: there and only there
TRITON_INTERPRET is set. A crash of the compiler does not end the test run either.
"""

import os
import subprocess
import sys
from dataclasses import replace
from importlib.util import find_spec

import pytest
import torch

from swift_kd_plugin.losses import dense, token_divergence, triton_dense
from swift_kd_plugin.losses.request import LossOptions, make_request
from tests.gloo_ranks import run_distributed
from tests.losses.divergence_cases import DENSE_CASES, name_of
from tests.losses.random_logits import random_logits

pytestmark = pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed")
CASES = [case for case in DENSE_CASES if case[0] in triton_dense.KERNEL_DIVERGENCES]
ONE_OF_EACH_KERNEL = [(name, {}) for name in triton_dense.KERNEL_DIVERGENCES]
BF16, F16, F32 = torch.bfloat16, torch.float16, torch.float32
# Both paths compute in fp32. A value may be off by this share of itself (of 1 if it is smaller), and a gradient by this
# share of its row's largest plus a quarter of the largest probability, of which the gradient is a difference.
TOLERANCE = 2e-6


def run_apart(prefix: str, interpret: str) -> None:
    """Runs the functions of this file whose names begin with `prefix` in a process of their own."""
    options = ["-q", "-o", f"python_functions={prefix}_*", "-p", "no:cacheprovider"]
    result = subprocess.run(
        [sys.executable, "-m", "pytest", __file__, *options],
        env={**os.environ, "TRITON_INTERPRET": interpret},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stdout[-8000:] + result.stderr[-2000:]


def test_kernels_agree_with_the_chunks_in_the_interpreter():
    run_apart("interpreted", "1")


@pytest.mark.skipif(find_spec("triton.backends.nvidia") is None, reason="this Triton cannot compile for CUDA")
def test_kernels_compile_for_cuda():
    run_apart("compiled", "0")


def test_losses_need_no_triton():
    code = """
import sys
sys.modules["triton"] = None
import torch
from swift_kd_plugin.losses import token_divergence
logits = torch.randn(3, 50, requires_grad=True)
token_divergence(logits, torch.randn(3, 50)).sum().backward()
"""
    subprocess.run([sys.executable, "-c", code], env={**os.environ, "TRITON_INTERPRET": "1"}, check=True)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("case", CASES, ids=name_of)
def test_kernels_agree_with_the_chunks_on_a_gpu(case):
    student, teacher = (logits.cuda() for logits in close_pair(64, 151936, BF16))
    assert triton_dense.kernels_apply(request_of(student, teacher, case), student, teacher)
    for temperature in (1.0, 2.0):
        request = request_of(student, teacher, case, temperature=temperature, **with_everything(student))
        compare(request, student, teacher)


def close_pair(tokens: int, width: int, dtype: torch.dtype, seed: int = 0) -> list[torch.Tensor]:
    """Student and teacher logits as far apart as two models are."""
    teacher = random_logits(tokens, width, seed=seed, spread=3.0)
    student = teacher + random_logits(tokens, width, seed=seed + 1, spread=1.0)
    return [student.to(dtype), teacher.to(dtype)]


def with_everything(student: torch.Tensor) -> dict:
    """A weight, cross-entropy with and without a label, and statistics."""
    tokens, width = student.shape
    labels = torch.arange(tokens, device=student.device) * 7919 % width
    labels[1::4] = -100
    ce_weights = torch.linspace(0.2, 1.5, tokens, device=student.device)
    return {"weight": 0.7, "labels": labels, "ce_weights": ce_weights, "statistics": True}


def request_of(student, teacher, case, temperature=1.0, group=None, vocabs=(None, None), **fields):
    name, params = case
    sizes = {"student_vocab": vocabs[0], "teacher_vocab": vocabs[1]}
    options = LossOptions(divergence=name, params=params, temperature=temperature, group=group, **sizes, **fields)
    return make_request(student, teacher, options)


def by_chunks(request, student, teacher, gradient):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dense, "kernels_apply", lambda *_: False)
        return dense.dense_losses(request, student, teacher, gradient)


def compare(request, student, teacher):
    """Loss, parts and gradient by the kernels and by the chunks; the gradient unrounded, in an fp32 buffer."""
    found_gradient, gradient = (torch.full(student.shape, 7.0, device=student.device) for _ in range(2))
    found = triton_dense.kernel_losses(request, student, teacher, found_gradient)
    truth = by_chunks(request, student, teacher, gradient)
    assert found.parts.keys() == truth.parts.keys()
    for name, values in {"loss": truth.loss, **truth.parts}.items():
        # The chunks make the entropies as differences of whole logits.
        large = "entropy" in name and student.numel() > 0
        floor = student.abs().max().clamp_min(1.0) if large else torch.ones(())
        kernels = found.loss if name == "loss" else found.parts[name]
        assert_close(kernels, values, values.abs().clamp_min(floor), name)
    assert_gradients_close(found_gradient, gradient, student, request.student_rows)


def assert_gradients_close(found, truth, student, rows=None, tolerance=TOLERANCE):
    if truth.shape[1]:
        largest = torch.zeros(len(truth), device=truth.device)
        rows = slice(None) if rows is None else rows
        largest[rows] = student[rows].float().softmax(-1).amax(-1)
        assert_close(found, truth, (truth.abs().amax(-1) + largest / 4)[:, None], "gradient", tolerance)


def assert_close(found, truth, size, what, tolerance=TOLERANCE):
    assert found.shape == truth.shape
    off = torch.where(found == truth, 0.0, (found - truth).abs() / size)
    assert off.max() <= tolerance, f"{what} is off by {off.max():.2g}"


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr(triton_dense, "LARGEST_BLOCK", 512)


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("case", CASES, ids=name_of)
def interpreted_divergences(case, temperature):
    for width, dtype in ((37, F32), (601, BF16), (1101, F32)):
        student, teacher = close_pair(3, width, dtype)
        compare(request_of(student, teacher, case, temperature), student, teacher)


@pytest.mark.parametrize("temperature", [1.0, 1.7])
@pytest.mark.parametrize("case", ONE_OF_EACH_KERNEL, ids=name_of)
def interpreted_mixed_losses(case, temperature):
    """The blocks are as large as on a GPU."""
    student, teacher = close_pair(4, 4500, F16)
    compare(request_of(student, teacher, case, temperature, **with_everything(student)), student, teacher)


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("case", ONE_OF_EACH_KERNEL, ids=name_of)
def interpreted_rows_and_padding(case, temperature):
    """Rows are picked in any order, others are left alone, and columns that are no ids get a gradient of 0."""
    student, teacher = close_pair(8, 1100, F32)
    teacher = torch.cat([teacher, teacher[:, :77]], 1)
    fields = with_everything(student[:4, :1050])
    fields |= {"student_rows": torch.tensor([6, 0, 3, 1]), "teacher_rows": torch.tensor([2, 7, 0, 4])}
    compare(request_of(student, teacher, case, temperature, vocabs=(1050, 1050), **fields), student, teacher)


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("vocabs", [(1100, 1020), (1010, 1177)])
@pytest.mark.parametrize("case", ONE_OF_EACH_KERNEL, ids=name_of)
def interpreted_ids_that_one_side_lacks(case, vocabs):
    student, teacher = close_pair(3, 1177, F32)
    student = student[:, :1100]
    student[0, 1080], teacher[0, 1150] = 130.0, 30.0
    fields = with_everything(student[:, : vocabs[0]])
    fields["labels"][2] = vocabs[0] - 1
    for temperature in (1.0, 2.0):
        compare(request_of(student, teacher, case, temperature, vocabs=vocabs, **fields), student, teacher)
        without = fields | {"ce_weights": None}
        compare(request_of(student, teacher, case, temperature, vocabs=vocabs, **without), student, teacher)


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("case", ONE_OF_EACH_KERNEL, ids=name_of)
def interpreted_large_logits(case):
    student, teacher = (
        x.clamp(-200, 200) for x in (random_logits(6, 1100, seed=s, spread=120.0, dtype=F32) for s in (1, 2))
    )
    student[0] = teacher[0] + 50.0
    teacher[1] /= 8
    student[1] = teacher[1] + random_logits(1100, seed=3, spread=1.0, dtype=F32) + 149.7
    compare(request_of(student, teacher, case, statistics=True), student, teacher)


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("dtype", [BF16, F32])
@pytest.mark.parametrize("case", CASES, ids=name_of)
def interpreted_equal_sides_give_zero(case, dtype):
    student = close_pair(2, 600, dtype)[0] * 10
    gradient = torch.empty(student.shape)
    rows = triton_dense.kernel_losses(request_of(student, student, case, 2.0), student, student.clone(), gradient)
    assert not rows.loss.any()
    assert gradient.abs().max() <= 2e-7


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("case", ONE_OF_EACH_KERNEL, ids=name_of)
def interpreted_logits_of_minus_infinity_have_no_part(case):
    student, teacher = close_pair(3, 1200, F32)
    kept = request_of(student[:, :1100], teacher[:, :1100], case, statistics=True)
    gradient, expected = torch.empty_like(student), torch.empty(3, 1100)
    truth = by_chunks(kept, student[:, :1100], teacher[:, :1100], expected)
    student[:, 1100:] = teacher[:, 1100:] = -torch.inf
    request = request_of(student, teacher, case, statistics=True)
    found = triton_dense.kernel_losses(request, student, teacher, gradient)
    assert_close(found.loss, truth.loss, 1.0, "loss")
    assert_gradients_close(gradient[:, :1100], expected, student)
    assert not gradient[:, 1100:].any()


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("side", ["student", "teacher"])
@pytest.mark.parametrize("case", ONE_OF_EACH_KERNEL, ids=name_of)
def interpreted_nan_shows_in_its_row_alone(case, side):
    student, teacher = close_pair(3, 1200, F32)
    {"student": student, "teacher": teacher}[side][1, 700] = torch.nan
    gradient = torch.empty_like(student)
    rows = triton_dense.kernel_losses(request_of(student, teacher, case), student, teacher, gradient)
    assert rows.loss.isnan().tolist() == [False, True, False]
    assert gradient.isnan().any(-1).tolist() == [False, True, False]


@pytest.mark.parametrize("case", ONE_OF_EACH_KERNEL, ids=name_of)
def interpreted_gradient_in_place(case):
    """The interpreter cuts bf16 off where a GPU rounds, so both are written by the kernels."""
    student, teacher = close_pair(2, 5001, BF16)
    request = request_of(student, teacher, case, **with_everything(student))
    gradient = torch.empty_like(student)
    apart = triton_dense.kernel_losses(request, student, teacher, gradient)
    inplace = triton_dense.kernel_losses(request, student, teacher, student)
    assert torch.equal(gradient, student)
    assert torch.equal(apart.loss, inplace.loss)
    assert torch.equal(apart.parts["ce"], inplace.parts["ce"])


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("case", ONE_OF_EACH_KERNEL, ids=name_of)
def interpreted_public_function(case):
    """Through autograd: rounded gradient, a gradient from above, no gradient asked, and no token at all."""
    name, params = case
    student, teacher = close_pair(4, 1100, BF16)
    upstream = torch.tensor([1.0, -2.0, 0.0, 0.5])
    losses, gradients = [], []
    for kernels in (True, False):
        with pytest.MonkeyPatch.context() as patch:
            if not kernels:
                patch.setattr(dense, "kernels_apply", lambda *_: False)
            leaf = student.clone().requires_grad_()
            losses.append(token_divergence(leaf, teacher, divergence=name, **params))
            losses[-1].backward(upstream)
            gradients.append(leaf.grad.float())
    without = token_divergence(student, teacher, divergence=name, **params)
    assert torch.equal(without, losses[0])
    assert_close(losses[0], losses[1], 1.0, "loss")
    assert_gradients_close(gradients[0], gradients[1], student, tolerance=torch.finfo(BF16).eps)
    assert token_divergence(student[:0], teacher[:0], divergence=name, **params).shape == (0,)


def interpreted_fallbacks():
    student, teacher = close_pair(3, 50, F32)
    request = request_of(student, teacher, ("jsd", {}))
    assert triton_dense.kernels_apply(request, student, teacher)
    for case in (("alpha_beta", {}), ("adaptive_kl", {}), ("jsd", {"clip": 0.1})):
        assert not triton_dense.kernels_apply(request_of(student, teacher, case), student, teacher)
    assert not triton_dense.kernels_apply(request, student.double(), teacher)
    assert not triton_dense.kernels_apply(request, student, teacher.double())
    assert not triton_dense.kernels_apply(request, student.T.contiguous().T, teacher)
    shards = [replace(request.student, widths=widths, group=object()) for widths in ((50, 50), (50, 40))]
    assert triton_dense.kernels_apply(replace(request, student=shards[0], teacher=shards[0]), student, teacher)
    assert not triton_dense.kernels_apply(replace(request, student=shards[0], teacher=shards[1]), student, teacher)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_INTERPRET", "0")
        assert not triton_dense.kernels_apply(request, student, teacher)


def interpreted_two_ranks():
    """Ranks of equal width, of which the second holds few ids, and of unequal width, of which it holds none."""
    for worst in run_distributed(rank_compares, 2):
        assert worst == []


def rank_compares(rank: int) -> list[str]:
    group, failures = torch.distributed.group.WORLD, []
    student, teacher = close_pair(4, 1400, F32)
    for widths, vocab in (((700, 700), 730), ((1400, 0), 1390)):
        own = slice(sum(widths[:rank]), sum(widths[: rank + 1]))
        fields = with_everything(student[:, :vocab])
        for case in ONE_OF_EACH_KERNEL:
            shards = student[:, own], teacher[:, own]
            request = request_of(*shards, case, 2.0, group=group, vocabs=(vocab, vocab), **fields)
            assert triton_dense.kernels_apply(request, *shards)
            try:
                compare(request, *shards)
            except AssertionError as error:
                failures.append(f"{name_of(case)}, {widths}: {error}")
    return failures


@pytest.mark.parametrize("case", ONE_OF_EACH_KERNEL, ids=name_of)
def compiled_launches(case, monkeypatch, tmp_path):
    """What the launcher would run on a GPU compiles for one: an LLVM of Triton's has crashed on a form of jsd."""
    from triton import compile as compile_kernel
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    types = {torch.int64: "*i64", torch.int32: "*i32", BF16: "*bf16", F32: "*fp32", int: "i32", float: "fp32"}

    def launch(self, kernel, *args, **constants):
        constants = {**constants, "BLOCK": 1024}
        names = kernel.arg_names
        values = dict(zip(names, args, strict=False)) | constants
        signature = {
            name: "constexpr" if name in constants else types[getattr(values[name], "dtype", type(values[name]))]
            for name in names
        }

        def aligned(name: str) -> bool:
            return signature[name][0] == "*" or (signature[name] == "i32" and values[name] % 16 == 0)

        source = ASTSource(
            kernel,
            signature=signature,
            constexprs={(names.index(name),): value for name, value in constants.items()},
            attrs={(i,): [["tt.divisibility", 16]] for i, name in enumerate(names) if aligned(name)},
        )
        options = {"num_warps": 4, "enable_fp_fusion": False}
        assert compile_kernel(source, target=GPUTarget("cuda", 90, 32), options=options).asm["cubin"]

    monkeypatch.setattr(triton_dense._Losses, "_launch", launch)
    student, teacher = close_pair(3, 1024, BF16)
    for fields in ({}, with_everything(student)):
        triton_dense.kernel_losses(request_of(student, teacher, case, **fields), student, teacher, student.clone())
