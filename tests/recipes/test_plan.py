"""Which stages a recipe has, with which keys, and what each takes from another."""

from pathlib import Path
from typing import Literal

import pytest
import yaml

from swift_kd_plugin.errors import KDError
from swift_kd_plugin.host.start.megatron_flags import megatron_flags
from swift_kd_plugin.recipes.plan import has_stages, make_plan
from swift_kd_plugin.recipes.shell_command import program_command
from swift_kd_plugin.recipes.source import read_recipe
from swift_kd_plugin.recipes.stages import complete_keys, training_keys

GENERATE = {
    "model": str,
    "model_type": str,
    "server": str,
    "dataset": list[str],
    "kd_datasets": str,
    "template": str,
    "torch_dtype": str,
    "thinking": Literal["row", "on", "off", "both"],
    "temperature": float,
    "enforce_eager": bool,
    "adapters": list[str],
}
COMMON = {"model": "S", "teacher_model": "T", "teacher_model_type": "qwen3", "dataset": "d.jsonl", "output_dir": "out"}
COMMON |= {"lmbda": 0}


def plan(folder: Path, *overrides: str, **content):
    (folder / "run.yaml").write_text(yaml.safe_dump(content))
    return make_plan(read_recipe(folder / "run.yaml", overrides), megatron_flags(), GENERATE)


def best(stage) -> str:
    return f"best of {stage.name}"


def test_three_stages_hand_over(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    sections = {
        "generate": {"temperature": 0.6},
        "off_policy": {"lr": 5e-5},
        "on_policy": {"lmbda": 1, "vllm_mode": "colocate"},
    }
    stages = plan(tmp_path, **COMMON, nproc_per_node=2, lr=1, **sections)
    written, off, on = (complete_keys(stage, best) for stage in stages)
    rows = str(tmp_path / "out" / "generate" / "responses.jsonl")
    assert written == {"model": "T", "model_type": "qwen3", "dataset": "d.jsonl", "temperature": 0.6}
    assert (off["model"], off["dataset"], off["lr"], off["nproc_per_node"]) == ("S", rows, 5e-5, 2)
    assert (on["model"], on["dataset"], on["lr"], on["teacher_model"]) == ("best of off_policy", "d.jsonl", 1, "T")
    assert [stage.folder for stage in stages] == [tmp_path / "out" / kind for kind in sections]
    assert [stage.name for stage in stages[1].sources] == ["generate"]


def test_the_rows_may_be_one_of_several_datasets(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    stages = plan(tmp_path, **COMMON, generate={}, on_policy={"dataset": ["${generate.rows}", "more.jsonl"]})
    assert stages[1].keys["dataset"] == [str(stages[0].rows_file), "more.jsonl"]
    assert stages[1].sources == [stages[0]]
    assert "rows" not in stages[0].keys


def test_a_teacher_server_writes_the_responses(tmp_path):
    content = {**COMMON, "teacher_model_server": "http://t", "teacher_model": None, "generate": {"thinking": True}}
    keys = plan(tmp_path, **content)[0].keys
    assert (keys["server"], keys["model"], keys["thinking"]) == ("http://t", "S", "on")


def test_students_follow_one_another(tmp_path):
    students = {"medium": {"model": "M", "model_type": "qwen3"}, "small": {"model": "S", "off_policy": {"lr": 2}}}
    stages = plan(
        tmp_path,
        **COMMON | {"teacher_model_server": "http://t", "kd_topk": 64},
        progressive=["medium", "small"],
        students=students,
        generate={},
        off_policy={"lr": 1},
        on_policy={},
    )
    assert [stage.name for stage in stages] == [
        f"{student}/{kind}" for student in students for kind in ("generate", "off_policy", "on_policy")
    ]
    keys = {stage.name: complete_keys(stage, best) for stage in stages}
    assert keys["medium/generate"]["server"] == keys["medium/off_policy"]["teacher_model_server"] == "http://t"
    for kind, key in (("generate", "model"), ("off_policy", "teacher_model"), ("on_policy", "teacher_model")):
        assert keys[f"small/{kind}"][key] == "best of medium/on_policy"
    assert "server" not in keys["small/generate"]
    assert keys["small/off_policy"]["teacher_model_server"] is None
    assert keys["small/off_policy"]["teacher_model_type"] == "qwen3"
    assert (keys["medium/off_policy"]["lr"], keys["small/off_policy"]["lr"]) == (1, 2)
    assert keys["small/off_policy"]["model"] == "S"


def test_what_is_evaluated_is_saved(tmp_path):
    (stage,) = plan(tmp_path, **COMMON, off_policy={"eval_steps": 5})
    assert training_keys(stage, stage.keys)["save_steps"] == 5
    assert training_keys(stage, stage.keys)["metric_for_best_model"] == "divergence"
    assert training_keys(stage, {"kd_divergence": "stock"})["metric_for_best_model"] == "loss"


def test_flags_of_our_own_commands():
    keys = {"dataset": ["a", "-b"], "enforce_eager": True, "strict": False, "n": 0, "env": {"A": 1}}
    command = program_command(("swift-kd", "generate"), keys)
    words = ("--dataset=a", "--dataset=-b", "--enforce_eager", "--n=0")
    assert command.argv == ("swift-kd", "generate", *words)


def test_a_section_that_is_null_is_no_stage(tmp_path):
    (tmp_path / "run.yaml").write_text(yaml.safe_dump({**COMMON, "off_policy": None}))
    assert not has_stages(read_recipe(tmp_path / "run.yaml"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"off_policy": {"lrr": 1}}, r"run.yaml \(off_policy\): unknown key 'lrr' \(did you mean 'lr'\?\)"),
        ({"generate": {"temperatur": 1}}, r"\(generate\): unknown key 'temperatur' \(did you mean 'temperature'\?\)"),
        ({"off_policy": {"lr": "x"}}, "lr is 'x'; it must be a number"),
        ({"off_policy": {"output_dir": "x"}}, r"\(off_policy\): a stage has no output_dir of its own"),
        ({"off_policy": {"finetune": False}}, "finetune is set by the stages themselves"),
        ({"off_policy": [1]}, "off_policy must be a mapping"),
        ({"off_policy": {}, "output_dir": None}, "stages need an output_dir"),
        ({"off_policy": {"eval_steps": 5, "save_steps": 10}}, "eval_steps 5 is no multiple of save_steps 10"),
        ({"off_policy": {}, "progressive": ["a"]}, "progressive names 'a', which students does not describe"),
        ({"off_policy": {}, "progressive": []}, "it must be a list of different students"),
        ({"off_policy": {}, "progressive": ["a", "a"], "students": {"a": {}}}, "different students"),
        ({"off_policy": {}, "progressive": ["smal"], "students": {"small": {}}}, r"did you mean 'small'\?"),
        ({"off_policy": {}, "progressive": ["a"], "students": {"a": 1}}, "students.a must be a mapping"),
        ({"off_policy": {}, "progressive": ["a"], "students": {"a": {"lrr": 1}}}, r"a/off_policy\): unknown key 'lrr'"),
        ({"of_policy": {}, "on_policy": {}}, "unknown key 'of_policy'"),
    ],
)
def test_mistakes(tmp_path, content, message):
    with pytest.raises(KDError, match=message):
        plan(tmp_path, **COMMON | content)


def test_an_override_is_named_as_such(tmp_path):
    with pytest.raises(KDError, match=r"the command line \(off_policy\): unknown key 'lrr'"):
        plan(tmp_path, "off_policy.lrr=1", **COMMON, off_policy={"lr": 1})


def test_what_the_runs_own_flags_would_refuse_is_said_with_file_and_key(tmp_path):
    for keys, said in (
        (
            {"kd_divergence": "skew_kl", "kd_lambda": 7},
            r"run.yaml \(off_policy\): --kd_lambda is 7; it must lie between",
        ),
        ({"kd_divergence": "skew_kl", "kd_beta": 0.3}, r"\(off_policy\): --kd_beta belongs to --kd_divergence jsd"),
        ({"kd_ce_alpha_final": 0.5}, r"\(off_policy\): --kd_ce_alpha_final is where a schedule ends"),
        ({"mtp_num_layers": 1}, r"\(off_policy\): --mtp_num_layers: distillation"),
    ):
        with pytest.raises(KDError, match=said):
            plan(tmp_path, **COMMON, off_policy=keys)
    with pytest.raises(KDError, match=r"^the command line \(off_policy\): --kd_lambda is 7"):
        plan(tmp_path, "off_policy.kd_lambda=7", **COMMON, off_policy={"lr": 1})
