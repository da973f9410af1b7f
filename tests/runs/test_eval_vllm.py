"""vLLM answers as transformers does, for two models one after the other, and perplexity is measured behind it."""

import pytest

from tests.evaluation.eval_command import FLAGS, entry_of, read_answers, read_report, run_eval
from tests.launching.commands import flags_to_argv
from tests.machine import needs_cpu_backend
from tests.paths import BASE_MODEL
from tests.vllm_script import run_script

pytestmark = needs_cpu_backend


def test_vllm_answers_as_transformers(tmp_path):
    models = [f"one={BASE_MODEL}", f"two={BASE_MODEL}"]
    changes = {"model": models, "limit": 12, "thinking": "both", "metric": ["exact", "ppl"], "max_model_len": 256}
    argv = flags_to_argv({**FLAGS, **changes, "engine": "vllm", "max_num_seqs": 8, "output": tmp_path / "vllm"})
    log = run_script("swift-kd", "eval", *argv, folder=tmp_path)
    for noise in ("Traceback", "Exception ignored", "core dumped"):
        assert noise not in log
    run_eval(tmp_path / "here", **changes)
    here, there = (
        [{key: value for key, value in row.items() if key != "scores"} for row in read_answers(tmp_path / name)]
        for name in ("here", "vllm")
    )
    assert there == here
    assert len(there) == 2 * 2 * 2 * 12
    found = read_report(tmp_path / "vllm")
    assert found["models"]["one"]["engine"] == "vllm"
    figures = [
        entry_of(report, model="two", view="without", thinking="non_thinking")["figures"]["ppl"]["value"]
        for report in (found, read_report(tmp_path / "here"))
    ]
    assert figures[0] == pytest.approx(figures[1], rel=1e-6)
