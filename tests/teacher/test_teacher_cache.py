"""What a teacher said comes back from the disk: exact or close, small, whole, and nothing but what was written."""

import json
import math
import random
import re
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open

from swift_kd_plugin.errors import KDError
from swift_kd_plugin.losses import topk_divergence
from swift_kd_plugin.losses.shards import VocabShard
from swift_kd_plugin.losses.topk import teacher_topk
from swift_kd_plugin.teacher import teacher_cache
from swift_kd_plugin.teacher.cache_codecs import HiddenCodec, LayerCodec, TopKCodec, pack, unpack
from swift_kd_plugin.teacher.cache_identity import CacheIdentity
from swift_kd_plugin.teacher.teacher_cache import TeacherCache, shard_files
from swift_kd_plugin.teacher.teacher_outputs import FeatureRows, HiddenOutputs, TopKOutputs

IDENTITY = CacheIdentity("t", (), 16, "bfloat16", "hidden", {"hidden": 64})
TOPK = CacheIdentity("t", (), 16, "bfloat16", "topk", {"k": 64, "vocabulary": 151_936, "temperature": 1.0})


def hidden_values(seed: int, tokens: int = 9, size: int = 64):
    rows = torch.randn(tokens, size, generator=torch.Generator().manual_seed(seed)).bfloat16()
    return HiddenCodec(size, torch.bfloat16).encode(HiddenOutputs((rows,), torch.zeros(tokens)))


def topk_outputs(logits: torch.Tensor, k: int) -> TopKOutputs:
    shard = VocabShard((logits.shape[1],), 0, logits.shape[1])
    return TopKOutputs(teacher_topk(logits, k, shard), torch.zeros(len(logits)))


def key(number: int) -> bytes:
    return number.to_bytes(16, "big")


def written(folder: Path, samples: int = 40, identity: CacheIdentity = IDENTITY) -> TeacherCache:
    cache = TeacherCache(folder, identity, {"name": "teacher"})
    for number in range(samples):
        cache.add(key(number), hidden_values(number))
    cache.flush()
    return cache


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 31), st.integers(0, 5), st.integers(1, 9), st.randoms())
def test_packed_ids_come_back(bits, tokens, k, draw):
    ids = torch.tensor([[draw.randrange(2**bits) for _ in range(k)] for _ in range(tokens)]).view(tokens, k)
    packed = pack(ids, bits)
    assert packed.shape == (tokens, -(-k * bits // 8))
    assert torch.equal(unpack(packed, k, bits), ids)


def test_hidden_states_come_back_bit_by_bit(tmp_path):
    written(tmp_path)
    again = TeacherCache(tmp_path, IDENTITY, {})
    assert len(again) == 40
    for number in range(40):
        assert torch.equal(again.read(key(number))["rows"], hidden_values(number)["rows"])
    assert key(40) not in again
    again.add(key(40), hidden_values(40))
    assert key(40) in again
    assert again.on_disk == {key(number) for number in range(40)}
    assert len(TeacherCache(tmp_path, TOPK, {})) == 0


def test_a_layer_comes_back_bit_by_bit():
    rows = torch.randn(7, 64).bfloat16()
    codec = LayerCodec(64, torch.bfloat16)
    values = codec.encode(FeatureRows((rows,), torch.arange(7)))
    parts = [{"rows": part} for part in values["rows"].split([2, 0, 5])]
    found = codec.decode(parts, torch.full((7,), 3))
    assert torch.equal(found.rows[0], rows)
    assert found.token_ids.tolist() == list(range(7))
    assert codec.decode([], torch.zeros(0)).rows[0].shape == (0, 64)


@pytest.mark.parametrize("scale", [0.5, 3.0, 20.0])
def test_topk_comes_back_close_with_the_exact_tail(scale):
    logits = scale * torch.randn(200, 3000, generator=torch.Generator().manual_seed(1))
    said = topk_outputs(logits, 64)
    codec = TopKCodec(64, 3000, 1.0)
    found = codec.decode([codec.encode(said)], said.token_ids)
    assert torch.equal(found.rows[1], said.rows[1])
    tails = [1 - outputs.rows[0].double().exp().sum(-1) for outputs in (found, said)]
    assert torch.allclose(*tails, atol=3e-7, rtol=0)
    student = scale * torch.randn(200, 3000, generator=torch.Generator().manual_seed(2))
    for name in ("forward_kl", "reverse_kl", "jsd"):
        losses = [
            topk_divergence(student, *outputs.rows[:2], divergence=name).sum().item() for outputs in (found, said)
        ]
        assert math.isclose(*losses, rel_tol=1e-3), (name, losses)


def test_a_row_of_which_nothing_is_said_comes_back():
    log_probs = torch.tensor([[-1.0, -torch.inf, -2.0], [-torch.inf] * 3, [0.0, -torch.inf, -torch.inf]])
    ids = torch.tensor([[5, 0, 1], [0, 0, 0], [7, 0, 0]])
    said = TopKOutputs((log_probs, ids, torch.randn(3)), torch.zeros(3))
    codec = TopKCodec(3, 8, 1.0)
    found = codec.decode([codec.encode(said)], said.token_ids).rows
    assert torch.allclose(found[0], log_probs, atol=4e-3)
    assert torch.equal(found[2], said.rows[2])


def test_bytes_of_a_token(tmp_path):
    """Everything counted that lies on the disk."""
    tokens, samples, hidden = 24, 60, 256
    cache = TeacherCache(tmp_path, IDENTITY, {"name": "teacher"})
    for number in range(samples):
        cache.add(key(number), hidden_values(number, tokens, hidden))
    cache.flush()
    assert size_of(cache) <= (2 * hidden + 16) * tokens * samples
    cache = TeacherCache(tmp_path, TOPK, {"name": "teacher"})
    codec = TopKCodec(64, 151_936, 1.0)
    for number in range(samples):
        ids = torch.randint(151_936, (tokens, 64))
        rows = torch.randn(tokens, 64).log_softmax(-1), ids, torch.randn(tokens)
        outputs = TopKOutputs(rows, torch.zeros(tokens))
        cache.add(key(number), codec.encode(outputs))
    cache.flush()
    assert size_of(cache) <= 290 * tokens * samples


def size_of(cache: TeacherCache) -> int:
    return sum(file.stat().st_size for file in shard_files(cache.folder))


def test_a_full_shard_is_written_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr("swift_kd_plugin.teacher.teacher_cache.SHARD_BYTES", 5 * 9 * 128)
    cache = written(tmp_path, samples=12)
    assert [len(shard.keys) for shard in cache.shards] == [5, 5, 2]
    assert not cache.pending


def test_two_writers_at_once(tmp_path):
    """Each sees the other's samples once they are written, and one of two copies is read."""
    first, second = (TeacherCache(tmp_path, IDENTITY, {}, rank) for rank in (0, 0))
    for number in range(8):
        (first, second)[number % 2].add(key(number), hidden_values(number))
    second.add(key(0), hidden_values(0))
    first.flush()
    second.flush()
    first.refresh()
    assert len(first) == len(second) == 8
    assert len(shard_files(first.folder)) == 2
    for number in range(8):
        assert torch.equal(first.read(key(number))["rows"], hidden_values(number)["rows"])


def read_all(folder: Path) -> list[torch.Tensor]:
    cache = TeacherCache(folder, IDENTITY, {})
    return [cache.read(key(number))["rows"] for number in range(len(cache))]


def test_one_flipped_bit_is_named(tmp_path):
    cache = written(tmp_path, samples=3)
    (file,) = shard_files(cache.folder)
    good, draw = file.read_bytes(), random.Random(0)
    header = 8 + int.from_bytes(good[:8], "little")
    for place in [*range(header), *draw.sample(range(header, len(good)), 400)]:
        bad = bytearray(good)
        bad[place] ^= 1 << draw.randrange(8)
        file.write_bytes(bad)
        if place < header and good[place : place + 1] == b" " and bad[place] in b" \t\n\r":
            continue  # padding of the header
        with pytest.raises(KDError, match=f"^{file} is damaged.*remove it, and what it held is scored again.$"):
            read_all(tmp_path)
    file.write_bytes(good[:-1])
    with pytest.raises(KDError, match="is damaged"):
        read_all(tmp_path)


def test_a_shard_that_was_removed_under_a_reader_is_called_so(tmp_path):
    cache = written(tmp_path)
    (file,) = shard_files(cache.folder)
    file.unlink()
    sentence = f"{file} was removed after it had been found (swift-kd cache clear?); start again."
    with pytest.raises(KDError, match=f"^{re.escape(sentence)}$"):
        cache.read(key(3))


def test_a_shard_that_is_removed_while_it_is_found_is_none(tmp_path, monkeypatch):
    gone = tmp_path / IDENTITY.folder / "0-gone.safetensors"
    written(tmp_path)
    monkeypatch.setattr(teacher_cache, "shard_files", lambda folder: [gone, *shard_files(folder)])
    assert len(TeacherCache(tmp_path, IDENTITY, {})) == 40


def test_what_a_killed_writer_left_is_no_shard(tmp_path):
    cache = written(tmp_path)
    (cache.folder / f".0-x.safetensors.{'0' * 32}.swift-kd-part").write_bytes(b"half")
    assert len(read_all(tmp_path)) == 40


def test_what_differs_is_named():
    other = CacheIdentity("u", (), 8, "bfloat16", "hidden", {"hidden": 64})
    assert IDENTITY.differs_in(other) == {"teacher": ("t", "u"), "bits": (16, 8)}
    assert CacheIdentity.from_json(IDENTITY.to_json()) == IDENTITY


def test_an_identity_from_before_there_were_versions_is_another():
    page = json.loads(IDENTITY.to_json())
    del page["version"]
    assert CacheIdentity.from_json(json.dumps(page)).differs_in(IDENTITY) == {"version": (1, 2)}


def test_a_shard_is_plain_safetensors(tmp_path):
    (file,) = shard_files(written(tmp_path).folder)
    with safe_open(file, "pt") as opened:
        assert sorted(opened.keys()) == ["counts", "digests", "keys", "rows"]
        assert json.loads(opened.metadata()["about"]) == {"name": "teacher"}


def test_a_place_that_takes_no_files_is_said(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(KDError, match=r"--kd_teacher_cache: .*file.* cannot be written \(.*; choose another place\."):
        TeacherCache(tmp_path / "file", IDENTITY, {}).check_writable()
