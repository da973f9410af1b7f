"""`swift-kd train` with --kd_teacher_cache: a later epoch, stage, student and divergence read what is there."""

import json
from pathlib import Path

import pytest
import yaml

from tests.examples.recipes import samples_used
from tests.json_lines import read_json_lines, write_json_lines
from tests.machine import needs_cpu_backend
from tests.runs.test_two_stages import swift_kd_train
from tests.tiny_models import make_dense

pytestmark = needs_cpu_backend
ROWS, EPOCHS = 8, 3


@pytest.fixture(scope="module")
def recipe(flags, material, tmp_path_factory) -> Path:
    """Off-policy for three epochs, and then another divergence from the checkpoint of that, without a teacher."""
    folder = tmp_path_factory.mktemp("cached_stages")
    write_json_lines(folder / "rows.jsonl", read_json_lines(material / "sums.jsonl")[:ROWS])
    keys = {key: str(value) if isinstance(value, Path) else value for key, value in flags.items()}
    keys |= {"dataset": str(folder / "rows.jsonl"), "global_batch_size": ROWS, "train_iters": None}
    keys |= {"num_train_epochs": EPOCHS, "output_dir": "out", "nproc_per_node": 1, "no_save_optim": True}
    keys |= {"kd_teacher_cache": "cache", "off_policy": {"kd_divergence": "forward_kl"}}
    keys["on_policy"] = {"kd_divergence": "reverse_kl", "kd_temperature": 2.0, "kd_teacher_cache_mode": "read"}
    (folder / "run.yaml").write_text(yaml.safe_dump(keys))
    return folder / "run.yaml"


@pytest.fixture(scope="module")
def first(recipe, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("first")
    code, log = swift_kd_train(folder, recipe)
    assert code == 0, log[-4000:]
    return folder


def test_a_later_epoch_and_a_later_stage_read(first):
    """A relative folder is one for all stages."""
    assert samples_used(first / "out" / "off_policy") == ((EPOCHS - 1) * ROWS, ROWS)
    assert samples_used(first / "out" / "on_policy") == (EPOCHS * ROWS, 0)
    assert "it is not loaded" in (first / "out" / "on_policy" / "train.log").read_text()
    keys = json.loads((first / "out" / "on_policy" / "args.json").read_text())
    assert keys["model"].startswith(str(first / "out" / "off_policy"))


def test_another_student_reads_and_what_the_teacher_writes_is_kept(recipe, first):
    """The teacher's greedy answers are the same in each epoch."""
    student = make_dense(first / "student", hidden=32, seed=7)
    writes = "{seq_kd: true, kd_teacher_engine: megatron, kd_teacher_temperature: 0, max_completion_length: 8}"
    changes = [f"model={student}", "output_dir=other", f"num_train_epochs={EPOCHS - 1}", f"on_policy={writes}"]
    changes += ["off_policy.kd_divergence=jsd", "off_policy.kd_teacher_cache_mode=read"]
    changes += ["on_policy.kd_teacher_cache_mode=auto", "train_dataloader_shuffle=false"]
    code, log = swift_kd_train(first, recipe, *changes)
    assert code == 0, log[-4000:]
    assert samples_used(first / "other" / "off_policy") == ((EPOCHS - 1) * ROWS, 0)
    assert samples_used(first / "other" / "on_policy") == (ROWS, ROWS)


def test_a_check_writes_into_no_cache(recipe, tmp_path):
    """Its second stage, which only reads, finds what the first one has scored in the check."""
    code, log = swift_kd_train(tmp_path, recipe, "--stage", "check")
    assert code == 0, log[-4000:]
    assert not list(tmp_path.iterdir())
