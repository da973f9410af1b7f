"""Which evaluation may choose the best checkpoint, without a launch."""

from math import inf, nan

import pytest

pytestmark = pytest.mark.usefixtures("cpu_backend")


@pytest.mark.parametrize("value", [nan, inf, -inf])
@pytest.mark.parametrize("name", ["divergence", "eval_divergence"])
def test_what_is_no_number_is_not_the_best(name, value):
    from swift_kd_plugin.host.train.evaluation import comparable

    assert comparable({"divergence": value}, name) == (
        None,
        f"{name} is {value} in this evaluation, so its checkpoint cannot be the best.",
    )


def test_a_metric_may_be_named_as_the_log_names_it():
    from swift_kd_plugin.host.train.evaluation import comparable

    metrics, problem = comparable({"divergence": 0.5}, "eval_divergence")
    assert metrics["eval_divergence"] == 0.5
    assert problem is None
    assert comparable(None, "divergence") == (None, None)


def test_a_metric_that_there_is_not_is_said():
    from swift_kd_plugin.host.train.evaluation import comparable

    metrics, problem = comparable({"loss": 1.0, "divergence": 0.5}, "divergance")
    assert metrics is None
    assert problem == (
        "--metric_for_best_model divergance: no checkpoint is the best, as the evaluation has but divergence, loss."
    )


@pytest.mark.parametrize(("training", "share"), [(True, 0.5), (False, 1.0)])
def test_what_moves_over_training_stands_at_its_end_in_evaluation(training, share):
    from types import SimpleNamespace

    from swift_kd_plugin.host.train.trainer import KDTrainer

    trainer = SimpleNamespace(
        training=training,
        state=SimpleNamespace(iteration=2),
        args=SimpleNamespace(train_iters=5),
    )
    assert KDTrainer.progress(trainer) == share
