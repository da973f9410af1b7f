"""What a teacher's inner layers said is read again, in any layout, beside its other rows."""

import shutil
from pathlib import Path

import pytest
import torch

from swift_kd_plugin.teacher.cache_contents import clear, read_contents
from tests.launching.commands import megatron_rlhf
from tests.runs.test_teacher_cache import LAYOUTS, PP, compare, one_batch, train, used

PLUGIN = "swift_kd_plugin"
TEACHER_LAYERS = (2, 3, 4)
FEATURES = {"kd_feature_weight": 1.0, "kd_feature_layers": "1:2,2:3,4:4"}


@pytest.fixture(scope="module")
def online(flags, material, tmp_path_factory):
    folder = tmp_path_factory.mktemp("online_features")
    plain = {**flags, **one_batch(material, folder), **FEATURES}
    return plain, train(folder, plain)


@pytest.fixture(scope="module")
def written(online, tmp_path_factory):
    """Under PP2 the layers of the second pair lie on different stages: one writes what the other one reads."""
    folder = tmp_path_factory.mktemp("feature_cache")
    flags = {**online[0], "kd_teacher_cache": folder / "cache"}
    return flags, train(folder, {**flags, PP: 2}, 2)


def compare_all(found, truth) -> None:
    """The gradient as a whole, and each projection's."""
    compare(found, truth)
    projections = [name for name in truth[1] if name.startswith("projection")]
    assert len(projections) == 3
    for name in projections:
        cosine = torch.nn.functional.cosine_similarity(found[1][name].flatten(), truth[1][name].flatten(), dim=0)
        assert cosine >= 0.9999, (name, cosine)


def held(cache: Path) -> dict[int | str, int]:
    """Samples of each layer, and of the other rows by their codec."""
    identities = [(contents.identity, contents.samples) for contents in read_contents(cache)]
    return {identity.settings.get("layer", identity.codec): samples for identity, samples in identities}


@pytest.mark.parametrize("layout", ["TP2 + SP", "PP2", "CP2"])
def test_any_layout_reads_what_was_written_on_two_stages(online, written, tmp_path, layout):
    flags, wrote = written
    assert used(wrote[0]) == (16, 8)
    assert held(flags["kd_teacher_cache"]) == dict.fromkeys(["hidden", *TEACHER_LAYERS], 8)
    compare_all(wrote, online[1])
    processes, changes = LAYOUTS[layout]
    same = {"kd_teacher_cache_mode": "read", "seed": 42}  # by which the projections are drawn
    found = train(tmp_path, {**flags, **changes, **same}, processes)
    assert used(found[0]) == (24, 0)
    compare_all(found, online[1])


def test_a_layer_is_added_to_what_is_there(written, tmp_path):
    """By a run that scores again, with --kd_topk, and writes no layer twice; fewer layers are read without it."""
    flags = {**written[0], "kd_teacher_cache": tmp_path / "cache", "train_iters": 1, "external_plugins": PLUGIN}
    shutil.copytree(written[0]["kd_teacher_cache"], tmp_path / "cache")
    (third,) = (one for one in read_contents(tmp_path / "cache") if one.identity.settings.get("layer") == 3)
    clear(tmp_path / "cache", [third.name])
    before = set((tmp_path / "cache").rglob("*.safetensors"))
    reads = {**flags, "kd_teacher_cache_mode": "read"}
    refused = megatron_rlhf(tmp_path / "refused", reads)
    assert refused.code == 1
    assert (
        f"--kd_teacher_cache {tmp_path}/cache holds the layers 2, 4 of this teacher, and --kd_feature_layers asks for "
        "layer 3; match other layers, or let --kd_teacher_cache_mode auto score what is missing."
    ) in refused.log
    fewer = megatron_rlhf(tmp_path / "fewer", {**reads, "kd_feature_layers": "3:4"})
    assert used(fewer) == (8, 0)
    assert "has 8 samples of this teacher (hidden states), and of its layers 4 (8)." in fewer.log
    # One pair, of two bytes for each of 128 numbers.
    assert "at most: 2,048 tokens a cycle of 256 bytes" in fewer.log
    assert used(megatron_rlhf(tmp_path / "added", {**flags, "kd_topk": 64})) == (0, 8)
    assert held(tmp_path / "cache") == dict.fromkeys(["hidden", "topk", *TEACHER_LAYERS], 8)
    added = {file.parent.name for file in set((tmp_path / "cache").rglob("*.safetensors")) - before}
    (topk,) = (one.name for one in read_contents(tmp_path / "cache") if one.identity.codec == "topk")
    assert added == {third.name, topk}
    assert used(megatron_rlhf(tmp_path / "both", {**reads, "kd_topk": 64})) == (8, 0)
