"""Every recipe is one that ms-swift reads, every script says the same as its recipe, and the table is whole."""

import os
import re
import shlex
import subprocess
from types import SimpleNamespace

import pytest
import typer

from swift_kd_plugin.arguments import KDArguments
from swift_kd_plugin.cli.train import train
from tests.examples.recipes import (
    GIVEN,
    NEEDS_GPUS,
    RECIPES,
    SCRIPTS,
    commands_of,
    flags_of,
    training_commands_of,
)
from tests.launching.commands import BIN
from tests.paths import EXAMPLES, ROOT
from tests.recipes.swift_parser import real_parser

SHELL = {file.name: file for file in sorted(SCRIPTS.glob("*.sh")) if file.name != "tiny.sh"}
STAGED = {"strong_to_weak.sh": "strong_to_weak/run.yaml", "qwen25_lora_to_small.sh": "qwen25_lora_to_small/run.yaml"}
PLAIN = {
    name: re.search(r"# The same as a file: examples/(.*)", file.read_text())[1]
    for name, file in SHELL.items()
    if name not in STAGED
}


@pytest.fixture(scope="module")
def parse():
    with real_parser() as ask:
        yield ask


def check_own_flags(parsed: dict) -> None:
    """Raises KDError if flags of the plugin contradict one another."""
    flags = object.__new__(KDArguments)
    vars(flags).update(parsed)
    flags.check_kd_flags()


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("tiny", [False, True])
def test_ms_swift_reads_it(recipe, tiny, parse, monkeypatch):
    monkeypatch.delenv("TEACHER", raising=False)
    if tiny and recipe in NEEDS_GPUS:
        pytest.skip("has no section tiny")
    for command in training_commands_of(recipe, tiny).values():
        words = list(command.argv)
        assert words[:2] == ["megatron", "rlhf"]
        parsed = parse(words[2:])
        check_own_flags(parsed)
        check_layout(SimpleNamespace(**parsed), int(command.env["NPROC_PER_NODE"]))


def check_layout(args: SimpleNamespace, processes: int) -> None:
    """As ms-swift does it with the process groups."""
    model = args.tensor_model_parallel_size * args.pipeline_model_parallel_size * args.context_parallel_size
    assert processes % model == 0
    assert args.global_batch_size % (args.micro_batch_size * processes // model) == 0
    experts = args.expert_model_parallel_size * args.expert_tensor_parallel_size * args.pipeline_model_parallel_size
    assert processes % experts == 0
    assert args.max_length % (2 * args.context_parallel_size) == 0
    if args.vllm_max_model_len:
        assert args.vllm_max_model_len >= args.max_completion_length
    assert processes % args.vllm_tensor_parallel_size == 0


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_tiny_run_stays_on_the_laptop(recipe):
    if recipe in NEEDS_GPUS:
        pytest.skip("has no section tiny")
    for command in commands_of(recipe, tiny=True).values():
        assert command.env["SWIFT_KD_DEVICE"] == "cpu"
        assert int(command.env.get("NPROC_PER_NODE", 1)) <= 2
        flags = flags_of(list(command.argv[2:]))
        for name in ("--model", "--teacher_model"):
            assert flags.get(name, ["./"])[0].startswith(("./", "best of")), (name, flags[name])


def run_script(name: str, *arguments: str, **env: str) -> str:
    """What a script prints in the checkout."""
    unset = ("TINY", "TEACHER", "NPROC_PER_NODE", "SWIFT_KD_DEVICE", "OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES")
    variables = {key: value for key, value in os.environ.items() if key not in unset}
    variables |= {"PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}", "DRY_RUN": "1", **env}
    argv = ["bash", str(SHELL[name]), *arguments]
    done = subprocess.run(argv, cwd=ROOT, env=variables, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def read_command(line: str) -> tuple[dict[str, str], list[str]]:
    """Environment and words of a printed command."""
    words = shlex.split(line)
    words = words[1:] if words[0] == "env" else words
    env = {}
    while re.match(r"[A-Za-z_]\w*=", words[0]):
        name, _, value = words.pop(0).partition("=")
        env[name] = value
    return env, words


@pytest.mark.parametrize("name", SHELL)
def test_bash_reads_the_script(name):
    subprocess.run(["bash", "-n", str(SHELL[name])], check=True)
    assert os.access(SHELL[name], os.X_OK)


@pytest.mark.parametrize("tiny", [False, True])
@pytest.mark.parametrize("name", PLAIN)
def test_a_script_says_what_its_recipe_says(name, tiny, monkeypatch):
    monkeypatch.delenv("TEACHER", raising=False)
    recipe = PLAIN[name]
    if tiny and recipe in NEEDS_GPUS:
        with pytest.raises(AssertionError, match="needs GPUs"):
            run_script(name, TINY="1")
        return
    env, words = read_command(run_script(name, **({"TINY": "1"} if tiny else {})))
    (command,) = commands_of(recipe, tiny).values()
    assert words[:2] == ["megatron", "rlhf"]
    assert flags_of(words[2:]) == flags_of(list(command.argv[2:]))
    assert env == command.env


@pytest.mark.parametrize("tiny", [False, True])
@pytest.mark.parametrize("name", STAGED)
def test_a_script_with_stages_prints_those_of_its_recipe(name, tiny, capsys, monkeypatch):
    for variable in ("TEACHER", "SWIFT_KD_DEVICE", "OMP_NUM_THREADS", "NPROC_PER_NODE"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.chdir(ROOT)
    given = {"ADAPTER": "adapter", **({"TINY": "1"} if tiny else {})}
    printed = run_script(name, "save_steps=100", "eval_steps=100", **given)
    overrides = [*(() if tiny else GIVEN[STAGED[name]]), "save_steps=100", "eval_steps=100"]
    with pytest.raises(typer.Exit):
        train(EXAMPLES.relative_to(ROOT) / STAGED[name], overrides, dry_run=True, tiny=tiny)
    assert printed == capsys.readouterr().out


def test_a_flag_behind_a_script_wins():
    _, words = read_command(run_script("skd.sh", "--lr", "3e-6", "--dataset", "a b.jsonl", "c"))
    flags = flags_of(words[2:])
    assert flags["--lr"] == ["3e-6"]
    assert flags["--dataset"] == ["a b.jsonl", "c"]


def test_the_table_names_every_recipe_and_script():
    table = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    cells = {cell.strip(" `") for line in table.splitlines() if line.startswith("|") for cell in line.split("|")}
    named = {name for cell in cells for name in re.split(r"`?, `?", cell)}
    folders = {file.parent.name for file in EXAMPLES.glob("*/README.md")}
    wanted = {"tiny.yaml", *RECIPES, *(f"scripts/{name}" for name in SHELL), *folders}
    assert wanted <= named, wanted - named
    assert {name for name in named if name.endswith((".yaml", ".sh"))} <= wanted
