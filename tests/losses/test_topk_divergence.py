"""`topk_divergence` in one process: value and gradient against the naive float64 reference, token after token."""

import pytest
import torch

from swift_kd_plugin.losses import token_divergence, topk_divergence
from swift_kd_plugin.losses.request import TAILS
from swift_kd_plugin.losses.shards import VocabShard
from swift_kd_plugin.losses.topk import teacher_topk
from tests.losses import reference
from tests.losses.divergence_cases import CLIPPED_CASES, DENSE_CASES, ONE_OF_EACH, name_of
from tests.losses.loss_checks import assert_close, value_and_gradient
from tests.losses.random_logits import F64, random_logits, random_pair, random_topk

SHAPES = [(1, 2, 1), (3, 5, 4), (6, 301, 20)]  # tokens, vocabulary, K


def random_sparse(tokens, vocab, k, **options):
    """Student logits, the teacher's entries and ids, and a gradient from above."""
    return (
        random_logits(tokens, vocab, seed=1),
        *random_topk(tokens, vocab, k, **options),
        random_logits(tokens, seed=3),
    )


def compare(student, log_probs, ids, upstream, case, tolerance=1e-11, **options):
    name, params = case
    note = f"{name_of(case)}, {options}, {tuple(student.shape)}, K={ids.shape[1]}"
    naive = {key: value for key, value in options.items() if key != "chunk_size"}
    for factor in (1, 2):
        more = {"upstream": factor * upstream, **params}
        found = value_and_gradient(topk_divergence, student, log_probs, ids, divergence=name, **more, **options)
        truth = value_and_gradient(reference.topk, student.double(), log_probs, ids, name, **more, **naive)
        assert_close(found[0], truth[0], tolerance, note)
        assert_close(found[1], truth[1], tolerance, f"gradient, {note}")


def without_gap(case, k, tail) -> bool:
    """A single renormalised entry is 1 on both sides, and the reference's weights of AKL are then 0 / 0."""
    return case[0] == "adaptive_kl" and k == 1 and tail == "renormalise"


@pytest.mark.parametrize("tail", TAILS)
@pytest.mark.parametrize(("temperature", "teacher_temperature"), [(1.0, 1.0), (2.0, 2.0), (2.0, 1.0), (0.6, 1.0)])
@pytest.mark.parametrize("case", DENSE_CASES, ids=name_of)
def test_value_and_gradient(case, temperature, teacher_temperature, tail):
    options = {"temperature": temperature, "teacher_temperature": teacher_temperature, "tail": tail}
    for tokens, vocab, k in SHAPES:
        if not without_gap(case, k, tail):
            compare(*random_sparse(tokens, vocab, k, temperature=teacher_temperature), case, **options)


@pytest.mark.parametrize("tail", TAILS)
@pytest.mark.parametrize("case", CLIPPED_CASES, ids=name_of)
def test_clip_bounds_what_one_bucket_adds(case, tail):
    compare(*random_sparse(5, 30, 6), case, tail=tail)


@pytest.mark.parametrize("case", ONE_OF_EACH, ids=name_of)
def test_chunks_change_nothing(case):
    for chunk_size in (1, 3, 6, 7, 8):
        compare(*random_sparse(7, 11, 4), case, chunk_size=chunk_size)


@pytest.mark.parametrize("tail", TAILS)
@pytest.mark.parametrize("case", DENSE_CASES, ids=name_of)
def test_missing_entries(case, tail):
    student, log_probs, ids, upstream = random_sparse(6, 30, 5)
    ids[2, 1:4], log_probs[2, 1:4] = 0, -torch.inf
    ids[4, 0], log_probs[4, 0] = 29, -torch.inf
    for temperature in (1.0, 2.0):
        compare(student, log_probs, ids, upstream, case, tail=tail, temperature=temperature)


@pytest.mark.parametrize("tail", TAILS)
@pytest.mark.parametrize("case", DENSE_CASES, ids=name_of)
def test_a_token_of_which_the_teacher_tells_nothing(case, tail):
    name, params = case
    student, log_probs, ids, upstream = random_sparse(4, 30, 5)
    options = {"divergence": name, "tail": tail, **params}
    told, told_gradient = value_and_gradient(topk_divergence, student, log_probs, ids, upstream=upstream, **options)
    log_probs[1], ids[1] = -torch.inf, 0
    value, gradient = value_and_gradient(topk_divergence, student, log_probs, ids, upstream=upstream, **options)
    assert value[1] == 0
    assert not gradient[1].any()
    others = [0, 2, 3]
    assert_close(value[others], told[others], 1e-15)
    assert_close(gradient[others], told_gradient[others], 1e-15)


@pytest.mark.parametrize("tail", TAILS)
@pytest.mark.parametrize("case", DENSE_CASES, ids=name_of)
def test_ids_that_one_side_lacks(case, tail):
    # The teacher's ids from 24 on are unknown to the student, then the student's to the teacher.
    student, log_probs, ids, upstream = random_sparse(8, 32, 6)
    assert ((ids >= 24).any(-1) & (ids < 24).any(-1)).any()
    compare(student[:, :24], log_probs, ids, upstream, case, tail=tail, student_vocab=24, teacher_vocab=32)
    compare(student, log_probs, ids, upstream, case, tail=tail, student_vocab=24, teacher_vocab=32)
    wider = random_logits(8, 40, seed=5)
    compare(wider, log_probs, ids, upstream, case, tail=tail, student_vocab=37, teacher_vocab=32)


@pytest.mark.parametrize("case", DENSE_CASES, ids=name_of)
@pytest.mark.parametrize("tail", TAILS)
def test_the_whole_vocabulary_is_the_dense_loss(case, tail):
    name, params = case
    student, teacher, upstream = random_pair(6, 40)
    log_probs, ids = teacher.log_softmax(-1).topk(40, dim=-1)
    for temperature in (1.0, 3.0):
        options = {"upstream": upstream, "divergence": name, "temperature": temperature, **params}
        dense = value_and_gradient(token_divergence, student, teacher, **options)
        sparse = value_and_gradient(topk_divergence, student, log_probs, ids, tail=tail, **options)
        assert_close(sparse[0], dense[0], 1e-12)
        assert_close(sparse[1], dense[1], 1e-12)


@pytest.mark.parametrize("tail", TAILS)
@pytest.mark.parametrize("case", DENSE_CASES, ids=name_of)
def test_fp32(case, tail):
    if case == ("adaptive_kl", {"head_mass": 0.0}):
        case = ("adaptive_kl", {"head_mass": 0.2})
    student, log_probs, ids, upstream = random_sparse(6, 301, 20, dtype=torch.float32)
    student = student.float()
    compare(student, log_probs, ids, upstream, case, tolerance=5e-6, tail=tail, temperature=1.5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_worked_on_in_fp32(dtype):
    student, log_probs, ids, upstream = random_sparse(6, 40, 5, dtype=torch.float32)
    student = student.to(dtype)
    value, gradient = value_and_gradient(topk_divergence, student, log_probs, ids, upstream=upstream)
    exact, exact_gradient = value_and_gradient(topk_divergence, student.float(), log_probs, ids, upstream=upstream)
    assert value.dtype == torch.float32
    assert torch.equal(value, exact)
    assert gradient.dtype == dtype
    bound = 2 * torch.finfo(dtype).eps * exact_gradient.abs() + torch.finfo(dtype).tiny
    assert ((gradient.float() - exact_gradient).abs() <= bound).all()


@pytest.mark.parametrize("case", ONE_OF_EACH, ids=name_of)
def test_logits_that_are_not_contiguous(case):
    student, log_probs, ids, upstream = random_sparse(6, 30, 5)
    compare(student.t().contiguous().t(), log_probs, ids, upstream, case)
    compare(student.repeat_interleave(2, dim=1)[:, ::2], log_probs, ids.t().contiguous().t(), upstream, case)


def test_ignoring_the_tail_can_be_negative_and_a_bucket_cannot():
    student, log_probs, ids, _ = random_sparse(200, 50, 3)
    assert topk_divergence(student, log_probs, ids, divergence="reverse_kl", tail="ignore").min() < 0
    assert topk_divergence(student, log_probs, ids, divergence="reverse_kl", tail="bucket").min() > 0


@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize("k", [1, 5, 50])
def test_entries_of_a_local_teacher(k, temperature):
    logits = random_logits(7, 52, seed=2)
    log_probs, ids, shift = teacher_topk(logits, k, VocabShard((52,), 0, 50), temperature)
    truth = (logits[:, :50] / temperature).log_softmax(-1).topk(k, dim=-1)
    assert torch.equal(ids, truth.indices)
    assert_close(log_probs, truth.values, 1e-14)
    plain = logits[:, :50].log_softmax(-1).gather(1, ids)
    assert_close(log_probs * temperature + shift.unsqueeze(1), plain, 1e-13)


def test_entries_are_no_more_than_there_are_ids():
    log_probs, ids, _shift = teacher_topk(random_logits(3, 8), 100, VocabShard((8,), 0, 6))
    assert ids.shape == log_probs.shape == (3, 6)
    assert_close(log_probs.exp().sum(-1), torch.ones(3, dtype=F64))
