"""Both views train on the same ids, sample by sample, or the sample is named or dropped."""

import pytest
import torch

from swift_kd_plugin.host.samples.response_labels import Mismatch, match_tokens, trained_tokens

pytestmark = pytest.mark.usefixtures("cpu_backend")
IGNORED = -100


class Template:
    def safe_decode(self, tokens):
        return "".join(chr(token) for token in tokens)


def make_samples(count: int):
    from swift_kd_plugin.host.samples.sample import KDSample

    messages = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    return [
        KDSample.from_row({"messages": messages, "dataset": "/data/pairs.jsonl", "kd_row": 17 + i, "kd_id": f"q-{i}"})
        for i in range(count)
    ]


def view(labels, **fields):
    return {"labels": labels, "input_ids": [1] * len(labels), "length": len(labels), **fields}


def match(student, teacher, on_mismatch="error"):
    from swift_kd_plugin.host.samples.match_views import match_views

    return match_views(make_samples(len(student)), student, teacher, Template(), on_mismatch, "last_round")


@pytest.mark.parametrize(
    ("student", "teacher", "expected"),
    [
        ([5, 6], [5, 6], None),
        ([], [], None),
        ([5, 6], [5, 7], Mismatch(1, 6, 7, 2, 2)),
        ([5], [5, 7], Mismatch(1, None, 7, 1, 2)),
        ([5, 6], [], Mismatch(0, 5, None, 2, 0)),
        ([6, 5], [5, 6], Mismatch(0, 6, 5, 2, 2)),
    ],
)
def test_tokens_are_matched_by_id(student, teacher, expected):
    assert match_tokens(student, teacher) == expected


def test_tokens_may_lie_anywhere():
    assert trained_tokens([IGNORED, 5, IGNORED, 6]) == trained_tokens([IGNORED, IGNORED, 5, 6]) == [5, 6]


def test_a_mismatch_names_row_position_and_both_tokens():
    student = [view([IGNORED, 65]), view([IGNORED, 65, 66])]
    teacher = [view([IGNORED, 65]), view([IGNORED, 65, 67, 68])]
    with pytest.raises(ValueError, match=r"pairs\.jsonl, line 18 \(id 'q-1'\) has different") as caught:
        match(student, teacher)
    text = str(caught.value)
    assert "2 for the student, 3 for the teacher" in text
    assert "position 1: 'B' (id 66) for the student, 'C' (id 67) for the teacher" in text
    assert "--kd_on_mismatch drop" in text


def test_a_side_without_more_tokens_has_nothing():
    with pytest.raises(ValueError, match=r"position 1: 'B' \(id 66\) for the student, nothing for the teacher"):
        match([view([65, 66])], [view([65])])


def test_a_dropped_sample_keeps_its_shape_and_trains_nothing():
    student = [view([IGNORED, 65, 66], loss_scale=[0.0, 1.0, 2.0]), view([IGNORED, 65], loss_scale=[0.0, 1.0])]
    teacher = [view([IGNORED, IGNORED, 65]), view([IGNORED, IGNORED, 65])]
    labels = student[0]["labels"]
    assert match(student, teacher, "drop") == [0]
    assert student[0] == view([IGNORED] * 3, loss_scale=[0.0] * 3)
    assert teacher[0] == view([IGNORED] * 3)
    assert (student[1], teacher[1]["labels"]) == (view([IGNORED, 65], loss_scale=[0.0, 1.0]), [IGNORED, IGNORED, 65])
    assert labels == [IGNORED, 65, 66]


def test_nothing_is_dropped_where_all_match():
    assert match([view([IGNORED, 65])], [view([IGNORED, IGNORED, 65])], "drop") == []


# Fault 6: counts of [4, 2] against [3, 3] add up to the same, and stock looks at the sum.
STUDENT = [[IGNORED, 10, 11, 12, 13], [IGNORED, 20, 21, IGNORED, IGNORED]]
TEACHER = [[IGNORED, 10, 11, 12, IGNORED], [IGNORED, 20, 21, 22, IGNORED]]


def test_fault_6_stock_pairs_across_the_sample_boundary():
    from swift.rlhf_trainers.gkd_loss import TeacherOutput, extract_active, gkd_loss

    positions = torch.arange(10.0).view(2, 5, 1).expand(2, 5, 4)
    student, teacher = torch.tensor(STUDENT), torch.tensor(TEACHER)
    output = TeacherOutput(full_logits=positions.clone(), labels=teacher)
    loss, count = gkd_loss(positions.clone(), output, student, beta=0.0, temperature=1.0)
    assert count == 6
    assert torch.isfinite(loss)
    mine, theirs, _ = extract_active(positions, output, student)
    # The last token of the first sample (position 4) meets the first token of the second one (position 5 + 1).
    assert mine[3, 0] == 4
    assert theirs.full_logits[3, 0] == 6


def test_fault_6_ours_refuses_by_name():
    with pytest.raises(ValueError, match=r"line 17 \(id 'q-0'\).*4 for the student, 3 for the teacher"):
        match([view(labels) for labels in STUDENT], [view(labels) for labels in TEACHER])
    dropped = match([view(labels) for labels in STUDENT], [view(labels) for labels in TEACHER], "drop")
    assert dropped == [0, 1]


@pytest.mark.parametrize(("weight", "strategy"), [({"loss": True}, "last_round"), ({}, "default")])
def test_a_turn_that_the_student_alone_is_trained_on_is_named(weight, strategy):
    from swift_kd_plugin.host.samples.sample import KDSample

    said = {"role": "assistant", "content": "first", **weight}
    messages = [{"role": "user", "content": "q"}, said, {"role": "user", "content": "r"}]
    row = {"messages": [*messages, {"role": "assistant", "content": "a"}], "dataset": "/data/pairs.jsonl", "kd_row": 3}

    def number(teacher: list[dict]) -> int | None:
        return KDSample.from_row({**row, "teacher_messages": teacher}).trained_before(strategy)

    assert number([{"role": "user", "content": "hint r"}]) == 2
    assert number([{"role": "user", "content": "hint"}, said, {"role": "user", "content": "r"}]) is None
