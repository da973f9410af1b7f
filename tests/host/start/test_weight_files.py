"""Files of weights that are not there, not whole, or of two models, before a rank is started."""

import json

import pytest
import torch
from safetensors.torch import save_file

from swift_kd_plugin.errors import KDError
from tests.host.start.test_launch_checks import CPU, check_command, message, words  # noqa: F401

FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"


@pytest.fixture
def folder(tmp_path):
    """A model of two shards."""
    made = tmp_path / "model"
    made.mkdir()
    for name in ("config.json", "tokenizer.json"):
        (made / name).write_text("{}")
    for name, file in (("a", FIRST), ("b", SECOND)):
        save_file({name: torch.ones(64)}, made / file)
    index = {"weight_map": {"a": FIRST, "b": SECOND}}
    (made / "model.safetensors.index.json").write_text(json.dumps(index))
    return made


def test_two_models_in_one_folder_are_refused(words, folder):  # noqa: F811
    """An index of an older, sharded export beside one file."""
    save_file({"a": torch.ones(1)}, folder / "model.safetensors")
    assert f"--model {folder} holds two models: model.safetensors" in message(words(model=folder))
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "model.safetensors"}}))
    check_command(words(model=folder), CPU)


@pytest.mark.parametrize("flag", ["model", "teacher_model"])
def test_a_model_whose_files_are_not_whole_is_refused(words, folder, flag):  # noqa: F811
    check_command(words(**{flag: folder}), CPU)
    second = folder / SECOND
    whole = second.read_bytes()
    second.write_bytes(whole[:-8])
    assert str(second) in message(words(**{flag: folder}))
    second.write_text("version https://git-lfs.github.com/spec/v1")
    assert str(second) in message(words(**{flag: folder}))
    second.unlink()
    assert f"--{flag} {folder} lacks {SECOND}, which model.safe" in message(words(**{flag: folder}))
    second.write_bytes(whole)
    (folder / "model.safetensors.index.json").unlink()
    assert f"--{flag} {folder} holds {FIRST} and no model.safetensors.index.json" in message(words(**{flag: folder}))
    save_file({"a": torch.ones(1)}, folder / "model.safetensors")
    check_command(words(**{flag: folder}), CPU)


def test_weights_that_are_not_read_may_be_absent(folder):
    from types import SimpleNamespace

    from swift_kd_plugin.host.start.model_checks import check_models

    (folder / SECOND).unlink()
    sizes = ("tensor_model_parallel_size", "pipeline_model_parallel_size", "expert_model_parallel_size")
    args = SimpleNamespace(
        model=str(folder), mcore_model=None, mcore_adapter=None, adapters=[], **dict.fromkeys(sizes, 1)
    )
    with pytest.raises(KDError, match="lacks"):
        check_models(args)
    args.mcore_model = "checkpoint-2"
    check_models(args)
