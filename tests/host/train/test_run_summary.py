"""What a run says at its end."""

import pytest

pytestmark = pytest.mark.usefixtures("cpu_backend")
PAGE = {
    "state": "finished",
    "steps": 60,
    "seconds": 61.4,
    "begun_at": 0,
    "loss": {"first": 1.5, "first_step": 1, "last": 0.25, "last_step": 60},
    "checkpoint": "out/checkpoint-60",
    "best": {"checkpoint": "out/checkpoint-40", "metric": "divergence", "value": 0.2},
    "tokens_per_second": 1234.5,
    "peak_memory_bytes": 3 << 30,
    "rows": {"seen": 480, "of": 160, "left_out": {"too long": 2}},
    "warnings": {"the teacher\nknows nothing": 3},
    "log": "out/train.log",
    "next": "swift-kd eval",
    "next_rows": "held out",
}


def test_the_summary_for_a_person():
    from swift_kd_plugin.host.train.run_summary import render_summary

    assert render_summary(PAGE).splitlines() == [
        "The run has finished.",
        "  steps       60 in 61 s",
        "  loss        1.5 at step 1, 0.25 at step 60",
        "  checkpoint  out/checkpoint-60",
        "  best        out/checkpoint-40 (divergence 0.2)",
        "  tokens/s    1,234",
        "  peak memory 3.00 GiB on the rank that needs most",
        "  samples     480, 3 times each of 160 rows",
        "  left out    2 too long",
        "  log         out/train.log",
        "Warnings:",
        "  3 x the teacher knows nothing",
        "Next:",
        "  swift-kd eval",
    ]


def test_the_next_command_says_that_it_asks_what_was_trained():
    from swift_kd_plugin.host.train.run_summary import render_summary

    lines = render_summary(PAGE | {"next_rows": "trained"}).splitlines()
    assert lines[-2:] == ["Next (on rows that were trained; name others as --dataset):", "  swift-kd eval"]


def test_the_summary_of_a_run_that_went_on():
    from swift_kd_plugin.host.train.run_summary import render_summary

    loss = {"first": 1.5, "first_step": 55, "last": 1.5, "last_step": 55}
    lines = render_summary(PAGE | {"begun_at": 52, "loss": loss}).splitlines()
    assert lines[1:3] == ["  steps       8, from step 52 to 60, in 61 s", "  loss        1.5 at step 55"]
