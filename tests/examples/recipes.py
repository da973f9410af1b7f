"""The recipes of examples/ and scripts/, and how a test runs one."""

import json
import math
import re
from dataclasses import dataclass
from pathlib import Path

from swift_kd_plugin.cli.train import generate_flags
from swift_kd_plugin.host.start.megatron_flags import megatron_flags
from swift_kd_plugin.recipes.plan import GENERATE, has_stages, make_plan, plain_keys
from swift_kd_plugin.recipes.shell_command import Command, megatron_command
from swift_kd_plugin.recipes.source import read_recipe
from swift_kd_plugin.recipes.stages import StageRunner, complete_keys
from tests.launching.commands import environment, free_port, run_command, run_tool
from tests.paths import EXAMPLES, ROOT

SCRIPTS = ROOT / "scripts"
# The proof's files get rows from its driver, and data.yaml names datasets.
OTHERS = ("proof", "data")
RECIPES = [
    str(file.relative_to(EXAMPLES))
    for file in sorted(EXAMPLES.glob("*/*.yaml"))
    if file.parent.name not in OTHERS and file.name not in ("base.yaml", "data.yaml")
]
# What a user has to give.
GIVEN = {
    "qwen25_lora_to_small/run.yaml": ("kd_teacher_adapters=[adapter]",),
    "strong_to_weak/run.yaml": ("dataset=questions.jsonl",),
    "qwen25_lora_to_small/teacher_8bit.yaml": ("kd_teacher_adapters=[adapter]",),
    "strong_to_weak/local_teacher.yaml": ("dataset=questions.jsonl",),
    "strong_to_weak/local_teacher_4bit.yaml": ("dataset=questions.jsonl",),
}
NEEDS_GPUS = ("megatron_gkd/on_policy_server.yaml",)


def recipes_of(folder: str) -> list[str]:
    return [recipe for recipe in RECIPES if recipe.startswith(f"{folder}/")]


def commands_of(recipe: str, tiny: bool) -> dict[str, Command]:
    """The command of each stage by its name; of a recipe without stages, "" is the name."""
    read = read_recipe(EXAMPLES / recipe, () if tiny else GIVEN.get(recipe, ()), tiny)
    if not has_stages(read):
        return {"": megatron_command(plain_keys(read, megatron_flags()), {})}
    runner = StageRunner(print)
    stages = make_plan(read, megatron_flags(), generate_flags())
    return {
        stage.name: runner.command(stage, complete_keys(stage, lambda source: f"best of {source.name}"))
        for stage in stages
    }


def training_commands_of(recipe: str, tiny: bool) -> dict[str, Command]:
    return {name: command for name, command in commands_of(recipe, tiny).items() if not name.endswith(GENERATE)}


def flags_of(words: list[str]) -> dict[str, list[str]]:
    """Values by flag; the last one of a flag that is given twice."""
    flags: dict[str, list[str]] = {}
    for word in words:
        if word.startswith("--"):
            name, equals, value = word.partition("=")
            flags[name] = [value] if equals else []
            last = name
        else:
            flags[last].append(word)
    return flags


@dataclass
class TinyRun:
    """A finished run of `swift-kd train --tiny`: what it printed, its folder, and the logged steps of each training."""

    log: str
    folder: Path
    seconds: float
    steps: dict[str, list[dict]]


def tiny_command(recipe: str, *overrides: str) -> list[str]:
    return ["swift-kd", "train", "--tiny", f"examples/{recipe}", *overrides]


def run_tiny(folder: Path, models: Path, recipe: str, *overrides: str, script: str = "", **env: str) -> TinyRun:
    """Runs a recipe in `folder` as a user does in the checkout. It must succeed, learn from finite losses and save.

    Args:
        models: what examples/tiny_models.py made.
        script: of scripts/, to be started, literally, in place of `swift-kd train`.
    """
    (folder / "examples").symlink_to(EXAMPLES)
    (folder / "output").mkdir()
    (folder / "output" / "tiny_models").symlink_to(models)
    variables = {name: value for name, value in environment(None).items() if name != "TINY"}
    variables |= {"MASTER_PORT": str(free_port()), **env}
    if script:
        argv = ["bash", str(SCRIPTS / script), *overrides]
        code, log, seconds = run_command(argv, folder, variables | {"TINY": "1"}, timeout=400)
    else:
        code, log, seconds = run_tool(tiny_command(recipe, *overrides), folder, variables, timeout=400)
    assert code == 0, f"exit code {code}:\n{log[-6000:]}\n{_end_of_stages(folder)}"
    logs = [file for file in folder.glob("output/**/logging.jsonl") if "tiny_models" not in file.parts]
    steps = {str(file.parent.relative_to(folder / "output")): _steps(file) for file in logs}
    assert len(steps) == len(training_commands_of(recipe, tiny=True))
    for file, name in zip(logs, steps, strict=True):
        assert steps[name], name
        assert all(math.isfinite(step["loss"]) and math.isfinite(step["grad_norm"]) for step in steps[name]), name
        checkpoints = [*file.parent.glob("checkpoint-*/*.safetensors")]
        assert checkpoints, name
    return TinyRun(log, folder, seconds, steps)


def samples_used(stage: Path) -> tuple[int, int]:
    """Samples that a stage of `swift-kd train` has read from its teacher cache, and those that it has scored."""
    return samples_in((stage / "train.log").read_text(encoding="utf-8"))


def samples_in(log: str) -> tuple[int, int]:
    found = re.search(r"([\d,]+) samples were read, ([\d,]+) scored", log)
    return int(found[1]), int(found[2])


def _steps(file: Path) -> list[dict]:
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    return [row for row in rows if "loss" in row]


def _end_of_stages(folder: Path) -> str:
    return "\n".join(file.read_text(errors="replace")[-3000:] for file in folder.glob("output/**/train.log"))
