"""`--help` answers at once: it imports nothing that takes long, and the list of commands imports none of them."""

import json
import subprocess
import sys
from inspect import cleandoc

import pytest
from typer.testing import CliRunner

from swift_kd_plugin.cli.main import COMMANDS, app, load_command
from tests.paths import ROOT

HEAVY = ("torch", "datasets", "pandas", "pyarrow", "numpy", "swift", "transformers", "megatron", "vllm", "matplotlib")
SCRIPT = """
import json, sys
from typer.testing import CliRunner
from swift_kd_plugin.cli.main import app
found = {}
for words in json.loads(sys.argv[1]):
    done = CliRunner().invoke(app, [*words, "--help"])
    assert done.exit_code == 0, done.output
    found[" ".join(words)] = [name for name in sys.modules if name in json.loads(sys.argv[2])]
print(json.dumps(found))
"""


def modules_after(commands: list[list[str]], watched: tuple[str, ...]) -> dict[str, list[str]]:
    words = [sys.executable, "-c", SCRIPT, json.dumps(commands), json.dumps(watched)]
    return json.loads(subprocess.run(words, cwd=ROOT, check=True, capture_output=True, text=True).stdout)


def test_help_imports_nothing_heavy():
    commands = [[], *([name] for name in COMMANDS), ["cache", "show"]]
    assert modules_after(commands, HEAVY) == {" ".join(words): [] for words in commands}


def test_the_list_of_commands_imports_none_of_them():
    own = tuple(f"swift_kd_plugin.cli.{module}" for module, *_ in COMMANDS.values())
    assert modules_after([[]], (*own, "omegaconf")) == {"": []}


def test_the_list_answers_in_half_a_second_of_a_core():
    words = [
        sys.executable,
        "-c",
        "import sys, time; from swift_kd_plugin.cli.main import app; sys.argv = ['swift-kd', "
        "'--help']\ntry:\n    app()\nfinally:\n    print(time.process_time(), file=sys.stderr)",
    ]
    spent = [float(subprocess.run(words, cwd=ROOT, capture_output=True, text=True).stderr) for _ in range(3)]
    assert min(spent) < 0.5


@pytest.mark.parametrize("name", COMMANDS)
def test_the_list_says_of_a_command_what_it_says_of_itself(name):
    first = cleandoc(load_command(name).help).partition("\n\n")[0]
    assert COMMANDS[name][-1] == " ".join(first.split())


def test_an_unknown_command_is_told_its_neighbour():
    done = CliRunner().invoke(app, ["evl"])
    assert done.exit_code == 2
    assert "Did you mean 'eval'?" in done.output
