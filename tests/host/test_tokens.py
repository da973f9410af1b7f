"""Which response a token belongs to, and the metrics by source and thinking mode."""

from types import SimpleNamespace

import pytest
import torch

pytestmark = pytest.mark.usefixtures("cpu_backend")


def sample(content="x", **extra):
    return SimpleNamespace(messages=[{"role": "assistant", "content": content}], extra=extra)


def describe(samples, lengths, shape, source="dataset", column=None):
    from swift_kd_plugin.host.tokens import describe_responses

    encoded = [{"labels": [0] * length} for length in lengths]
    return describe_responses(samples, encoded, torch.zeros(shape, dtype=torch.long), source, column)


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
    assert describe(samples, [1, 1, 1], (1, 3), source="student", column="gold").ce.tolist() == [False] * 3


def test_response_tokens_are_counted_in_sample_order():
    from swift_kd_plugin.host.tokens import number_tokens

    labels = torch.tensor([[-100, -100, 5, 6], [-100, 7, 8, -100]])
    assert number_tokens(labels).tolist() == [[-1, 0, 1, -1], [2, 3, -1, -1]]
    assert number_tokens(labels.view(1, -1)).tolist() == [[-1, 0, 1, -1, 2, 3, -1, -1]]


def test_dropped_samples_are_marked():
    from swift_kd_plugin.host.tokens import describe_responses

    encoded = [{"labels": [0]}, {"labels": [0]}]
    responses = describe_responses(
        [sample(), sample()], encoded, torch.zeros(1, 2, dtype=torch.long), "dataset", None, [1]
    )
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
    from swift_kd_plugin.host.tokens import thinks

    assert thinks(sample(content, **extra)) is expected


def test_position_weights_fall_from_one():
    from swift_kd_plugin.host.tokens import weigh_positions

    encoded = [{"labels": [-100, 5, 6, 7]}, {"labels": [-100, 5], "loss_scale": [0.0, 2.0]}]
    weigh_positions(encoded, 0.5)
    assert encoded[0]["loss_scale"] == [0.0, 1.0, 0.75, 0.5]
    assert encoded[1]["loss_scale"] == [0.0, 2.0]


def test_metrics_by_source_and_mode():
    from swift_kd_plugin.host.metrics import drop_lonely_groups, make_metrics

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
    from swift_kd_plugin.host.metrics import make_metrics

    nothing = torch.zeros(0, dtype=torch.long)
    metrics = make_metrics(("divergence",), {}, nothing.bool(), nothing, nothing, "cpu")
    assert len(metrics) == 6
    assert all(pair.tolist() == [0.0, 0.0] for pair in metrics.values())


def test_much_removed_probability_ends_the_run():
    from swift_kd_plugin.host.metrics import check_removed_mass

    logs = {"removed_teacher_mass": torch.tensor([0.02, 10.0])}
    check_removed_mass(logs, allowed=True)
    with pytest.raises(ValueError, match=r"On average 0.20% of the teacher's probability"):
        check_removed_mass(logs, allowed=False)
    check_removed_mass({"removed_teacher_mass": torch.tensor([0.002, 10.0])}, allowed=False)
