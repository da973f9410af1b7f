"""`swift-kd train` with stages, on tiny models: handed over, killed, resumed, chained, checked."""

import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from swift_kd_plugin.data.files import locked
from swift_kd_plugin.host.train.training_log import read_evaluations, read_log, step_of_row
from tests.launching.commands import environment, run_tool
from tests.launching.left_behind import unsupervised, wait_for_moment
from tests.launching.supervisor import supervised
from tests.machine import needs_cpu_backend
from tests.tiny_models import make_sums

pytestmark = needs_cpu_backend

STEPS, EVERY = {"off_policy": 6, "on_policy": 4}, 2
FIGURES = ("loss", "grad_norm", "learning_rate", "divergence")


@pytest.fixture(scope="module")
def recipe(flags, tmp_path_factory) -> Path:
    """A file with both training stages."""
    folder = tmp_path_factory.mktemp("two_stages")
    make_sums(folder / "val.jsonl", rows=8, seed=1)
    common = {key: str(value) if isinstance(value, Path) else value for key, value in flags.items()}
    common |= {"val_dataset": str(folder / "val.jsonl"), "save_steps": EVERY, "eval_steps": EVERY, "lr": 1e-3}
    common |= {"output_dir": "out", "nproc_per_node": 1, "save_total_limit": 2}
    common |= {"off_policy": {"train_iters": STEPS["off_policy"]}}
    sampling = {"temperature": 1.0, "max_completion_length": 16, "vllm_max_model_len": 128}
    vllm = {"use_vllm": True, "vllm_mode": "colocate", "vllm_enforce_eager": True, "vllm_gpu_memory_utilization": 0.1}
    common["on_policy"] = {"lmbda": 1, "train_iters": STEPS["on_policy"], **sampling, **vllm}
    (folder / "run.yaml").write_text(yaml.safe_dump(common))
    return folder / "run.yaml"


def swift_kd_train(folder: Path, *arguments: object) -> tuple[int, str]:
    code, log, _ = run_tool(["swift-kd", "train", *map(str, arguments)], folder, environment(None))
    return code, log


@pytest.fixture(scope="module")
def undisturbed(recipe, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed")
    code, log = swift_kd_train(folder, recipe)
    assert code == 0, log[-4000:]
    return folder / "out"


def figures(stage: Path) -> dict[int, tuple]:
    """What the log says about each step; of a step that was made twice, the later one."""
    return {step_of_row(row)[0]: tuple(row[name] for name in FIGURES) for row in read_log(stage) if "loss" in row}


def test_the_best_checkpoint_is_handed_over(undisturbed):
    page = json.loads((undisturbed / "summary.json").read_text())
    assert [stage["stage"] for stage in page["stages"]] == ["off_policy", "on_policy"]
    for stage in page["stages"]:
        folder = undisturbed / stage["stage"]
        divergences = read_evaluations(folder, "divergence")
        assert sorted(divergences) == list(range(EVERY, STEPS[stage["stage"]] + 1, EVERY))
        assert stage["best"]["divergence"] == min(divergences.values())
        assert stage["best"]["divergence"] == divergences[stage["best"]["step"]]
        assert list(Path(stage["best"]["folder"]).glob("*.safetensors"))
        assert stage["final"]["step"] == stage["steps"] == STEPS[stage["stage"]]
    keys = json.loads((undisturbed / "on_policy" / "args.json").read_text())
    assert keys["model"] == page["stages"][0]["best"]["folder"]
    assert page["best"] == page["stages"][1]["best"]["folder"]


def test_a_finished_run_is_not_made_again(recipe, undisturbed):
    before = (undisturbed / "off_policy" / "logging.jsonl").read_bytes()
    code, log = swift_kd_train(undisturbed.parent, recipe)
    assert code == 0
    assert log.count("finished before") == 2
    assert (undisturbed / "off_policy" / "logging.jsonl").read_bytes() == before


def test_a_changed_stage_is_refused(recipe, undisturbed):
    code, log = swift_kd_train(undisturbed.parent, recipe, "off_policy.lr=0.002", "--stage", "off_policy")
    assert code == 1
    assert "it was run with lr 0.001 and is now to be run with lr 0.002" in log
    assert "--rerun" in log


def kill_when(folder: Path, recipe: Path, moment: Callable[[], bool]) -> None:
    """Starts the run and kills it with all of its processes as soon as `moment` says so."""
    argv, log = ["swift-kd", "train", str(recipe)], folder / "killed.txt"
    with log.open("ab") as output, supervised(argv, folder, environment(None), output) as process:
        wait_for_moment(process, moment, log)


def logged(stage: Path, step: int) -> Callable[[], bool]:
    return lambda: any(step_of_row(row) and step_of_row(row)[0] >= step for row in read_log(stage))


def half_written(stage: Path, step: int) -> Callable[[], bool]:
    def moment() -> bool:
        link = stage / "last-checkpoint"
        return (stage / f"checkpoint-{step}").is_dir() and os.readlink(link) != f"checkpoint-{step}"

    return moment


def test_a_changed_stage_is_moved_aside_and_run_anew(recipe, undisturbed, tmp_path):
    shutil.copytree(undisturbed, tmp_path / "out", symlinks=True)
    arguments = ("off_policy.train_iters=2", "--stage", "off_policy", "--rerun")
    code, log = swift_kd_train(tmp_path, recipe, *arguments)
    assert code == 0, log[-4000:]
    old, new = (figures(tmp_path / "out" / name) for name in ("off_policy.old-1", "off_policy"))
    assert old == figures(undisturbed / "off_policy")
    assert sorted(new) == [1, 2]
    code, log = swift_kd_train(tmp_path, recipe, "off_policy.train_iters=2")
    assert code == 1
    assert "on_policy" in log
    assert "it was run with model" in log  # the stage behind it stands on what is no longer there


def test_two_runs_do_not_share_a_folder(recipe, undisturbed):
    with locked(undisturbed):
        code, log = swift_kd_train(undisturbed.parent, recipe)
    assert code == 1
    assert f"{undisturbed} is in use by a run that was started as process" in log


def expect_the_same(out: Path, undisturbed: Path) -> None:
    """Figures, choices and weights of a finished run."""
    for stage in STEPS:
        assert figures(out / stage) == figures(undisturbed / stage)
        assert read_evaluations(out / stage, "divergence") == read_evaluations(undisturbed / stage, "divergence")
    pages = [json.loads((folder / "summary.json").read_text()) for folder in (out, undisturbed)]
    chosen = [[stage["best"]["step"] for stage in page["stages"]] for page in pages]
    assert chosen[0] == chosen[1]
    weights = [Path(page["final"]) / "model.safetensors" for page in pages]
    assert weights[0].read_bytes() == weights[1].read_bytes()


def test_a_run_killed_while_it_saves_ends_as_if_nothing_had_been(recipe, undisturbed, tmp_path):
    """Off-policy everything that a step depends on is in the checkpoint."""
    out = tmp_path / "out"
    kill_when(tmp_path, recipe, half_written(out / "off_policy", 4))
    code, log = swift_kd_train(tmp_path, recipe)
    assert code == 0, log[-4000:]
    expect_the_same(out, undisturbed)


def test_a_run_killed_between_checkpoints_ends_as_if_nothing_had_been(recipe, undisturbed, tmp_path):
    """On-policy the draws of sampling depend on seed and step."""
    out = tmp_path / "out"
    shutil.copytree(undisturbed, out, symlinks=True)
    shutil.rmtree(out / "on_policy")
    kill_when(tmp_path, recipe, logged(out / "on_policy", 3))
    code, log = swift_kd_train(tmp_path, recipe)
    assert code == 0, log[-4000:]
    expect_the_same(out, undisturbed)


def test_each_trained_student_is_the_next_ones_teacher(recipe, material, flags, tmp_path):
    """Two students, off-policy; the second one is smaller."""
    students = {
        "medium": {"model": str(material / "teacher"), "lr": 0.1, "save_steps": 1, "eval_steps": 1},
        "small": {"off_policy": {"train_iters": 2}},
    }
    page = {"base": str(recipe), "progressive": ["medium", "small"], "students": students, "on_policy": None}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(page | {"off_policy": {"train_iters": 4}}))
    code, log = swift_kd_train(tmp_path, "run.yaml")
    assert code == 0, log[-4000:]
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    best = summary["stages"][0]["best"]
    assert best["step"] < 3  # the rate is too high, and only two checkpoints are kept: the best and the last one
    assert Path(best["folder"]) == tmp_path / "out" / "medium" / "off_policy" / f"checkpoint-{best['step']}"
    assert [stage["stage"] for stage in summary["stages"]] == ["medium/off_policy", "small/off_policy"]
    args = json.loads((tmp_path / "out" / "small" / "off_policy" / "args.json").read_text())
    assert args["teacher_model"] == summary["stages"][0]["best"]["folder"]
    assert args["teacher_model_type"] == "qwen3"
    assert args["model"] == str(material / "student")
    assert args["train_iters"] == 2


def test_a_check_runs_one_batch_of_each_and_leaves_nothing(recipe, tmp_path):
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    argv = ["swift-kd", "train", str(recipe), "--stage", "check"]
    code, log, _ = run_tool(argv, tmp_path, environment(None, TMPDIR=str(temporary)))
    assert code == 0, log[-4000:]
    assert "every stage loads" in log
    assert not (tmp_path / "out").exists()
    assert not list(temporary.glob("swift-kd-check-*"))


def test_a_stage_that_fails_says_why_and_where(recipe, tmp_path):
    code, log = swift_kd_train(tmp_path, recipe, "teacher_model=/none")
    assert code == 1
    assert "off_policy ended with exit code 1: --teacher_model /none does not exist" in log
    assert f"(the whole log: {tmp_path}/out/off_policy/train.log)" in log
    code, log = swift_kd_train(tmp_path, recipe, "--stage", "on_policy")
    assert code == 1
    assert "off_policy has not finished in" in log
    code, log = swift_kd_train(tmp_path, recipe, "teacher_model=/nowhere")
    assert "--teacher_model /nowhere does not exist" in log  # nothing is lost, so the mistake may be mended


def test_ctrl_c_ends_every_process(recipe, tmp_path):
    log = tmp_path / "log.txt"
    with unsupervised(["swift-kd", "train", str(recipe)], tmp_path, environment(None), log) as process:
        wait_for_moment(process, logged(tmp_path / "out" / "off_policy", 1), log)
        family = process.children(recursive=True)
        assert len(family) >= 3  # megatron, torchrun and a rank
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
        assert not [member for member in family if member.is_running()]
    assert "off_policy ended with exit code 130: it was ended by a signal" in log.read_text()
