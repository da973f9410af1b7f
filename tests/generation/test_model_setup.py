"""In which mode rows are asked that name none."""

import pytest
from datasets import Dataset

from swift_kd_plugin.data.row_report import Report
from tests.paths import BASE_MODEL

pytestmark = pytest.mark.usefixtures("cpu_backend")


@pytest.mark.parametrize(
    ("kind", "thinking", "said"),
    [
        ("qwen3", "row", "2 rows name no thinking mode and are asked as non_"),
        ("qwen3", "on", ""),
        ("qwen", "row", ""),
    ],
)
def test_the_mode_of_rows_that_name_none_is_said(capfd, kind, thinking, said):
    from swift_kd_plugin.generation.codec import load_template
    from swift_kd_plugin.generation.model_setup import say_mode

    modes = [None, {}, {"enable_thinking": True}]
    rows = Dataset.from_list([{"chat_template_kwargs": mode} for mode in modes])
    report = Report()
    assert say_mode(load_template(BASE_MODEL, kind, "qwen3"), rows, thinking, report) == bool(said)
    assert said in capfd.readouterr().err
    assert ("prompts" in report.facts) == bool(said)
