"""The page of logged figures has every name that a run logs, and none that nothing logs."""

import re

import pytest

from tests.json_lines import read_json_lines
from tests.launching.commands import megatron_rlhf
from tests.machine import needs_cpu_backend
from tests.paths import BASE_MODEL, DATA, ROOT

PAGES = [ROOT / "docs" / language / "reference" / "logs.md" for language in ("en", "zh")]
GROUPS = ("dataset", "student", "teacher", "thinking", "non_thinking")
# Of other models, and of ms-swift's own loss: not in the run below.
ELSEWHERE = {
    *("load_balancing_loss", "seq_load_balancing_loss", "global_load_balancing_loss", "z_loss"),
    *("jsd_loss", "sft_loss", "removed_student_mass"),
}


def names_of(page: str) -> set[str]:
    """What stands in the first cells of its tables of names, and in its sentences on the last row."""
    cells = [line.split("|")[1] for line in page.splitlines() if line.count("|") in (5, 6)]
    names = {name for cell in cells for name in re.findall(r"`([^`]+)`", cell)}
    last = page.split("\n## ")[-1]
    return names | {name for name in ("jsd_loss", "sft_loss") if name in page} | set(re.findall(r"`(\w+_\w+)`", last))


def in_general(name: str) -> str:
    """A logged name without evaluation, group and numbers of layers."""
    name = re.sub(r"^feature_\d+_\d+$", "feature_S_T", name.removeprefix("eval_"))
    # `thinking_share`, `teacher_ce` and the like are names of their own.
    return re.sub(rf"(?<=[a-z0-9])_(?:{'|'.join(GROUPS)})$", "", name)


@pytest.fixture(scope="module")
def logged(flags, tmp_path_factory) -> set[str]:
    """All that one run says in which everything is on: writers, modes, features, schedules, top-k, evaluation."""
    everything = {
        **flags,
        **{"model": BASE_MODEL, "teacher_model": BASE_MODEL, "kd_datasets": DATA / "data.yaml"},
        **{"dataset": ["pairs", "modes"], "val_dataset": "pairs_val#4", "eval_steps": 2, "eval_iters": 1},
        **{"micro_batch_size": 8, "global_batch_size": 16, "kd_student_engine": "transformers"},
        **{"lmbda": 0.4, "kd_lmbda_final": 0.6, "seq_kd": True, "kd_seq_kd_prob": 0.5, "max_completion_length": 8},
        **{"kd_teacher_engine": "megatron", "kd_topk": 16, "kd_on_mismatch": "drop", "kd_schedule": "linear"},
        **{"kd_divergence": "jsd", "kd_beta": 0.5, "kd_beta_final": 0.6, "kd_ce_alpha": 0.3, "kd_ce_alpha_final": 0.2},
        **{"kd_temperature": 2.0, "kd_temperature_final": 1.0},
        **{"kd_feature_weight": 0.1, "kd_feature_weight_final": 0.2, "kd_feature_loss": "cosine"},
    }
    run = megatron_rlhf(tmp_path_factory.mktemp("everything"), everything).expect_success()
    return {name for row in read_json_lines(run.output / "logging.jsonl") for name in row}


@needs_cpu_backend
def test_every_logged_figure_stands_on_the_page_and_the_other_way_round(logged):
    named = names_of(PAGES[0].read_text(encoding="utf-8"))
    found = {in_general(name) for name in logged}
    assert found - named == set(), "logged, and not on the page"
    assert named - found - ELSEWHERE == set(), "on the page, and not logged"


def test_both_languages_name_the_same_figures():
    english, chinese = (names_of(page.read_text(encoding="utf-8")) for page in PAGES)
    assert english == chinese
    assert len(english) > 40
