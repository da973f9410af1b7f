"""What a stage was run with: written, read, compared."""

import json
import os
import shutil
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from swift_kd_plugin.errors import KDError
from swift_kd_plugin.recipes import stage_record
from swift_kd_plugin.recipes.stage_record import MARKER, find_change, new_record, read_record

VALUES = st.one_of(st.integers(2), st.booleans(), st.text("ab", max_size=3), st.lists(st.integers(), max_size=2))
ROOT = Path("run")
KEYS = st.dictionaries(st.sampled_from(["lr", "beta", "seed", "lmbda"]), VALUES)


@given(KEYS, KEYS)
def test_a_change_is_found_if_there_is_one(tmp_path_factory, before, now):
    folder = tmp_path_factory.mktemp("marker")
    new_record(before, ROOT).write(folder)
    change = find_change(read_record(folder), new_record(now, ROOT))
    assert (change is None) == (json.dumps(before, sort_keys=True) == json.dumps(now, sort_keys=True))


def test_the_first_changed_key_is_named():
    old, new = (
        new_record({"lr": 1, "beta": 0, "seed": None}, ROOT),
        new_record({"lr": 2, "lmbda": 0.5, "beta": 0}, ROOT),
    )
    assert find_change(old, new) == "it was run without lmbda and is now to be run with lmbda 0.5"
    assert find_change(new, old) == "it was run with lmbda 0.5 and is now to be run without lmbda"


def test_where_and_how_it_runs_is_no_change():
    keys = {"nproc_per_node": 1, "env": {"A": 1}, "output_dir": "a", "kd_teacher_cache": "b"}
    assert find_change(new_record(keys, ROOT), new_record({"kd_teacher_cache_mode": "read"}, ROOT)) is None


def test_a_run_may_be_moved(tmp_path, monkeypatch):
    monkeypatch.setattr(stage_record, "HASHED_BYTES", 100)
    monkeypatch.setattr(stage_record, "BLOCK", 4)
    outside = tmp_path / "rows.jsonl"
    outside.write_text("1")

    def marker(folder: Path):
        rows, teacher = folder / "generate" / "responses.jsonl", folder / "off_policy" / "checkpoint-4"
        return new_record({"dataset": [str(rows), str(outside)], "teacher_model": str(teacher)}, folder)

    (tmp_path / "a" / "generate").mkdir(parents=True)
    (tmp_path / "a" / "off_policy" / "checkpoint-4").mkdir(parents=True)
    (tmp_path / "a" / "generate" / "responses.jsonl").write_text("rows")
    (tmp_path / "a" / "off_policy" / "checkpoint-4" / "model.safetensors").write_bytes(bytes(range(200)))
    old = marker(tmp_path / "a")
    assert old.keys["teacher_model"] == "{output_dir}/off_policy/checkpoint-4"
    shutil.copytree(tmp_path / "a", tmp_path / "b", copy_function=shutil.copyfile)  # with times of its own
    monkeypatch.chdir(tmp_path)
    assert find_change(old, marker(tmp_path / "b")) is None
    assert find_change(old, marker(Path("b"))) is None
    (tmp_path / "b" / "off_policy" / "checkpoint-4" / "model.safetensors").write_bytes(bytes(range(1, 201)))
    assert (
        find_change(old, marker(tmp_path / "b"))
        == "its input {output_dir}/off_policy/checkpoint-4 has changed since it was run"
    )


def change_of(keys, change) -> str | None:
    before = new_record(keys, ROOT)
    change()
    return find_change(before, new_record(keys, ROOT))


def test_files_and_folders_are_inputs(tmp_path):
    file, model = tmp_path / "a.jsonl", tmp_path / "model"
    model.mkdir()
    file.write_text("1")
    (model / "config.json").write_text("1")
    keys = {"dataset": [f"{file}#5", "owner/name"], "model": str(model)}
    assert change_of(keys, lambda: os.utime(file)) is None
    assert change_of(keys, lambda: file.write_text("2")) == f"its input {file} has changed since it was run"
    assert change_of(keys, lambda: (model / "config.json").write_text("2")) == (
        f"its input {model} has changed since it was run"
    )


def test_the_files_of_named_datasets_are_inputs(tmp_path):
    (tmp_path / "rows.jsonl").write_text("1")
    (tmp_path / "data.yaml").write_text(yaml.safe_dump({"plain": {"type": "rows", "source": "rows.jsonl"}}))
    keys = {"kd_datasets": str(tmp_path / "data.yaml"), "dataset": "plain#3"}
    change = change_of(keys, lambda: (tmp_path / "rows.jsonl").write_text("2"))
    assert change == f"its input {tmp_path / 'rows.jsonl'} has changed since it was run"


def test_folders_that_are_not_ours(tmp_path):
    assert read_record(tmp_path / "none") is None
    assert read_record(tmp_path) is None
    (tmp_path / "thesis.txt").write_text("")
    with pytest.raises(KDError, match=f"holds files that are not of this command .it has no {MARKER}"):
        read_record(tmp_path)
    (tmp_path / MARKER).write_text("{")
    with pytest.raises(KDError, match="cannot be read"):
        read_record(tmp_path)
