"""Which checkpoints of a stage are whole, which is the best, and what a resumed run moves out of its way."""

import shutil
from pathlib import Path

import pytest
from torch.distributed.checkpoint.api import CheckpointException

from swift_kd_plugin.errors import KDError
from swift_kd_plugin.host.train.checkpoint_manifest import State, begin, describe_failed_save, merged_folder, state_of
from swift_kd_plugin.recipes.checkpoints import (
    damaged_checkpoints,
    keep_best,
    last_whole_checkpoint,
    make_way,
    read_result,
)
from tests.recipes.stage_folders import link_last, write_checkpoint, write_log

LINK = "last-checkpoint"


@pytest.fixture
def stage(tmp_path) -> Path:
    for step in (2, 4, 6):
        write_checkpoint(tmp_path, step)
    write_log(tmp_path, (2, 0.3), (4, 0.1), (6, 0.2))
    return tmp_path


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def remove_link(stage: Path) -> None:
    (stage / LINK).unlink()


def copy_as_a_folder(stage: Path) -> None:
    """As `cp -rL`, `rsync -r` and object stores do."""
    remove_link(stage)
    shutil.copytree(stage / "checkpoint-6", stage / LINK)


def let_it_dangle(stage: Path) -> None:
    link_last(stage, "checkpoint-8")


def let_it_lag(stage: Path) -> None:
    link_last(stage, "checkpoint-2")


def make_it_a_file(stage: Path) -> None:
    remove_link(stage)
    (stage / LINK).write_text("checkpoint-6")


LINKS = [remove_link, copy_as_a_folder, let_it_dangle, let_it_lag, make_it_a_file]


def test_best_and_final(stage):
    best, final = read_result(stage, "divergence", adapter=False)
    assert (best.step, best.divergence, best.folder) == (4, 0.1, stage / "checkpoint-4")
    assert (final.step, final.divergence, final.folder) == (6, 0.2, stage / "checkpoint-6")


def test_without_an_evaluation_the_final_one_is_the_best(stage):
    write_log(stage)
    best, final = read_result(stage, "divergence", adapter=False)
    assert best == final
    assert (best.step, best.divergence) == (6, None)


@pytest.mark.parametrize("change", LINKS)
def test_what_is_whole_does_not_hang_on_the_link(stage, change):
    change(stage)
    assert last_whole_checkpoint(stage) == stage / "checkpoint-6"
    assert read_result(stage, "divergence", adapter=False)[1].step == 6
    make_way(stage, stage / "checkpoint-6")
    assert {"checkpoint-2", "checkpoint-4", "checkpoint-6"} <= set(names(stage))
    assert not (stage / LINK).exists() or (stage / LINK).is_symlink()


def test_half_written_checkpoints_are_moved_aside(stage):
    write_checkpoint(stage, 8, adapter=True, whole=False)
    whole = last_whole_checkpoint(stage)
    assert whole == stage / "checkpoint-6"
    aside = make_way(stage, whole)
    assert names(aside) == ["checkpoint-8", "checkpoint-8-merged"]
    assert names(stage) == ["aside-1", "checkpoint-2", "checkpoint-4", "checkpoint-6", LINK, "logging.jsonl"]
    assert make_way(stage, whole) is None


@pytest.mark.parametrize("change", [None, *LINKS])
def test_names_beside_checkpoints_are_left_alone(stage, change):
    others = ("checkpoint-8-backup", "checkpoint-best", "checkpoint-", "checkpoint-8.old")
    for name in (*others, "checkpoint-08", "checkpoint-٣", "checkpoint-8 ", "checkpoint-²"):
        (stage / name).mkdir()
    (stage / "checkpoint-9").write_text("mine")
    if change:
        change(stage)
    before = set(names(stage)) - {LINK}
    whole = last_whole_checkpoint(stage)
    assert whole == stage / "checkpoint-6"
    make_way(stage, whole)
    assert set(names(stage)) - {LINK, "aside-1"} == before


def test_a_damaged_one_is_passed_over(stage):
    """As a copy that was broken off leaves it."""
    (stage / "checkpoint-6" / "iter_0000006" / "__0_0.distcp").unlink()
    (stage / "checkpoint-4" / "model.safetensors").write_text("check")
    assert [state_of(stage / f"checkpoint-{step}") for step in (2, 4, 6)] == [State.WHOLE, State.DAMAGED, State.DAMAGED]
    assert last_whole_checkpoint(stage) == stage / "checkpoint-2"
    (stage / "checkpoint-2" / "kd_files.json").write_text("{")
    with pytest.raises(
        KDError,
        match=r"checkpoint-6 is damaged \(iter_0000006/__0_0.distcp: No such file or directory\), .*; copy it again, ",
    ):
        last_whole_checkpoint(stage)


def test_the_best_one_is_not_handed_over_damaged(stage):
    (stage / "checkpoint-4" / "model.safetensors").write_text("check")
    with pytest.raises(KDError, match="checkpoint-4 with a model in safetensors is missing or damaged"):
        read_result(stage, "divergence", adapter=False)


def test_of_a_checkpoint_that_says_nothing_the_link_does(tmp_path):
    for step in (2, 4):
        write_checkpoint(tmp_path, step, says_itself=False)
    assert last_whole_checkpoint(tmp_path) == tmp_path / "checkpoint-4"
    link_last(tmp_path, str(tmp_path / "checkpoint-2"))
    assert last_whole_checkpoint(tmp_path) == tmp_path / "checkpoint-2"
    for change in (remove_link, let_it_dangle):
        change(tmp_path)
        with pytest.raises(
            KDError, match=r"nothing tells whether .*checkpoint-4 is whole, as .*last-checkpoint is no lin"
        ):
            last_whole_checkpoint(tmp_path)


def test_a_run_that_was_killed_behind_the_link_had_saved(tmp_path):
    write_checkpoint(tmp_path, 2, whole=False)
    link_last(tmp_path, "checkpoint-2")
    assert last_whole_checkpoint(tmp_path) == tmp_path / "checkpoint-2"


def test_a_link_from_before_the_writing_says_nothing(stage):
    """checkpoint-6 was damaged and moved aside, and the run that wrote it anew was killed meanwhile."""
    shutil.move(stage / "checkpoint-6", stage / "aside-1")
    begin(stage / "checkpoint-6")
    assert state_of(stage / "checkpoint-6") is State.UNFINISHED
    assert last_whole_checkpoint(stage) == stage / "checkpoint-4"
    aside = make_way(stage, stage / "checkpoint-4")
    assert names(aside) == ["checkpoint-6", LINK]  # a link to what has gone would mislead the next run
    link_last(stage, "checkpoint-4")
    begin(stage / "checkpoint-6")
    link_last(stage, "checkpoint-6")  # as ms-swift does behind its last file
    assert last_whole_checkpoint(stage) == stage / "checkpoint-6"


@pytest.mark.parametrize(
    "content", ["", "[]", "0", '"x"', '{"files": []}', '{"files": {}}', '{"files": 1}', "[" * 9999]
)
def test_a_manifest_that_is_none_is_damage(stage, content):
    (stage / "checkpoint-6" / "kd_files.json").write_text(content)
    assert state_of(stage / "checkpoint-6") is State.DAMAGED
    assert last_whole_checkpoint(stage) == stage / "checkpoint-4"
    assert stage / "checkpoint-6" in damaged_checkpoints(stage)


def test_a_part_that_lies_on_another_disk_is_there(stage, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("disk") / "part"
    shutil.move(stage / "checkpoint-6" / "iter_0000006", elsewhere)
    (stage / "checkpoint-6" / "iter_0000006").symlink_to(elsewhere)
    assert state_of(stage / "checkpoint-6") is State.WHOLE


def test_a_failed_save_takes_away_what_it_has_made_and_nothing_else(stage):
    full = OSError(28, "No space left on device")
    for began, left in ((False, True), (True, False)):
        said = str(describe_failed_save(full, stage / "checkpoint-6", "checkpoint-4", began))
        assert (stage / "checkpoint-6").exists() is left
        assert ("the half-written folder is removed" in said) is began
        assert said.endswith("the last good checkpoint is checkpoint-4, make room.")


def test_what_a_full_disk_makes_torch_say_is_said_in_words(stage):
    torch_says = "Worker failure: [enforce fail at inline_container.cc:672] . unexpected pos 704 vs 598"
    error = CheckpointException("save", {0: (RuntimeError(torch_says), None)})
    said = str(describe_failed_save(error, stage / "checkpoint-6", None, began=True))
    assert said.endswith(
        "failed (a file was not taken to its end, as by a full disk); the half-written folder is removed, make room."
    )


def test_a_divergence_that_is_no_number_is_not_the_best(stage):
    write_log(stage, (2, float("nan")), (4, 0.3), (6, 0.2))
    assert read_result(stage, "divergence", adapter=False)[0].step == 6
    with (stage / "logging.jsonl").open("a") as log:
        log.write('{"iteration": "8/8", "eval_diver\n7\n')  # the disk was full for a moment
    assert read_result(stage, "divergence", adapter=False)[0].step == 6


def test_none_is_whole_before_the_first_is(tmp_path):
    write_checkpoint(tmp_path, 2, whole=False)
    for name in ("train.log", "stage.json", "args.json"):
        (tmp_path / name).write_text("")
    assert last_whole_checkpoint(tmp_path) is None
    aside = make_way(tmp_path, None, keep=("train.log", "stage.json"))
    assert names(tmp_path) == ["aside-1", "stage.json", "train.log"]
    assert names(aside) == ["args.json", "checkpoint-2"]
    assert make_way(tmp_path, None, keep=("train.log", "stage.json")) is None


def test_a_folder_that_is_saved_into_again_is_not_mixed(stage):
    write_checkpoint(stage, 6, adapter=True)
    assert state_of(stage / "checkpoint-6") is State.WHOLE
    assert (stage / "aside-1" / "checkpoint-6" / "model.safetensors").is_file()
    assert names(stage / "aside-1") == ["checkpoint-6"]


def test_the_best_one_outlives_its_removal(tmp_path):
    for step in (2, 4, 6):
        write_checkpoint(tmp_path, step, adapter=True)
    write_log(tmp_path, (2, 0.3), (4, 0.1), (6, 0.2))
    keep_best(tmp_path, "divergence")
    for place in (tmp_path / "checkpoint-4", merged_folder(tmp_path / "checkpoint-4")):
        shutil.rmtree(place)
    kept = tmp_path / "kept" / "checkpoint-4-merged"
    assert read_result(tmp_path, "divergence", adapter=True)[0].folder == kept
    assert (kept / "model.safetensors").read_text() == "checkpoint-4-merged"
    assert state_of(kept) is State.WHOLE


def test_what_was_evaluated_after_the_last_whole_checkpoint_is_not_kept(tmp_path):
    for step in (2, 4):
        write_checkpoint(tmp_path, step, whole=step == 2)
    write_log(tmp_path, (2, 0.3), (4, 0.1))
    keep_best(tmp_path, "divergence")
    assert names(tmp_path / "kept") == ["checkpoint-2"]


def test_a_checkpoint_without_a_model(stage):
    with pytest.raises(KDError, match="checkpoint-4-merged with a model in safetensors is missing"):
        read_result(stage, "divergence", adapter=True)


def test_a_stage_without_a_checkpoint(tmp_path):
    with pytest.raises(KDError, match="ended without a whole checkpoint"):
        read_result(tmp_path, "divergence", adapter=False)
