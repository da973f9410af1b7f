"""What a run that only reads says of a cache that is not its own, and which entry a sample has."""

import json
from argparse import Namespace
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from swift_kd_plugin.errors import KDError
from swift_kd_plugin.host.samples.response_labels import IGNORED
from swift_kd_plugin.host.teacher.cache_choice import (
    check_read_cache,
    identity_of_layer,
    why_missing,
    why_no_layer,
    why_nothing,
)
from swift_kd_plugin.host.teacher.cache_keys import CacheEntry, cache_entry
from swift_kd_plugin.teacher.teacher_cache import TeacherCache
from swift_kd_plugin.teacher.weight_digests import REMEMBERED, fingerprint
from tests.paths import BASE_MODEL
from tests.teacher.test_teacher_cache import IDENTITY, TOPK, hidden_values, key

AUTO = "or let --kd_teacher_cache_mode auto score what is missing."


@pytest.fixture
def cache(tmp_path) -> TeacherCache:
    made = TeacherCache(tmp_path, IDENTITY, {"teacher": "models/big", "template": "qwen3"})
    made.add(key(0), hidden_values(0))
    made.flush()
    return made


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        (replace(IDENTITY, teacher="u"), "those are of models/big, whose weights or config.json are others than this"),
        (replace(IDENTITY, adapters=("a",)), "those of models/big were written with 0 adapters, and are not those of"),
        (replace(IDENTITY, bits=8), "those of models/big have bits 16, and this run has 8"),
        (TOPK, "those of models/big have codec hidden, and this run has topk"),
        (
            replace(IDENTITY, teacher="u", version=3),
            "those of models/big were written by an older version of the plugin",
        ),
        (replace(IDENTITY, built={"rope_scaling": "yarn"}), "have rope_scaling None, and this run has yarn"),
    ],
)
def test_a_cache_of_another_teacher_is_told_apart(cache, tmp_path, wanted, said):
    sentence = why_nothing(tmp_path, wanted)
    assert sentence.startswith(f"--kd_teacher_cache {tmp_path} holds no rows of this teacher: those ")
    assert said in sentence
    assert sentence.endswith(AUTO)


def read_flags(folder, **changes) -> Namespace:
    flags = {"kd_teacher_cache": str(folder), "kd_topk": None, "gkd_logits_topk": None, "kd_teacher_bits": None}
    flags |= {"temperature": 1.0, "kd_temperature": None, "model": "org/small", "teacher_model": "org/big"}
    return Namespace(**flags | changes)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"kd_teacher_bits": 4}, "those of models/big have bits 16, and this run has 4"),
        ({"kd_topk": 8}, "those of models/big have codec hidden, and this run has topk"),
        ({"teacher_model": str(BASE_MODEL)}, "those are of models/big, whose weights or config.json are others than"),
    ],
)
def test_what_flags_and_files_tell_of_a_cache_is_said_before_a_rank_starts(cache, tmp_path, changes, said):
    check_read_cache(read_flags(tmp_path))
    if "teacher_model" in changes:
        check_read_cache(read_flags(tmp_path, **changes))  # whose weights have not been read yet
        fingerprint(BASE_MODEL, memory=tmp_path / REMEMBERED)
    with pytest.raises(KDError) as error:
        check_read_cache(read_flags(tmp_path, **changes))
    assert str(error.value).startswith(f"--kd_teacher_cache {tmp_path} holds no rows of this teacher: {said}")
    assert str(error.value).endswith(AUTO)


def test_a_cache_without_rows_is_said_before_a_rank_starts(tmp_path):
    with pytest.raises(KDError, match="holds no rows of any teacher; check the path"):
        check_read_cache(read_flags(tmp_path))


def test_an_empty_folder_is_told(tmp_path):
    assert why_nothing(tmp_path, IDENTITY).startswith(f"--kd_teacher_cache {tmp_path} holds no rows of any teacher; ")


def test_layers_that_are_there_are_named(cache, tmp_path):
    start = f"--kd_teacher_cache {tmp_path} holds "
    end = f" of this teacher, and --kd_feature_layers asks for layer 8; match other layers, {AUTO}"
    wanted = identity_of_layer(IDENTITY, 64, 8)
    assert why_no_layer(tmp_path, wanted) == f"{start}no inner layer{end}"
    for teacher, layer in ((IDENTITY, 4), (IDENTITY, 2), (replace(IDENTITY, bits=8), 8)):
        of_layer = TeacherCache(tmp_path, identity_of_layer(teacher, 64, layer), {})
        of_layer.add(key(0), hidden_values(0))
        of_layer.flush()
    assert why_no_layer(tmp_path, wanted) == f"{start}the layers 2, 4{end}"
    assert "those of models/big have codec hidden, and this run has topk" in why_nothing(tmp_path, TOPK)
    of_layer = TeacherCache(tmp_path, identity_of_layer(IDENTITY, 64, 2), cache.about)
    assert "one is not among the 1 samples of layer 2 of this teacher in " in why_missing(
        tmp_path, of_layer, CacheEntry("one", {}, [])
    )


def test_a_layer_is_the_same_whatever_else_is_kept():
    assert identity_of_layer(IDENTITY, 64, 8) == identity_of_layer(TOPK, 64, 8)
    assert identity_of_layer(IDENTITY, 64, 8).differs_in(identity_of_layer(TOPK, 64, 4)) == {"layer": (8, 4)}


def test_a_sample_that_is_not_there_is_named(cache):
    entry = CacheEntry("rows.jsonl, row 3", {}, [])
    assert "rows.jsonl, row 3 is not among the 1 samples" in why_missing(cache.folder, cache, entry)
    assert "other rows, another view" in why_missing(cache.folder, cache, entry)
    cache.about["template"] = "chatml"
    assert "with the template qwen3, and this run has chatml" in why_missing(cache.folder, cache, entry)
    entry = CacheEntry("rows.jsonl, row 3", {}, [], written=True)
    assert "a model has just written its response" in why_missing(cache.folder, cache, entry)


SAMPLE = SimpleNamespace(name="name", response_token_ids=[])
VIEW = {"input_ids": [5, 6, 7, 8], "labels": [IGNORED, IGNORED, 7, 8], "length": 4}


def entry_of(**changes):
    return cache_entry({0: b"i"}, SAMPLE, {**VIEW, **changes})


def test_an_entry_is_of_what_the_teacher_sees():
    truth = entry_of()
    assert truth.token_ids == [7, 8]
    assert entry_of(loss_scale=[0, 0, 1, 0.5]) == truth
    padded = {"input_ids": [*VIEW["input_ids"], 0, 0], "labels": [*VIEW["labels"], IGNORED, IGNORED]}
    assert entry_of(**padded) == truth
    others = [
        entry_of(input_ids=[4, 6, 7, 8]),
        entry_of(labels=[IGNORED, 6, 7, 8]),
        entry_of(pixel_values=torch.zeros(2, 3, dtype=torch.bfloat16)),
        entry_of(pixel_values=torch.ones(2, 3, dtype=torch.bfloat16)),
        cache_entry({0: b"j"}, SAMPLE, VIEW),
    ]
    assert len({entry.keys[0] for entry in [truth, *others]}) == 6
    assert entry_of(channel="math", lengths=[4]) == truth
    assert entry_of(labels=[IGNORED] * 4).keys == {}


@pytest.mark.parametrize(
    "values",
    [
        [[1.0, 2.0], [1.0, 2.5], [1.0], [[1.0, 2.0]], (1, 2)],
        ["a", "b", ["a"], ["a", "b"], ["ab"], {"a": 1}, {"a": 2}],
        [torch.tensor(1.0), torch.tensor(2.0), torch.tensor([1.0]), torch.tensor(1.0).bfloat16(), 1.0, True, 1],
        [[torch.ones(2)], [torch.zeros(2)], torch.ones(1, 2), {"a": torch.ones(2)}],
        [np.ones(2), np.ones(2, dtype=np.float32), np.ones((2, 1)), np.float64(1.0)],
    ],
)
def test_all_that_describes_media_tells_entries_apart(values):
    keys = [entry_of(second_per_grid_ts=value).keys[0] for value in values]
    assert len({*keys, entry_of().keys[0]}) == len(values) + 1
    assert keys == [entry_of(second_per_grid_ts=value).keys[0] for value in values]


def test_what_stands_behind_the_response_tells_nothing():
    padded = {"input_ids": [*VIEW["input_ids"], 0, 0], "labels": [*VIEW["labels"], IGNORED, IGNORED]}
    assert entry_of(token_type_ids=[0, 1, 1, 0]) == entry_of(**padded, token_type_ids=[0, 1, 1, 0, 0, 0])
    assert entry_of(token_type_ids=[0, 1, 1, 1]) != entry_of(token_type_ids=[0, 1, 1, 0])


def test_a_value_of_no_known_kind_is_refused():
    with pytest.raises(
        KDError, match=r"^name has media of the type object \(pictures\), which --kd_teacher_cache cannot"
    ):
        entry_of(pictures=[object()])


def test_each_part_has_a_key_of_its_own():
    found = cache_entry({0: b"i", 8: b"j"}, SAMPLE, VIEW)
    assert found.keys[0] == entry_of().keys[0] != found.keys[8]
    # As it was before there were parts: what is on a disk is still found.
    assert found.keys[0].hex() == "3322d43a9dcfe3d37128437888f67a27"


def test_the_identity_is_plain_json():
    assert json.loads(IDENTITY.to_json())["codec"] == "hidden"
