"""What the losses refuse, and that the message says why."""

import math
from inspect import signature

import pytest
import torch

from swift_kd_plugin.losses import DIVERGENCES, fused_linear_divergence, token_divergence, topk_divergence
from swift_kd_plugin.losses.divergences import parameters
from swift_kd_plugin.losses.objective import Objective
from swift_kd_plugin.losses.schedules import Schedule

LOGITS = torch.zeros(3, 8)
ENTRIES = torch.zeros(3, 2), torch.zeros(3, 2, dtype=torch.long)


def dense(**options):
    return token_divergence(LOGITS, LOGITS, **options)


def topk(**options):
    return topk_divergence(LOGITS, *ENTRIES, **options)


def fused(**options):
    return fused_linear_divergence(LOGITS, torch.zeros(8, 8), LOGITS, torch.zeros(8, 8), **options)


BAD_OPTIONS = [
    ({"divergence": "kl"}, r"no divergence 'kl'; choose one of forward_kl, reverse_kl"),
    ({"divergence": "foward_kl"}, r"no divergence 'foward_kl' \(did you mean 'forward_kl'\?\); choose one of"),
    ({"beta": 0.5}, r"forward_kl has no parameter 'beta' \(of jsd\); it has: none"),
    ({"temprature": 2.0}, r"forward_kl has no parameter 'temprature' \(did you mean 'temperature'\?\); it has: none"),
    ({"chunksize": 2}, r"no parameter 'chunksize' \(did you mean 'chunk_size'\?\)"),
    ({"clp": 2}, r"no parameter 'clp' \(did you mean 'clip'\?\)"),
    ({"divergence": "jsd", "lam": 0.1}, r"jsd has no parameter 'lam' \(of skew_kl, skew_rkl\); it has: beta, scaled"),
    ({"divergence": "jsd", "skaled": 1}, r"jsd has no parameter 'skaled' \(did you mean 'scaled'\?\)"),
    ({"divergence": "jsd", "beta": 1.1}, "jsd needs beta between 0 and 1, and it is 1.1"),
    ({"divergence": "jsd", "beta": math.nan}, "jsd needs beta between 0 and 1, and it is nan"),
    ({"divergence": "skew_kl", "lam": -0.1}, "skew_kl needs lam between 0 and 1"),
    ({"divergence": "skew_rkl", "lam": 2.0}, "skew_rkl needs lam between 0 and 1"),
    ({"divergence": "adaptive_kl", "head_mass": 1.5}, "adaptive_kl needs head_mass between 0 and 1"),
    ({"divergence": "alpha_beta", "a": 11.0}, "alpha_beta needs a between -10 and 10"),
    ({"temperature": 0.0}, "temperature must be above 0, and it is 0"),
    ({"temperature": -1.0}, "temperature must be above 0"),
    ({"temperature": math.nan}, "temperature must be above 0, and it is nan"),
    ({"clip": 0.0}, "clip is 0.0 for forward_kl; it must be above 0"),
    ({"divergence": "adaptive_kl", "clip": 0.1}, "adaptive_kl, which is no sum over the vocabulary, cannot be clipped"),
    ({"chunk_size": 0}, "chunk_size must be at least 1 token, and it is 0"),
    ({"chunk_size": -2}, "chunk_size must be at least 1 token"),
    ({"student_vocab": 9, "teacher_vocab": 8}, "student_vocab is 9, but the student's logits have only 8 columns"),
]


@pytest.mark.parametrize("loss", [dense, topk, fused])
@pytest.mark.parametrize(("options", "message"), BAD_OPTIONS, ids=[str(options) for options, _ in BAD_OPTIONS])
def test_options(loss, options, message):
    with pytest.raises(ValueError, match=message):
        loss(**options)


def test_dense_shapes():
    with pytest.raises(ValueError, match=r"\[tokens, vocabulary\].*\(1, 3, 8\) and the teacher's \(1, 3, 8\); flatten"):
        token_divergence(LOGITS[None], LOGITS[None])
    with pytest.raises(ValueError, match="student has logits for 3 tokens and the teacher for 2"):
        token_divergence(LOGITS, LOGITS[:2])
    with pytest.raises(ValueError, match="teacher_vocab is 9, but the teacher's logits have only 8 columns"):
        dense(student_vocab=8, teacher_vocab=9)


@pytest.mark.parametrize("sizes", [{}, {"student_vocab": 8}, {"teacher_vocab": 7}])
def test_unequal_columns_need_both_vocabularies(sizes):
    with pytest.raises(ValueError, match="has 8 columns and the teacher's 7; pass student_vocab and teacher_vocab"):
        token_divergence(LOGITS, LOGITS[:, :7], **sizes)
    assert token_divergence(LOGITS, LOGITS[:, :7], student_vocab=8, teacher_vocab=7).shape == (3,)


def test_topk_shapes():
    log_probs, ids = ENTRIES
    with pytest.raises(ValueError, match=r"ids \[tokens, K\]; the shapes are \(3, 8\), \(3, 2\) and \(3, 1\)"):
        topk_divergence(LOGITS, log_probs, ids[:, :1])
    with pytest.raises(ValueError, match="student has logits for 3 tokens and the teacher for 2"):
        topk_divergence(LOGITS, log_probs[:2], ids[:2])


def test_hidden_states_of_more_dimensions():
    weight = torch.zeros(8, 8)
    with pytest.raises(ValueError, match=r"inputs \[tokens, hidden size\].*\(1, 3, 8\).*; flatten\(0, -2\) makes"):
        fused_linear_divergence(LOGITS[None], weight, LOGITS[None], weight)


def test_topk_of_more_dimensions():
    log_probs, ids = ENTRIES
    with pytest.raises(
        ValueError, match=r"shapes are \(1, 3, 8\), \(1, 3, 2\) and \(1, 3, 2\); flatten\(0, -2\) makes"
    ):
        topk_divergence(LOGITS[None], log_probs[None], ids[None])


LOG_PROBS, IDS = torch.full((3, 2), -1.0), torch.tensor([[0, 1], [2, 7], [4, 3]])


def changed(tensor, place, value):
    tensor = tensor.clone()
    tensor[place] = value
    return tensor


@pytest.mark.parametrize(
    ("log_probs", "ids", "message"),
    [
        (IDS, LOG_PROBS, r"teacher_log_probs are torch.int64 and teacher_ids torch.float32; .* are the two swapped"),
        (
            LOG_PROBS + 3,
            IDS,
            "teacher_log_probs of token 0 add up to a probability of 14.78, .* at most 1; pass what",
        ),
        (changed(LOG_PROBS, (1, 0), -0.4), IDS, "teacher_log_probs of token 1 add up to a probability of 1.038"),
        (changed(LOG_PROBS, (2, 1), math.nan), IDS, "teacher_log_probs of token 2 add up to a probability of nan"),
        (changed(LOG_PROBS, (2, 1), math.inf), IDS, "teacher_log_probs of token 2 add up to a probability of inf"),
        (LOG_PROBS, changed(IDS, (1, 1), 8), "teacher_ids of token 1 have the id 8, .* has 8 ids, .* teacher_vocab"),
        (LOG_PROBS, changed(IDS, (2, 0), -1), "teacher_ids of token 2 have the id -1"),
    ],
)
def test_what_are_no_entries(log_probs, ids, message):
    with pytest.raises(ValueError, match=message):
        topk_divergence(LOGITS, log_probs, ids)


def test_what_are_entries():
    """Those of half precisions are rounded, a missing one may have any id, and a larger vocabulary has more of them."""
    whole = torch.randn(64, 1000, generator=torch.Generator().manual_seed(0)).log_softmax(-1)
    ids = torch.arange(1000).expand(64, -1)
    for dtype in (torch.bfloat16, torch.float16, torch.float32, torch.float64):
        assert topk_divergence(torch.zeros(64, 1000), whole.to(dtype), ids).isfinite().all()
    missing = changed(LOG_PROBS, (1, 1), -math.inf), changed(IDS, (1, 1), -1)
    assert topk_divergence(LOGITS, *missing).isfinite().all()
    assert topk_divergence(LOGITS, LOG_PROBS, changed(IDS, (1, 1), 8), teacher_vocab=9).isfinite().all()
    assert topk_divergence(LOGITS[:0], LOG_PROBS[:0], IDS[:0]).shape == (0,)


def test_an_objective_refuses_its_parameters_when_it_is_made():
    with pytest.raises(ValueError, match=r"jsd has no parameter 'betta' \(did you mean 'beta'\?\)"):
        Objective("jsd", {"betta": 0.5})
    with pytest.raises(ValueError, match="jsd needs beta between 0 and 1, and it is 2"):
        Objective("jsd", {"beta": Schedule(0.5, 2.0, "linear")})
    with pytest.raises(ValueError, match=r"no divergence 'jds' \(did you mean 'jsd'\?\)"):
        Objective("jds")


def test_topk_options():
    with pytest.raises(ValueError, match=r"no tail 'buckets' \(did you mean 'bucket'\?\); choose one of"):
        topk(tail="buckets")
    with pytest.raises(ValueError, match="no tail 'drop'; choose one of bucket, ignore, renormalise"):
        topk(tail="drop")
    with pytest.raises(ValueError, match=r"teacher_temperature is 3\.0; it must be 1 or the loss's, 2\.0"):
        topk(temperature=2.0, teacher_temperature=3.0)


def test_every_divergence_tells_its_formula_and_paper():
    for name, divergence in DIVERGENCES.items():
        assert "P" in divergence.formula, name
        assert divergence.paper, name


def test_every_parameter_has_one_default_and_one_flag():
    """The function of the terms has the parameters of the table in their order, and no defaults of its own."""
    for name, divergence in DIVERGENCES.items():
        _, *taken = signature(divergence.terms).parameters.values()
        assert [parameter.name for parameter in taken] == [parameter.name for parameter in divergence.params], name
        assert all(parameter.default is parameter.empty for parameter in taken), name
    for parameter in parameters():
        assert isinstance(parameter.default, bool) == (parameter.limits is None), parameter
        assert parameter.limits is None or parameter.limits[0] <= parameter.default <= parameter.limits[1], parameter
    flags = [flag for parameter in parameters() for flag in parameter.flags]
    assert len(flags) == len(set(flags))
