"""Every command in every page is one that its program takes; those that are marked are run in tests/runs."""

import json
import re
import shlex
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from typer.main import get_command
from typer.testing import CliRunner

from swift_kd_plugin.cli.main import app
from tests.launching.commands import environment
from tests.paths import ROOT
from tests.recipes.swift_parser import real_parser

PROGRAMS = ("bash", "export", "make", "megatron", "pip", "python", "sbatch", "swift", "swift-kd", "vllm")
LEFT_OUT = " … "
FENCED = re.compile(r"```bash\n(.*?)```", re.DOTALL)
INDENTED = re.compile(r"^ {4}(?:\w+=\S+ )*(?:" + "|".join(PROGRAMS) + r") (?:.*\\\n)*.*$", re.MULTILINE)
CHECKOUT = re.compile(r"\.(\[\w+(,\w+)*\])?")
VARIABLE = re.compile(r"\w+=")
# In a process of its own: what another test imported before decides whether vLLM can be imported without torchvision.
ASK_VLLM = """
import json, sys
from vllm.entrypoints.launchers.cli_args import make_arg_parser
from vllm.utils.argparse_utils import FlexibleArgumentParser
parser = make_arg_parser(FlexibleArgumentParser())
for words in json.load(sys.stdin):
    assert parser.parse_args(words).model_tag, words
"""


def pages() -> list[Path]:
    return sorted(page for page in ROOT.rglob("*.md") if not any(part.startswith(".") for part in page.parts))


def commands_in(page: Path) -> list[list[str]]:
    """The words of each, without variables that stand before it."""
    text = page.read_text(encoding="utf-8")
    lines = [line for block in FENCED.findall(text) for line in block.replace("\\\n", " ").splitlines()]
    lines += [line.replace("\\\n", " ") for line in INDENTED.findall(FENCED.sub("", text))]
    found = []
    for line in lines:
        words = shlex.split(line.replace(LEFT_OUT, " "), comments=True)
        while words and VARIABLE.match(words[0]):
            words.pop(0)
        if words:
            found.append(words)
    return found


COMMANDS = [
    pytest.param(words, id=f"{page.relative_to(ROOT)}-{number}-{words[0]}")
    for page in pages()
    for number, words in enumerate(commands_in(page))
    if words[0] != "vllm"
]


@pytest.fixture(scope="module")
def ask_swift():
    with real_parser() as ask:
        yield ask


@pytest.mark.parametrize("words", COMMANDS)
def test_its_program_takes_it(words, ask_swift, monkeypatch):
    monkeypatch.chdir(ROOT)
    program, *arguments = words
    if program == "swift-kd":
        parse(arguments)
    elif program in ("megatron", "swift"):
        ask_swift([word for word in arguments[1:] if word != "--help"], f"{program} {arguments[0]}")
    elif program == "make":
        assert f"\n{arguments[0]}:" in Path("Makefile").read_text(encoding="utf-8")
    elif program == "python":
        assert find_spec(arguments[1]) if arguments[0] == "-m" else Path(arguments[0]).is_file()
    elif program == "bash":
        assert Path(arguments[0]).is_file()
    elif program == "sbatch":
        assert Path(next(word for word in arguments if word.endswith(".sbatch"))).is_file()
    elif program == "pip":
        assert arguments[0] == "install"
        assert all(map(is_installable, arguments[1:]))
    else:
        assert program == "export"


def test_vllm_takes_its_commands():
    commands = [words for page in pages() for words in commands_in(page) if words[0] == "vllm"]
    assert {words[1] for words in commands} == {"serve"}
    arguments = json.dumps([words[2:] for words in commands])
    env = environment(None, VLLM_PLUGINS="none")
    done = subprocess.run([sys.executable, "-c", ASK_VLLM], input=arguments, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


def is_installable(what: str) -> bool:
    """The checkout with or without extras, or the name of a package."""
    return bool(CHECKOUT.fullmatch(what) or Requirement(what))


def parse(arguments: list[str]) -> None:
    """Ends as `swift-kd` does if it does not take these; `train` also reads its file."""
    name, *rest = arguments
    group = get_command(app)
    with group.make_context("swift-kd", arguments) as ctx:
        _, command, _ = group.resolve_command(ctx, [name])
        with command.make_context(name, rest, parent=ctx):
            pass
    if name == "train":
        done = CliRunner().invoke(app, [*arguments, "--dry_run"])
        assert done.exit_code == 0, done.output


def test_commands_are_found():
    assert {page.name for page in pages()} >= {"README.md", "README.zh-CN.md", "CHANGELOG.md"}
    assert {words[0] for words in (command.values[0] for command in COMMANDS)} >= set(PROGRAMS) - {"bash", "vllm"}
    assert len(COMMANDS) > 60
