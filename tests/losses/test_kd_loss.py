"""`kd_loss`: value and gradient against the naive float64 reference, transformers' own loss and TRL's."""

import warnings

import pytest
import torch
from transformers.loss.loss_utils import ForCausalLMLoss

from swift_kd_plugin.losses import kd_loss, token_divergence
from tests.gloo_ranks import run_distributed
from tests.losses import reference
from tests.losses.divergence_cases import ONE_OF_EACH, name_of
from tests.losses.loss_checks import assert_close
from tests.losses.random_logits import F64, random_logits

SHAPES = [(1, 2, 3), (2, 7, 33), (3, 5, 130)]  # sequences, tokens, vocabulary


def batch(sequences=2, tokens=7, vocab=33, *, teacher_vocab=None, dtype=F64):
    """Student and teacher logits, and labels of which about a third do not count."""
    student = random_logits(sequences, tokens, vocab, seed=1, dtype=dtype).requires_grad_()
    teacher = random_logits(sequences, tokens, teacher_vocab or vocab, seed=2, dtype=dtype)
    generator = torch.Generator().manual_seed(sequences * tokens)
    labels = torch.randint(min(vocab, teacher_vocab or vocab), (sequences, tokens), generator=generator)
    labels[torch.rand(sequences, tokens, generator=generator) < 0.3] = -100
    labels[0, -1] = 1
    return student, teacher, labels


def naive(student, teacher, labels, case=("forward_kl", {}), *, shift=True, ce_alpha=0.0, temperature=1.0, items=None):
    """The loss token by token, in float64."""
    losses = []
    for one in range(len(labels)):
        for place in range(labels.shape[1]):
            row = place - 1 if shift else place
            if labels[one, place] == -100 or row < 0:
                continue
            rows = student[one, row].double()[None], teacher[one, row].double()[None]
            divergence = reference.dense(*rows, case[0], temperature=temperature, **case[1])[0]
            ce = reference.cross_entropy(rows[0], labels[one, place][None])[0]
            losses.append(ce_alpha * ce + (1 - ce_alpha) * temperature**2 * divergence)
    return torch.stack(losses).sum() / (items or len(losses))


def assert_same(ours, theirs, student, tolerance=1e-12, note=""):
    """Both values, and both gradients for an upstream gradient of 2."""
    gradients = [torch.autograd.grad(2 * loss, student)[0] for loss in (ours, theirs)]
    assert_close(ours.detach(), theirs.detach(), tolerance, note)
    assert_close(*gradients, tolerance, note)


@pytest.mark.parametrize("shift", [True, False])
@pytest.mark.parametrize("case", ONE_OF_EACH, ids=name_of)
def test_value_and_gradient(case, shift):
    for shape in SHAPES:
        student, teacher, labels = batch(*shape)
        for ce_alpha, temperature, chunk_size in ((0.0, 1.0, None), (0.3, 2.5, 1), (1.0, 0.7, 3)):
            mixed = {"ce_alpha": ce_alpha, "temperature": temperature, "shift": shift}
            theirs = naive(student, teacher, labels, case, **mixed)
            ours = kd_loss(student, teacher, labels, divergence=case[0], chunk_size=chunk_size, **mixed, **case[1])
            assert ours.shape == ()
            assert_same(ours, theirs, student, note=f"{shape} {mixed}")


def test_tokens_of_one_sequence_and_other_integers():
    student, teacher, labels = batch(1, 9, 20)
    expected = kd_loss(student, teacher, labels)
    flat = kd_loss(student[0], teacher[0], labels[0].int())
    assert torch.equal(flat, expected)
    beside = torch.cat([labels[0, 1:], torch.tensor([-100])])
    assert torch.equal(kd_loss(student[0], teacher[0], beside, shift=False), expected)
    assert torch.equal(kd_loss(student, teacher, labels.where(labels != -100, -1), ignore_index=-1), expected)


def test_t_squared_can_be_left_out():
    student, teacher, labels = batch()
    options = {"temperature": 3.0, "ce_alpha": 0.0}
    plain = kd_loss(student, teacher, labels, t_squared=False, **options)
    assert_close(9 * plain.detach(), kd_loss(student, teacher, labels, **options).detach())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_half_precisions_are_worked_on_in_fp32(dtype):
    student, teacher, labels = batch(dtype=dtype)
    options = {"ce_alpha": 0.4, "temperature": 2.0}
    ours = kd_loss(student, teacher, labels, **options)
    theirs = naive(student, teacher, labels, **options)
    assert ours.dtype == torch.float32
    assert_close(ours.detach(), theirs.detach(), 1e-6)
    ours.backward()
    (gradient,) = torch.autograd.grad(theirs, student)
    assert student.grad.dtype == dtype
    assert_close(student.grad, gradient, 1e-6 if dtype == torch.float32 else 2e-3)


@pytest.mark.parametrize("inplace_grad", [False, True])
@pytest.mark.parametrize("num_items_in_batch", [None, 0, torch.tensor(0), torch.tensor(5)])
def test_no_counted_token(num_items_in_batch, inplace_grad):
    student, teacher, labels = batch()
    logits = student.clone()
    loss = kd_loss(
        logits, teacher, torch.full_like(labels, -100), ce_alpha=0.5, num_items_in_batch=num_items_in_batch,
        inplace_grad=inplace_grad,
    )  # fmt: skip
    loss.backward()
    assert loss == 0
    assert not student.grad.any()


def test_sequences_without_a_token_and_a_share_of_one():
    empty = torch.zeros(2, 0, 33, requires_grad=True)
    assert kd_loss(empty, empty.detach(), torch.zeros(2, 0, dtype=torch.long)) == 0
    student, teacher, labels = batch()
    halves = [kd_loss(student, teacher, labels, num_items_in_batch=items) for items in (0.5, torch.tensor([0.5]), 1)]
    assert halves[0] == halves[1] == 2 * halves[2]


def test_inplace_gradient_is_the_same():
    student, teacher, labels = batch()
    (expected,) = torch.autograd.grad(kd_loss(student, teacher, labels, ce_alpha=0.5), student)
    (found,) = torch.autograd.grad(kd_loss(student.clone(), teacher, labels, ce_alpha=0.5, inplace_grad=True), student)
    assert torch.equal(found, expected)


@pytest.mark.parametrize("items", [17, torch.tensor(17), torch.tensor([17])])
def test_the_number_of_items_is_that_of_all_micro_batches(items):
    student, teacher, labels = batch(3, 5, 130)
    ours = kd_loss(student, teacher, labels, num_items_in_batch=items)
    assert_same(ours, naive(student, teacher, labels, items=17), student)
    count = int((labels[:, 1:] != -100).sum())
    parts = [
        kd_loss(student[one], teacher[one], labels[one], num_items_in_batch=torch.tensor(count))
        for one in (slice(0, 1), slice(1, 3))
    ]
    assert_same(sum(parts), kd_loss(student, teacher, labels), student)


@pytest.mark.parametrize("items", [None, 40])
def test_cross_entropy_alone_is_the_loss_of_transformers(items):
    student, teacher, labels = batch(dtype=torch.float32)
    theirs = ForCausalLMLoss(student, labels, student.shape[-1], num_items_in_batch=items)
    ours = kd_loss(student, teacher, labels, ce_alpha=1.0, num_items_in_batch=items)
    assert_same(ours, theirs, student, 1e-6)


@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0])
def test_trl(beta):
    with warnings.catch_warnings(action="ignore"):
        trl = pytest.importorskip("trl.experimental.gkd")
    student, teacher, labels = batch()
    shifted = student[:, :-1], teacher[:, :-1], labels[:, 1:]
    theirs = trl.GKDTrainer.generalized_jsd_loss(*shifted, beta=beta, temperature=2.0)
    options = {"divergence": "jsd", "beta": beta, "temperature": 2.0, "t_squared": False}
    assert_same(kd_loss(student, teacher, labels, **options), theirs, student, 1e-12)


def test_padded_vocabularies():
    student, teacher, labels = batch(2, 6, 40, teacher_vocab=48)
    sizes = {"student_vocab": 37, "teacher_vocab": 37}
    labels = labels.where(labels < 37, 3)
    cut = student[..., :37], teacher[..., :37]
    ours = kd_loss(student, teacher, labels, ce_alpha=0.5, **sizes)
    assert_same(ours, naive(*cut, labels, ce_alpha=0.5), student)
    with pytest.raises(ValueError, match="has 40 columns and the teacher's 48; pass student_vocab and teacher_vocab"):
        kd_loss(student, teacher, labels)


def test_ids_of_one_side_alone_have_to_be_allowed():
    student, teacher, labels = batch(2, 6, 40, teacher_vocab=48)
    sizes = {"student_vocab": 40, "teacher_vocab": 48}
    with pytest.raises(ValueError, match=r"of the teacher's probability lies on ids .* pass allow_removed_mass=True"):
        kd_loss(student, teacher, labels, **sizes)
    ours = kd_loss(student, teacher, labels, allow_removed_mass=True, **sizes)
    assert_same(ours, naive(student, teacher[..., :40], labels), student)
    assert kd_loss(student, teacher.where(torch.arange(48) < 40, -30.0), labels, **sizes) > 0


def test_a_teacher_with_another_prompt():
    student, _, labels = batch(2, 6, 20)
    teacher, teacher_labels = random_logits(2, 9, 20, seed=5), torch.full((2, 9), -100)
    rows = torch.zeros(2, 6, dtype=torch.long)
    for one in range(2):
        counted = (labels[one, 1:] != -100).nonzero()[:, 0] + 1
        places = 9 - len(counted) + torch.arange(len(counted))
        teacher_labels[one, places] = labels[one, counted]
        rows[one, counted - 1] = places - 1
    aligned = teacher.gather(1, rows[:, :, None].expand(-1, -1, 20))
    ours = kd_loss(student, teacher, labels, teacher_labels=teacher_labels)
    assert_same(ours, naive(student, aligned, labels), student)
    with pytest.raises(ValueError, match="labels and teacher_labels must count the same ids in each sequence"):
        kd_loss(student, teacher, labels, teacher_labels=teacher_labels.where(teacher_labels != 1, 2))
    with pytest.raises(ValueError, match="must count the same ids in each sequence"):
        kd_loss(student, teacher.flip(0), labels, teacher_labels=teacher_labels.flip(0))
    with pytest.raises(ValueError, match=r"teacher_logits have the shape \(2, 9, 20\).*teacher_labels say where"):
        kd_loss(student, teacher, labels)


BAD = [
    ({"temprature": 2.0}, r"forward_kl has no parameter 'temprature' \(did you mean 'temperature'\?\)"),
    ({"alpha": 0.5}, r"no parameter 'alpha' \(did you mean 'ce_alpha'\?\)"),
    ({"num_items": 3}, r"no parameter 'num_items' \(did you mean 'num_items_in_batch'\?\)"),
    ({"divergence": "jsd", "betta": 0.5}, r"jsd has no parameter 'betta' \(did you mean 'beta'\?\)"),
    ({"divergence": "jds"}, r"no divergence 'jds' \(did you mean 'jsd'\?\)"),
    ({"ce_alpha": 1.5}, "ce_alpha is 1.5; it must lie between 0 and 1"),
    ({"ce_alpha": float("nan")}, "ce_alpha is nan"),
    ({"temperature": 0.0}, "temperature must be above 0"),
    ({"num_items_in_batch": -3}, "num_items_in_batch is -3; it is a number of tokens"),
    ({"num_items_in_batch": torch.tensor([2, 3])}, r"num_items_in_batch has the shape \(2,\); give one number"),
]


@pytest.mark.parametrize(("options", "message"), BAD, ids=[str(options) for options, _ in BAD])
def test_refused_options(options, message):
    with pytest.raises(ValueError, match=message):
        kd_loss(*batch(), **options)


def test_refused_shapes_and_labels():
    student, teacher, labels = batch()
    shapes = r"labels \[tokens\]; student_logits have the shape \(2, 7, 33\) and their labels \(14,\)"
    with pytest.raises(ValueError, match=shapes):
        kd_loss(student, teacher, labels.flatten())
    with pytest.raises(ValueError, match=r"student_logits have the shape \(1, 2, 7, 33\)"):
        kd_loss(student[None], teacher[None], labels[None])
    for wrong in (33, -7):
        with pytest.raises(ValueError, match=rf"labels has the id {wrong}, and the student has 33 ids"):
            kd_loss(student, teacher, labels.where(labels != 1, wrong))


def rank_loss(rank: int, size: int) -> list:
    """A rank's loss and its columns of the gradient, with equal and with unequal padded vocabularies."""
    found = []
    for teacher_vocab, sizes in ((40, {}), (48, {"student_vocab": 37, "teacher_vocab": 37})):
        student, teacher, labels = batch(2, 6, 40, teacher_vocab=teacher_vocab)
        own, other = (side.detach().chunk(size, -1)[rank].clone() for side in (student, teacher))
        group = torch.distributed.group.WORLD
        loss = kd_loss(
            own.requires_grad_(), other, labels.where(labels < 37, 3), divergence="jsd", ce_alpha=0.3, temperature=1.5,
            chunk_size=2, group=group, **sizes,
        )  # fmt: skip
        found.append((loss.detach(), torch.autograd.grad(2 * loss, own)[0]))
    return found


@pytest.mark.parametrize("size", [1, 2, 4])
def test_tensor_parallel(size):
    ranks = run_distributed(rank_loss, size, size)
    for index, (teacher_vocab, vocab) in enumerate(((40, 40), (48, 37))):
        student, teacher, labels = batch(2, 6, 40, teacher_vocab=teacher_vocab)
        cut = student[..., :vocab], teacher[..., :vocab]
        theirs = naive(*cut, labels.where(labels < 37, 3), ("jsd", {"beta": 0.5}), ce_alpha=0.3, temperature=1.5)
        (gradient,) = torch.autograd.grad(2 * theirs, student)
        for rank in ranks:
            assert_close(rank[index][0], theirs.detach())
        assert_close(torch.cat([rank[index][1] for rank in ranks], -1), gradient)


def test_it_is_the_mean_of_token_divergence():
    student, teacher, labels = batch()
    counted = labels[:, 1:] != -100
    sides = student[:, :-1][counted], teacher[:, :-1][counted]
    assert_same(kd_loss(student, teacher, labels), token_divergence(*sides).mean(), student)
