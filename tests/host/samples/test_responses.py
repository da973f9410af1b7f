"""Which response a token belongs to, and the metrics by source and thinking mode."""

import pytest
import torch

pytestmark = pytest.mark.usefixtures("cpu_backend")


def sample(content="x", written_by="dataset", **extra):
    from swift_kd_plugin.host.samples.sample import KDSample

    made = KDSample([{"role": "assistant", "content": content}], extra=extra)
    made.written_by = written_by
    return made


def describe(samples, lengths, shape, column=None, dropped=()):
    from swift_kd_plugin.host.samples.responses import describe_responses

    encoded = [{"labels": [0] * length} for length in lengths]
    return describe_responses(samples, encoded, torch.zeros(shape, dtype=torch.long), column, dropped)


def test_samples_in_one_row():
    responses = describe([sample(), sample()], [3, 2], (1, 7))
    assert responses.index.tolist() == [[0, 0, 0, 1, 1, -1, -1]]


def test_samples_in_rows_of_their_own():
    responses = describe([sample(), sample()], [3, 2], (2, 3))
    assert responses.index.tolist() == [[0, 0, 0], [1, 1, 1]]


def test_cross_entropy_is_for_the_dataset_or_for_chosen_rows():
    samples = [sample(gold=True), sample(gold=False), sample()]
    assert describe(samples, [1, 1, 1], (1, 3)).ce.tolist() == [True, True, True]
    assert describe(samples, [1, 1, 1], (1, 3), column="gold").ce.tolist() == [True, False, False]
    written = [sample(written_by="student", gold=True), sample(written_by="teacher", gold=True)]
    assert describe(written, [1, 1], (1, 2), column="gold").ce.tolist() == [False, True]


def test_what_is_known_of_written_responses():
    short, long, given = sample(written_by="teacher"), sample(written_by="student"), sample()
    short.response_token_ids, short.finish_reason = [[1, 2]], "stop"
    long.response_token_ids, long.finish_reason = [3, 4, 5], "length"
    responses = describe([short, long, given], [2, 3, 7], (1, 12))
    assert responses.source.tolist() == [2, 1, 0]
    assert responses.length.tolist() == [2, 3, 7]
    assert responses.truncated.tolist() == [False, True, False]


def test_what_is_left_out_has_no_labels():
    from swift_kd_plugin.host.samples.responses import leave_out

    kept, left = sample(), sample()
    left.left_out = True
    views = [{"labels": [-100, 5]}, {"labels": [6, 7]}]
    leave_out([kept, left], views)
    assert [view["labels"] for view in views] == [[-100, 5], [-100, -100]]


def test_response_tokens_are_counted_in_sample_order():
    from swift_kd_plugin.host.samples.responses import number_tokens

    labels = torch.tensor([[-100, -100, 5, 6], [-100, 7, 8, -100]])
    assert number_tokens(labels).tolist() == [[-1, 0, 1, -1], [2, 3, -1, -1]]
    assert number_tokens(labels.view(1, -1)).tolist() == [[-1, 0, 1, -1, 2, 3, -1, -1]]


def test_dropped_samples_are_marked():
    responses = describe([sample(), sample()], [1, 1], (1, 2), dropped=[1])
    assert responses.dropped.tolist() == [False, True]


@pytest.mark.parametrize(
    ("content", "extra", "expected"),
    [
        ("<think>\nWhy?\n</think>\n\nSo.", {}, True),
        ("<think>\n\n</think>\n\nSo.", {}, False),
        ("So.", {}, False),
        ("So.", {"chat_template_kwargs": {"enable_thinking": True}}, True),
        ("<think>Why?</think>So.", {"chat_template_kwargs": {"enable_thinking": False}}, False),
    ],
)
def test_thinking_mode(content, extra, expected):
    from swift_kd_plugin.host.samples.responses import thinks

    assert thinks(sample(content, **extra)) is expected


def test_position_weights_fall_from_one():
    from swift_kd_plugin.host.samples.responses import weigh_positions

    encoded = [{"labels": [-100, 5, 6, 7]}, {"labels": [-100, 5], "loss_scale": [0.0, 2.0]}]
    weigh_positions(encoded, 0.5)
    assert encoded[0]["loss_scale"] == [0.0, 1.0, 0.75, 0.5]
    assert encoded[1]["loss_scale"] == [0.0, 2.0]


def test_metrics_by_source_and_mode():
    from swift_kd_plugin.host.train.training_metrics import drop_lonely_groups, make_metrics

    parts = {"divergence": torch.tensor([1.0, 2.0, 4.0]), "ce": torch.tensor([8.0, 0.0, 16.0])}
    ce, source, thinking = torch.tensor([True, False, True]), torch.tensor([0, 1, 0]), torch.tensor([1, 1, 1])
    metrics = make_metrics(("divergence", "ce"), parts, ce, source, thinking, "cpu")
    logs = {name: pair for name, pair in metrics.items() if pair[1] > 0}
    assert logs["divergence"].tolist() == [7.0, 3.0]
    assert logs["divergence_dataset"].tolist() == [5.0, 2.0]
    assert logs["divergence_student"].tolist() == [2.0, 1.0]
    assert logs["ce"].tolist() == [24.0, 2.0]
    drop_lonely_groups(logs)
    assert set(logs) == {"divergence", "divergence_dataset", "divergence_student", "ce"}


def test_an_empty_rank_has_every_metric():
    from swift_kd_plugin.host.train.training_metrics import make_metrics

    nothing = torch.zeros(0, dtype=torch.long)
    metrics = make_metrics(("divergence",), {}, nothing.bool(), nothing, nothing, "cpu")
    assert len(metrics) == 6
    assert all(pair.tolist() == [0.0, 0.0] for pair in metrics.values())


def test_much_removed_probability_ends_the_run():
    from swift_kd_plugin.host.train.training_metrics import check_removed_mass

    logs = {"removed_teacher_mass": torch.tensor([0.02, 10.0])}
    check_removed_mass(logs, allowed=True)
    with pytest.raises(ValueError, match=r"On average 0.20% of the teacher's probability"):
        check_removed_mass(logs, allowed=False)
    check_removed_mass({"removed_teacher_mass": torch.tensor([0.002, 10.0])}, allowed=False)
