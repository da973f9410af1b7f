"""What a teacher said is read again: in any layout and order, by runs that load no teacher."""

import re
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from swift_kd_plugin.teacher.cache_contents import read_contents
from swift_kd_plugin.teacher.teacher_cache import TeacherCache
from tests.json_lines import read_json_lines, write_json_lines
from tests.launching.commands import Run, environment, megatron_rlhf, run_tool
from tests.paths import ROOT
from tests.runs.test_memory_report import MIB, read_table
from tests.tiny_models import VOCABULARY

TP, PP, CP = "tensor_model_parallel_size", "pipeline_model_parallel_size", "context_parallel_size"
RECORDER = ROOT / "tests" / "recorders" / "record_gradients.py"


def used(run: Run) -> tuple[int, int]:
    """Samples that were read and that were scored."""
    read, scored = re.search(r"([\d,]+) samples were read, ([\d,]+) scored", run.expect_success().log).groups()
    return int(read), int(scored)


def one_batch(material, folder) -> dict[str, object]:
    """Flags: two views of unequal length; a batch of all rows, so that shuffling changes no loss."""
    rows = read_json_lines(material / "sums.jsonl")[:8]
    for index, row in enumerate(rows):
        hint = {"role": "system", "content": " 7" * (8, 60)[index % 2]}
        row["teacher_messages"] = [hint, row["messages"][0]]
    return {
        "dataset": write_json_lines(folder / "rows.jsonl", rows),
        "global_batch_size": 8,
        "train_iters": 3,
        "no_save_optim": True,
        "kd_grad_norm": "exact",
        "external_plugins": ["swift_kd_plugin", RECORDER],
    }


@pytest.fixture(scope="module")
def plain(flags, material, tmp_path_factory):
    return {**flags, **one_batch(material, tmp_path_factory.mktemp("cached_rows"))}


def train(folder, flags, processes=1) -> tuple[Run, dict[str, torch.Tensor]]:
    gradients = folder / "gradients.safetensors"
    run = megatron_rlhf(folder / "run", flags, processes, {"KD_TEST_GRADIENTS": str(gradients)}).expect_success()
    return run, load_file(gradients)


@pytest.fixture(scope="module", params=[None, 64], ids=["hidden", "topk"])
def online(request, plain, tmp_path_factory):
    flags = {**plain, "kd_topk": request.param}
    return flags, train(tmp_path_factory.mktemp("online"), flags)


@pytest.fixture(scope="module")
def written(online, tmp_path_factory):
    """Flags with a cache that three epochs over its rows have filled, and the run that did."""
    folder = tmp_path_factory.mktemp("cache")
    flags = {**online[0], "kd_teacher_cache": folder / "cache"}
    return flags, train(folder, flags)


def flat(gradients: dict[str, torch.Tensor]) -> torch.Tensor:
    return torch.cat([gradients[name].double().flatten() for name in sorted(gradients)])


def compare(found, truth) -> None:
    (run, gradients), (true_run, true_gradients) = found, truth
    for step, true in zip(run.losses, true_run.losses, strict=True):
        assert abs(step - true) <= 0.0005 * true, (run.losses, true_run.losses)
    assert gradients.keys() == true_gradients.keys()
    cosine = torch.nn.functional.cosine_similarity(flat(gradients), flat(true_gradients), dim=0).item()
    print(cosine, [a / b - 1 for a, b in zip(run.losses, true_run.losses, strict=True)])
    assert cosine >= 0.9999, cosine


LAYOUTS = {
    "DP2": (2, {"seed": 5, "micro_batch_size": 1}),
    "TP2 + SP": (2, {TP: 2, "sequence_parallel": True}),
    "PP2": (2, {PP: 2, "micro_batch_size": 4}),
    "CP2": (2, {CP: 2, "padding_free": False, "seed": 3}),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_layout_and_order_reads_what_one_process_wrote(online, written, tmp_path, layout):
    """And three epochs score each row once, whose first losses are those without a cache."""
    flags, wrote = written
    assert used(wrote[0]) == (16, 8)
    assert wrote[0].losses[0] == online[1][0].losses[0]
    compare(wrote, online[1])
    if flags["kd_topk"] and layout not in ("DP2", "CP2"):
        pytest.skip("the way of the rows is that of the hidden states")
    processes, changes = LAYOUTS[layout]
    found = train(tmp_path, {**flags, **changes, "kd_teacher_cache_mode": "read"}, processes)
    assert used(found[0]) == (24, 0)
    compare(found, online[1])
    if layout == "TP2 + SP":
        row = read_table(found[0].log, "Memory of rank 0 of 2, expected:")["teacher"]
        assert row == [f"{2 * VOCABULARY * 128 // 2 / MIB:.2f} MiB", "-", "its output layer alone; the rest is read"]


def test_a_teacher_scores_without_a_student(online, written, tmp_path):
    """In another layout, by the training run's own file: the same samples, and rows that differ by the layout alone;
    and the layers that it matches, of which the last one puts out what the final norm makes these rows of."""
    flags, cache = written[0], tmp_path / "cache"
    if flags["kd_topk"]:
        pytest.skip("the way of the rows is that of the hidden states")
    keys = {name: str(value) if isinstance(value, Path) else value for name, value in flags.items()}
    keys |= {"external_plugins": None, "rlhf_type": None, "tuner_type": "lora", PP: 2, "nproc_per_node": 2}
    keys |= {"kd_feature_weight": 0.5, "kd_feature_layers": "1:2,2:4"}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(keys | {"output_dir": str(tmp_path / "output")}))
    command = ["swift-kd", "score", "run.yaml", f"kd_teacher_cache={cache}"]
    code, log, _ = run_tool(command, tmp_path, environment(None))
    assert code == 0, log[-3000:]
    assert "0 samples were read, 8 scored" in log
    (before,) = caches_of(flags["kd_teacher_cache"]).values()
    there = caches_of(cache)
    assert there.keys() == {None, 2, 4}
    made = there[None]
    assert made.identity == before.identity
    keys_of = [{key for shard in one.shards for key in shard.keys} for one in (made, before)]
    assert keys_of[0] == keys_of[1]
    for key in keys_of[0]:
        assert torch.allclose(made.read(key)["rows"], before.read(key)["rows"], atol=0.05, rtol=0.05)
    norm = load_file(Path(flags["teacher_model"]) / "model.safetensors")["model.norm.weight"].double()
    (rows,), (last,) = (one.shards for one in (made, there[4]))
    for number in range(8):
        hidden = last.read(number)["rows"].double()
        normed = hidden * torch.rsqrt(hidden.square().mean(-1, keepdim=True) + 1e-6) * norm
        assert torch.allclose(normed, rows.read(number)["rows"].double(), atol=0.05, rtol=0.02)
    assert not list((tmp_path / "output").rglob("*.safetensors"))


def caches_of(folder: Path) -> dict[int | None, TeacherCache]:
    """By the number of the layer; that of the rows in front of the head by None."""
    found = [contents.identity for contents in read_contents(folder)]
    return {identity.settings.get("layer"): TeacherCache(folder, identity, {}) for identity in found}
