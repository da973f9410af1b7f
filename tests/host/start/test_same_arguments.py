"""What ranks tell each other of how they were started."""

import time

import pytest

from swift_kd_plugin.errors import KDError
from swift_kd_plugin.host.start.same_arguments import collect, describe
from tests.gloo_ranks import run_distributed

FLAGS = {"lr": 1e-4, "dataset": ["rows.jsonl"], "local_rank": 0, "seed": None}


def said_on_rank(rank: int, changes: dict[int, dict[str, object]], env: dict[int, dict[str, str]]) -> str:
    from swift_kd_plugin.host.start.same_arguments import collect, compare

    flags = {**FLAGS, "local_rank": rank, **changes.get(rank, {})}
    try:
        compare(collect(flags, {"HOSTNAME": f"node{rank}", "RANK": str(rank), **env.get(rank, {})}))
    except KDError as error:
        return str(error)
    return ""


def test_what_is_a_process_own_may_differ():
    env = {1: {"SWIFT_KD_TRACEBACK": "1", "HF_HOME": "/local/cache", "CUDA_VISIBLE_DEVICES": "1"}}
    assert run_distributed(said_on_rank, 3, {1: {"dataset_num_proc": 8}}, env) == ["", "", ""]


@pytest.mark.parametrize(
    ("changes", "env", "said"),
    [
        ({2: {"lr": 1e-3}}, {}, "--lr is 0.001 on rank 2 and 0.0001 on rank 0."),
        ({0: {"seed": 7}}, {}, "--seed is null on rank 1, 2 and 7 on rank 0."),
        ({1: {"dataset": ["other.jsonl"]}}, {}, '--dataset is ["other.jsonl"] on rank 1 and ["rows.jsonl"] on rank 0.'),
        ({}, {1: {"MAX_PIXELS": "1024"}}, "MAX_PIXELS is 1024 on rank 1 and unset on rank 0."),
        ({}, {0: {"NVTE_FLASH_ATTN": "0"}}, "NVTE_FLASH_ATTN is unset on rank 1, 2 and 0 on rank 0."),
    ],
)
def test_every_rank_hears_what_differs(changes, env, said):
    found = run_distributed(said_on_rank, 3, changes, env)
    assert found == [f"the ranks were started differently: {said} Start all with the same command."] * 3


def said_beside_a_silent_rank(rank: int, silent: int) -> tuple[str, float]:
    from datetime import timedelta

    from swift_kd_plugin.host.start import same_arguments

    same_arguments.PATIENCE = timedelta(seconds=3)
    start = time.monotonic()
    if rank == silent:
        time.sleep(8)
        return "", 0.0
    return said_on_rank(rank, {}, {}), time.monotonic() - start


@pytest.mark.parametrize("silent", [0, 2])
def test_a_rank_without_the_plugin_is_named_by_all_others(silent):
    found = run_distributed(said_beside_a_silent_rank, 3, silent)
    for rank, (said, seconds) in enumerate(found):
        assert rank == silent or said.startswith(f"rank {silent} did not say what it was started with; start all ranks")
        assert seconds < 6


@pytest.mark.parametrize(("text", "size"), [("{}\n{}\n", 6), ("[]\n", 3)])
def test_files_of_one_name_are_compared_by_what_they_hold(tmp_path, text, size):
    file = tmp_path / "rows.jsonl"
    file.write_text("{}\n")
    mine = collect({"dataset": [str(file)]}, {})
    file.write_text(text)
    theirs = collect({"dataset": [str(file)]}, {})
    assert f"what {file} holds is {size} bytes (digest of its ends: " in describe(mine, {1: theirs})


def test_a_model_is_compared_by_what_it_is_and_not_by_its_place(tmp_path):
    for name, config in (("here", "{}"), ("there", "{}"), ("other", '{"a": 1}')):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(config)
    here, there, other = (collect({"model": str(tmp_path / name)}, {}) for name in ("here", "there", "other"))
    assert describe(here, {1: there}) == ""
    assert "--model is a model of 8 bytes (digest of its config.json: " in describe(here, {1: other})


def test_many_differences_are_cut():
    mine, theirs = ({f"--flag{n}": text for n in range(9)} for text in "ab")
    said = describe(mine, dict.fromkeys(range(1, 9), theirs))
    assert "--flag0 is b on rank 1, 2, 3 and more and a on rank 0" in said
    assert said.endswith("; and 6 more. Start all with the same command.")
