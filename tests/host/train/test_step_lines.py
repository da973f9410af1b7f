"""The line of a logging step on the console."""

import pytest

pytestmark = pytest.mark.usefixtures("cpu_backend")
ROW = {
    "loss": 1.44910479,
    "divergence": 1.44910479,
    "forward_kl": 1.4,
    "top1_agreement": 0.56472492,
    "grad_norm": 1.82719564,
    "learning_rate": 9.6e-4,
    "tokens_per_second": 1412.4,
    "iteration": "5/60",
    "elapsed_time": "5s",
    "remaining_time": "55s",
    "memory(GiB)": 1.3,
}


def test_a_step_is_one_short_line():
    from swift_kd_plugin.host.train.step_lines import step_line

    line = step_line(ROW)
    assert line == (
        "step 5/60  loss 1.449  top1_agreement 0.565  grad_norm 1.83  lr 9.60e-04  tokens/s 1,412  memory 1.30 GiB"
        "  left 55s"
    )
    assert "ce 0.5" in step_line(ROW | {"ce": 0.5})
    assert "loss nan" in step_line(ROW | {"loss": float("nan")})


def test_an_evaluation_names_itself():
    from swift_kd_plugin.host.train.step_lines import step_line

    row = {f"eval_{name}": ROW[name] for name in ("loss", "divergence", "top1_agreement")} | {"iteration": "5/60"}
    assert step_line(row) == "step 5/60  evaluation  loss 1.449  top1_agreement 0.565"
