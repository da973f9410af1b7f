"""A teacher is known by all of its weights, which are read once."""

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from swift_kd_plugin.errors import KDError
from swift_kd_plugin.teacher import weight_digests
from swift_kd_plugin.teacher.weight_digests import bytes_to_read, fingerprint

ROWS, SIZE = 6000, 100


def make_weights(folder: Path, **changes: torch.Tensor) -> Path:
    folder.mkdir(exist_ok=True)
    weights = {"big": torch.zeros(ROWS, SIZE), "small": torch.zeros(10), **changes}
    save_file(weights, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"hidden_size": 4}))
    return folder


def changed(shape: tuple[int, ...], *place: int) -> torch.Tensor:
    tensor = torch.zeros(shape)
    tensor[place] = 1e-6
    return tensor


def test_a_teacher_is_known_by_its_weights(tmp_path):
    same = [fingerprint(make_weights(tmp_path / name)) for name in ("a", "b")]
    assert same[0] == same[1]
    others = [
        {"small": changed((10,), 7)},
        {"big": torch.full((ROWS, SIZE), 1e-6)},
        {"big": torch.zeros(SIZE, ROWS)},
        *({"big": changed((ROWS, SIZE), row)} for row in (1, 333, 3001, ROWS - 1)),
    ]
    prints = {fingerprint(make_weights(tmp_path / "other", **weights)) for weights in others}
    assert len(prints | {same[0]}) == len(others) + 1
    (tmp_path / "a" / "config.json").write_text("{}")
    assert fingerprint(tmp_path / "a") != same[0]
    (tmp_path / "none").mkdir()
    with pytest.raises(KDError, match="has no safetensors files"):
        fingerprint(tmp_path / "none")


def test_a_file_of_many_pieces_is_read_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(weight_digests, "PIECE", 100_000)
    monkeypatch.setattr(weight_digests, "BUFFER", 4096)
    whole = fingerprint(make_weights(tmp_path / "a"))
    content = bytearray((tmp_path / "a/model.safetensors").read_bytes())
    for place in (-1, 0, 99_999, 100_000, 100_001, 1_234_567):
        content[place] ^= 1
        (tmp_path / "a/model.safetensors").write_bytes(content)
        assert fingerprint(tmp_path / "a") != whole
        content[place] ^= 1
    (tmp_path / "a/model.safetensors").write_bytes(content)
    assert fingerprint(tmp_path / "a") == whole


def test_weights_are_read_once(tmp_path, monkeypatch):
    model, memory = make_weights(tmp_path / "model"), tmp_path / "cache" / "weights.json"
    file = model / "model.safetensors"
    assert bytes_to_read(model, memory) == file.stat().st_size
    first = fingerprint(model, memory=memory)
    assert first == fingerprint(model)
    other = fingerprint(make_weights(tmp_path / "other"), memory=memory)
    assert first == other
    assert len(json.loads(memory.read_text())) == 2
    with monkeypatch.context() as patched:
        patched.delattr(weight_digests, "_digest")
        assert bytes_to_read(model, memory) == 0
        assert fingerprint(model, memory=memory) == first


def test_weights_that_change_under_the_same_name_and_time_are_read_again(tmp_path):
    model, memory = make_weights(tmp_path / "model"), tmp_path / "weights.json"
    first, file = fingerprint(model, memory=memory), model / "model.safetensors"
    before = file.stat()
    with file.open("r+b") as stream:
        stream.seek(-1, os.SEEK_END)
        stream.write(b"\1")
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert fingerprint(model, memory=memory) == fingerprint(model) != first


@pytest.mark.parametrize("content", ["", "[1]", '{"half', "\0"])
def test_a_damaged_memory_is_none(tmp_path, content):
    model, memory = make_weights(tmp_path / "model"), tmp_path / "weights.json"
    memory.write_text(content)
    assert fingerprint(model, memory=memory) == fingerprint(model)
    assert bytes_to_read(model, memory) == 0


def test_a_place_that_takes_no_files_costs_another_reading(tmp_path):
    model = make_weights(tmp_path / "model")
    (tmp_path / "file").write_text("")
    assert fingerprint(model, memory=tmp_path / "file" / "weights.json") == fingerprint(model)
