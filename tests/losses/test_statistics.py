"""The mix with cross-entropy, picked rows, and what is measured. On several ranks: test_tensor_parallel."""

import pytest
import torch

from swift_kd_plugin.losses.shards import shards_of
from swift_kd_plugin.losses.topk import teacher_topk
from tests.losses import measured_losses, reference
from tests.losses.loss_checks import assert_close, value_and_gradient
from tests.losses.random_logits import F64, random_pair

TOKENS, COLUMNS, ENTRIES = 20, 48, 5
VOCABULARIES = [(40, 40), (40, 33), (33, 40)]  # of student and teacher; the other columns are padding
ROWS = {
    "student_rows": torch.tensor([3, 0, 7, 8, 15, 12]),
    "teacher_rows": torch.tensor([1, 2, 3, 19, 5, 4]),
}


def correlated(vocabularies):
    """Logits of sides that agree on some tokens, with padding that must not count, and a gradient from above."""
    student, teacher, upstream = random_pair(TOKENS, COLUMNS, spread=3.0)
    teacher += student
    for logits, vocab in zip((student, teacher), vocabularies, strict=True):
        logits[:, vocab:] = 300.0
    return student, teacher, upstream


def compare(ours, naive, student, upstream, rows=slice(None)):
    """Values and gradients; both functions take the student's logits and return the loss first."""
    found = value_and_gradient(lambda logits: ours(logits)[0], student, upstream=upstream)
    expected = value_and_gradient(lambda logits: naive(logits[rows])[0], student, upstream=upstream)
    assert_close(found[0], expected[0])
    assert_close(found[1], expected[1])


def compare_parts(found, expected, ce, student_vocab):
    labelled = measured_losses.labels_and_weights(len(ce), student_vocab)[0] >= 0
    assert_close(found["ce"][labelled], ce[labelled])
    assert found.keys() == {"ce", *expected}
    for name, value in expected.items():
        assert_close(found[name], value, note=name)


@pytest.mark.parametrize("chunk_size", [None, 3])
@pytest.mark.parametrize("vocabularies", VOCABULARIES)
def test_dense(vocabularies, chunk_size):
    student, teacher, upstream = correlated(vocabularies)
    divergence = reference.dense(student, teacher, "jsd", measured_losses.TEMPERATURE, *vocabularies)

    def ours(logits):
        return measured_losses.dense(logits, teacher, *vocabularies, chunk_size=chunk_size)

    def naive(logits):
        divergence = reference.dense(logits, teacher, "jsd", measured_losses.TEMPERATURE, *vocabularies)
        return measured_losses.naive_loss(divergence, logits, vocabularies[0])

    compare(ours, naive, student, upstream)
    expected = measured_losses.naive_statistics(student, teacher, *vocabularies)
    assert 0 < expected["top1_agreement"].mean() < 1
    compare_parts(ours(student)[1], {"divergence": divergence, **expected}, naive(student)[1], vocabularies[0])


@pytest.mark.parametrize("teacher_temperature", [1.0, measured_losses.TEMPERATURE])
@pytest.mark.parametrize("vocabularies", VOCABULARIES)
def test_sparse(vocabularies, teacher_temperature):
    student, teacher, upstream = correlated(vocabularies)
    log_probs, ids = (teacher[:, : vocabularies[1]] / teacher_temperature).log_softmax(-1).topk(ENTRIES, dim=-1)
    assert (ids < min(vocabularies)).any(-1).all()

    def ours(logits):
        options = {"teacher_temperature": teacher_temperature, "chunk_size": 3}
        return measured_losses.sparse(logits, log_probs, ids, *vocabularies, **options)

    def naive(logits):
        options = {"temperature": measured_losses.TEMPERATURE, "teacher_temperature": teacher_temperature}
        sizes = {"student_vocab": vocabularies[0], "teacher_vocab": vocabularies[1]}
        divergence = reference.topk(logits, log_probs, ids, "jsd", **options, **sizes)
        return measured_losses.naive_loss(divergence, logits, vocabularies[0])

    compare(ours, naive, student, upstream)
    loss, ce = naive(student)
    weights = measured_losses.labels_and_weights(TOKENS, vocabularies[0])[1]
    expected = measured_losses.naive_sparse_statistics(student, log_probs, ids, min(vocabularies), teacher_temperature)
    assert 0 < expected["top1_agreement"].mean() < 1
    expected["student_ce"] = measured_losses.naive_label_ce(student, vocabularies[0], vocabularies[0])
    if teacher_temperature == 1:
        expected["teacher_ce"] = measured_losses.naive_listed_ce(log_probs, ids, vocabularies[0])
    expected["divergence"] = (loss - weights * ce) / measured_losses.WEIGHT
    compare_parts(ours(student)[1], expected, ce, vocabularies[0])


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("chunk_size", [None, 4])
def test_picked_rows(chunk_size, inplace):
    sizes = VOCABULARIES[1]
    student, teacher, upstream = correlated(sizes)
    upstream = upstream[: len(ROWS["student_rows"])]
    student[1], student[2] = -torch.inf, torch.nan  # nobody asked for these rows

    def ours(logits):
        copy = logits * 1
        return measured_losses.dense(copy, teacher, *sizes, chunk_size=chunk_size, inplace=inplace, **ROWS)

    def naive(logits):
        divergence = reference.dense(logits, teacher[ROWS["teacher_rows"]], "jsd", measured_losses.TEMPERATURE, *sizes)
        return measured_losses.naive_loss(divergence, logits, sizes[0])

    compare(ours, naive, student, upstream, rows=ROWS["student_rows"])
    picked = measured_losses.dense(student[ROWS["student_rows"]], teacher[ROWS["teacher_rows"]], *sizes)[1]
    for name, value in ours(student)[1].items():
        assert_close(value, picked[name], note=name)


def test_picked_rows_of_a_top_k_teacher():
    student, teacher, upstream = correlated(VOCABULARIES[0])
    log_probs, ids = teacher[:, :40].log_softmax(-1).topk(ENTRIES, dim=-1)
    rows, teacher_rows = ROWS.values()
    found = value_and_gradient(
        lambda logits: measured_losses.sparse(logits, log_probs, ids, 40, 40, **ROWS)[0], student, upstream=upstream[:6]
    )
    expected = value_and_gradient(
        lambda logits: measured_losses.sparse(logits[rows], log_probs[teacher_rows], ids[teacher_rows], 40, 40)[0],
        student,
        upstream=upstream[:6],
    )
    assert_close(found[0], expected[0])
    assert_close(found[1], expected[1])


def test_fp32_statistics():
    student, teacher, _ = correlated(VOCABULARIES[1])
    exact = measured_losses.dense(student.float().double(), teacher.float().double(), *VOCABULARIES[1])[1]
    for name, value in measured_losses.dense(student.float(), teacher.float(), *VOCABULARIES[1])[1].items():
        assert value.dtype == torch.float32
        torch.testing.assert_close(value.to(F64), exact[name], rtol=2e-6, atol=1e-6)


@pytest.mark.parametrize("in_the_loss", [True, False])
@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize("vocabularies", VOCABULARIES)
def test_what_both_sides_know_of_the_labels(vocabularies, temperature, in_the_loss):
    """At temperature 1 whatever the loss's is; of a top-k teacher at least what it says of each label."""
    student, teacher, _ = correlated(vocabularies)
    more = {"temperature": temperature} | ({} if in_the_loss else {"ce_weights": None})
    expected = {
        "student_ce": measured_losses.naive_label_ce(student, vocabularies[0], vocabularies[0]),
        "teacher_ce": measured_losses.naive_label_ce(teacher, vocabularies[1], vocabularies[0]),
    }
    parts = measured_losses.dense(student, teacher, *vocabularies, chunk_size=3, **more)[1]
    for name, value in expected.items():
        assert_close(parts[name], value, note=name)
    log_probs, ids = teacher[:, : vocabularies[1]].log_softmax(-1).topk(ENTRIES, dim=-1)
    parts = measured_losses.sparse(student, log_probs, ids, *vocabularies, **more)[1]
    assert_close(parts["student_ce"], expected["student_ce"])
    assert_close(parts["teacher_ce"], measured_losses.naive_listed_ce(log_probs, ids, vocabularies[0]))
    assert (parts["teacher_ce"] <= expected["teacher_ce"] + 1e-9).all()


@pytest.mark.parametrize("vocabularies", VOCABULARIES)
def test_what_a_tempered_list_knows_of_the_labels(vocabularies):
    student, teacher, _ = correlated(vocabularies)
    teacher = teacher[:, : vocabularies[1]]
    shard = shards_of(teacher, None, None, None, None)[0]
    log_probs, ids, shift = teacher_topk(teacher, ENTRIES, shard, measured_losses.TEMPERATURE)
    plain = teacher.log_softmax(-1).gather(1, ids)
    assert_close(measured_losses.TEMPERATURE * log_probs + shift[:, None], plain)
    tempered = {"teacher_temperature": measured_losses.TEMPERATURE, "chunk_size": 3}
    parts = measured_losses.sparse(student, log_probs, ids, *vocabularies, shift=shift, **tempered)[1]
    assert_close(parts["teacher_ce"], measured_losses.naive_listed_ce(plain, ids, vocabularies[0]))
    untold = measured_losses.sparse(student, log_probs, ids, *vocabularies, **tempered)[1]
    assert parts.keys() - untold.keys() == {"teacher_ce"}
    for name, value in untold.items():
        assert_close(parts[name], value, note=name)
