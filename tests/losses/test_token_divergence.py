"""`token_divergence` in one process: value and gradient against the naive float64 reference."""

import pytest
import torch

from swift_kd_plugin.losses import DIVERGENCES, token_divergence
from tests.losses import reference
from tests.losses.divergence_cases import CLIPPED_CASES, DENSE_CASES, ONE_OF_EACH, name_of
from tests.losses.loss_checks import assert_close, value_and_gradient
from tests.losses.random_logits import random_logits, random_pair

SHAPES = [(1, 2), (3, 5), (17, 301)]


def compare(student, teacher, upstream, case, tolerance=1e-12, **options):
    """Both results against the reference, for the gradient from above and for twice that gradient."""
    name, params = case
    note = f"{name_of(case)}, {options}, {tuple(student.shape)}"
    naive = {key: value for key, value in options.items() if key not in ("chunk_size", "inplace_grad")}
    for factor in (1, 2):
        up = factor * upstream
        found = value_and_gradient(
            token_divergence, student, teacher, upstream=up, divergence=name, **params, **options
        )
        truth = value_and_gradient(reference.dense, student.double(), teacher, name, upstream=up, **params, **naive)
        assert_close(found[0], truth[0], tolerance, note)
        assert_close(found[1], truth[1], tolerance, f"gradient, {note}")


def test_every_divergence_has_cases():
    assert {name for name, _ in DENSE_CASES} == {name for name, _ in ONE_OF_EACH} == set(DIVERGENCES)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0, 4.5])
@pytest.mark.parametrize("case", DENSE_CASES, ids=name_of)
def test_value_and_gradient(case, temperature):
    for tokens, vocab in SHAPES:
        compare(*random_pair(tokens, vocab), case, temperature=temperature)


@pytest.mark.parametrize("case", CLIPPED_CASES, ids=name_of)
def test_clip_bounds_what_one_entry_adds(case):
    for tokens, vocab in SHAPES:
        compare(*random_pair(tokens, vocab), case)


@pytest.mark.parametrize("case", DENSE_CASES, ids=name_of)
def test_chunks_change_nothing(case):
    for chunk_size in (1, 3, 6, 7, 8):
        compare(*random_pair(7, 11), case, chunk_size=chunk_size)


@pytest.mark.parametrize("case", DENSE_CASES, ids=name_of)
def test_unequal_vocabularies(case):
    student, teacher, upstream = random_pair(5, 64)
    compare(student, teacher[:, :50], upstream, case, student_vocab=64, teacher_vocab=50)
    compare(student[:, :50], teacher, upstream, case, student_vocab=50, teacher_vocab=64, chunk_size=2)


@pytest.mark.parametrize("case", DENSE_CASES, ids=name_of)
@pytest.mark.parametrize("vocabularies", [(50, 57), (57, 50), (50, 50)])
def test_padding_columns_never_matter(case, vocabularies):
    name, params = case
    sizes = dict(zip(("student_vocab", "teacher_vocab"), vocabularies, strict=True))
    student, teacher, upstream = random_pair(5, 64)
    compare(student, teacher, upstream, case, **sizes)
    found = value_and_gradient(
        token_divergence, student, teacher, upstream=upstream, divergence=name, **params, **sizes
    )
    both = min(vocabularies)
    for logits, vocab in ((student, vocabularies[0]), (teacher, vocabularies[1])):
        logits[:, vocab:] = random_logits(5, 64 - vocab, seed=99, spread=500)
    again = value_and_gradient(
        token_divergence, student, teacher, upstream=upstream, divergence=name, **params, **sizes
    )
    assert torch.equal(found[0], again[0])
    assert torch.equal(found[1], again[1])
    assert not found[1][:, both:].any()


@pytest.mark.parametrize("case", ONE_OF_EACH, ids=name_of)
def test_logits_that_are_not_contiguous(case):
    student, teacher, upstream = random_pair(7, 22)
    compare(student.t().contiguous().t(), teacher.t().contiguous().t(), upstream, case, chunk_size=3)
    compare(student[:, ::2], teacher[:, 11:], upstream, case)
    compare(student[::2], teacher[:4], upstream[:4], case)


@pytest.mark.parametrize("case", DENSE_CASES, ids=name_of)
def test_a_vocabulary_of_one_id(case):
    name, params = case
    student, teacher, upstream = random_pair(3, 1)
    value, gradient = value_and_gradient(
        token_divergence, student, teacher, upstream=upstream, divergence=name, **params
    )
    assert torch.equal(value, torch.zeros_like(value))
    assert torch.equal(gradient, torch.zeros_like(gradient))


@pytest.mark.parametrize("case", DENSE_CASES, ids=name_of)
def test_fp32(case):
    student, teacher, upstream = random_pair(17, 301, dtype=torch.float32)
    compare(student, teacher, upstream, case, tolerance=2e-6, temperature=1.5)
    assert token_divergence(student, teacher, divergence=case[0], **case[1]).dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("case", DENSE_CASES, ids=name_of)
def test_half_precision_is_worked_on_in_fp32(case, dtype):
    name, params = case
    student, teacher, upstream = random_pair(6, 40, dtype=dtype)
    options = {"upstream": upstream, "divergence": name, "temperature": 0.7, **params}
    value, gradient = value_and_gradient(token_divergence, student, teacher, **options)
    exact, exact_gradient = value_and_gradient(token_divergence, student.float(), teacher.float(), **options)
    assert value.dtype == torch.float32
    assert torch.equal(value, exact)
    assert gradient.dtype == dtype
    # Rounded once when it is stored and once more when it is multiplied with what comes from above.
    bound = 2 * torch.finfo(dtype).eps * exact_gradient.abs() + torch.finfo(dtype).tiny
    assert ((gradient.float() - exact_gradient).abs() <= bound).all()


def test_sides_may_differ_in_precision():
    student, teacher, upstream = random_pair(6, 40, dtype=torch.bfloat16)
    for pair in ((student, teacher.float()), (student.float(), teacher)):
        value, _ = value_and_gradient(token_divergence, *pair, upstream=upstream)
        assert torch.equal(value, token_divergence(student.float(), teacher.float()))


@pytest.mark.parametrize("case", DENSE_CASES, ids=name_of)
def test_equal_sides_have_no_divergence_and_no_gradient(case):
    name, params = case
    student = random_logits(50, 100, spread=5.0, dtype=torch.float32)
    value, gradient = value_and_gradient(
        token_divergence, student, student.clone(), upstream=torch.ones(50), divergence=name, **params
    )
    assert not value.any()
    # P and Q are the same numbers, but they add up to one only as far as fp32 goes.
    assert gradient.abs().max() <= 1e-6


def test_equally_probable_ids_are_in_the_head_together():
    teacher = torch.tensor([[3.0, 1.0, 3.0, 1.0, 0.0], [0.0, 0.0, 0.0, 0.0, 0.0]], dtype=torch.float64)
    student, _, upstream = random_pair(2, 5)
    for head_mass in (0.0, 0.3, 0.5, 0.9, 0.99, 1.0):
        compare(student, teacher, upstream, ("adaptive_kl", {"head_mass": head_mass}))
        mirrored = token_divergence(student.flip(1), teacher.flip(1), divergence="adaptive_kl", head_mass=head_mass)
        assert_close(token_divergence(student, teacher, divergence="adaptive_kl", head_mass=head_mass), mirrored)


@pytest.mark.parametrize("vocab", [200, 10000])
def test_a_head_of_more_ids_than_are_looked_at_first(vocab):
    # Almost equally probable ids: the head takes about the same share of them as of the mass.
    student, teacher, upstream = random_pair(4, vocab, spread=0.01)
    for head_mass in (0.2, 0.5, 0.95):
        compare(student, teacher, upstream, ("adaptive_kl", {"head_mass": head_mass}), tolerance=1e-11)
