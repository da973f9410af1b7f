"""`swift-kd train`, as a process; what it starts is shown in tests/runs/test_two_stages.py."""

import subprocess
from pathlib import Path

import pytest
import yaml

from tests.launching.commands import BIN, environment, run_tool


def train(folder: Path, *arguments: str, **env: str) -> tuple[int, str]:
    code, log, _ = run_tool(["swift-kd", "train", *arguments], folder, environment(None, **env))
    return code, log


def write(folder: Path, **content) -> None:
    (folder / "run.yaml").write_text(yaml.safe_dump({"lmbda": 0, **content}))


def test_a_dry_run_prints_a_command_that_can_be_copied(tmp_path):
    write(tmp_path, model="my model", lr=1e-5, dataset=["a b.jsonl", "c"], nproc_per_node=2, system="it's\n$HOME")
    argv = [str(BIN / "swift-kd"), "train", "run.yaml", "lr=2e-5", "--dry_run"]
    done = subprocess.run(argv, cwd=tmp_path, env=environment(None), capture_output=True, text=True, check=True)
    assert done.stderr == ""
    script = f'megatron() {{ printf "%s\\0" "$NPROC_PER_NODE" "$@"; }}\n{done.stdout}'
    words = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True).stdout.split("\0")[:-1]
    plugin = ["--rlhf_type", "gkd", "--external_plugins", "swift_kd_plugin"]
    flags = ["--dataset", "a b.jsonl", "c", "--lmbda", "0", "--lr", "2e-05"]
    assert words == ["2", "rlhf", *plugin, *flags, "--model", "my model", "--system", "it's\n$HOME"]


def test_a_variable_that_is_set_wins(tmp_path):
    write(tmp_path, model="m", nproc_per_node=2)
    assert train(tmp_path, "run.yaml", "--dry_run", NPROC_PER_NODE="4")[1].startswith("NPROC_PER_NODE=4 megatron")


def test_the_exit_code_and_the_sentence_of_a_plain_run(tmp_path):
    write(tmp_path, model="/none", lmbda=0, dataset="none.jsonl", output_dir="out", add_version=False)
    code, log = train(tmp_path, "run.yaml")
    assert code == 1
    assert "--model /none does not exist" in log


@pytest.mark.parametrize(
    ("content", "arguments", "message"),
    [
        ({"model": "m", "lrr": 1}, ["run.yaml"], "run.yaml: unknown key 'lrr' (did you mean 'lr'?)."),
        ({"model": "m", "learning_rate": 1}, ["run.yaml"], "run.yaml: unknown key 'learning_rate' (here it is 'lr')."),
        ({"model": "m"}, ["run.yaml", "lrr=1"], "the command line: unknown key 'lrr' (did you mean 'lr'?)."),
        (
            {"model": "m", "tiny": {"lrr": 1}},
            ["run.yaml", "--tiny"],
            "run.yaml, section tiny: unknown key 'lrr' (did you mean 'lr'?).",
        ),
        ({"model": "m"}, ["run.yaml", "--tiny"], "--tiny: run.yaml has no section tiny"),
        ({"model": "m"}, ["run.yml"], "run.yml does not exist; did you mean 'run.yaml' in the same folder?"),
        (
            {"model": "m"},
            ["run.yaml", "--lr", "1e-5"],
            "--lr is a flag of the run and none of `swift-kd train`, which takes",
        ),
        ({"model": "m"}, ["run.yaml", "--learning-rate=1e-5"], "which takes it as key=value: write lr=1e-5."),
        (
            {"model": "m", "dataset": "???"},
            ["run.yaml"],
            "run.yaml leaves dataset to you; give it: dataset=questions.jsonl",
        ),
        ({"base": "run.yaml"}, ["run.yaml"], "run.yaml -> run.yaml goes in a circle."),
        ({"model": "m"}, ["run.yaml", "--stage", "on_policy"], "--stage on_policy: run.yaml has no stages"),
        ({"on_policy": {}, "output_dir": "o"}, ["run.yaml", "--stage", "generate"], "run.yaml has no section generate"),
        (
            {"off_policy": {}, "on_policy": {}, "output_dir": "o", "model": "m"},
            ["run.yaml", "--stage", "on_policy"],
            "off_policy has not finished in",
        ),
        ({"off_policy": {}, "output_dir": ".", "model": "m"}, ["run.yaml"], None),
        (
            {"off_policy": {}, "output_dir": "o", "env": {"NNODES": 2}},
            ["run.yaml"],
            "stages and --stage check run on one machine",
        ),
        ({"off_policy": {}, "output_dir": "run.yaml/o"}, ["run.yaml"], "run.yaml/o cannot be written: Not a directory"),
        ({"model": "m", "rlhf_type": "dpo"}, ["run.yaml"], "rlhf_type is dpo; swift-kd trains with gkd alone"),
    ],
)
def test_mistakes_are_one_sentence(tmp_path, content, arguments, message):
    write(tmp_path, **content)
    if message is None:
        (tmp_path / "off_policy").mkdir()
        (tmp_path / "off_policy" / "thesis.txt").write_text("")
        message = "off_policy holds files that are not of this command"
    code, log = train(tmp_path, *arguments)
    assert code == 1
    assert log.startswith("swift-kd train: error: ")
    assert message in log
    assert len(log.strip().splitlines()) == 1


@pytest.mark.parametrize(("flags", "env"), [(["--tiny"], {}), ([], {"TINY": "1"}), ([], {"TINY": "0"})])
def test_the_tiny_section_is_asked_for_by_a_flag_or_a_variable(tmp_path, flags, env):
    write(tmp_path, model="large", lr=1, tiny={"model": "small", "nproc_per_node": 1})
    code, log = train(tmp_path, "run.yaml", "lr=2", "--dry_run", *flags, **env)
    assert code == 0, log
    wanted = bool(flags) or env["TINY"] == "1"
    assert log.startswith("NPROC_PER_NODE=1 megatron rlhf") == wanted
    assert f"--model {'small' if wanted else 'large'}" in log
    assert "--lr 2" in log


def test_files_of_megatron_rlhf_are_taken(tmp_path):
    """They name the kind of training and the plugin, which a recipe leaves out."""
    write(tmp_path, rlhf_type="gkd", external_plugins="swift_kd_plugin", model="m", train_iters=80, add_version=False)
    code, log = train(tmp_path, "run.yaml", "--dry_run")
    assert code == 0, log
    assert log.count("--rlhf_type gkd") == log.count("--external_plugins swift_kd_plugin") == 1
    assert "--train_iters 80" in log
    assert "--add_version false" in log
