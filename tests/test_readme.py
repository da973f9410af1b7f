"""The README agrees with the code, and the Chinese one with it. Its commands: tests/runs/test_readme_commands.py."""

import ast
import re
import shutil
import sys
from dataclasses import fields

import pytest
import yaml

from scripts.dev.make_flag_table import flag_table, put
from swift_kd_plugin.arguments import KDArguments
from swift_kd_plugin.cli.train import generate_flags
from swift_kd_plugin.data.build import Builder
from swift_kd_plugin.data.data_yaml import read_data_yaml
from swift_kd_plugin.data.data_yaml_keys import TYPES, Keys
from swift_kd_plugin.host.start.megatron_flags import megatron_flags
from swift_kd_plugin.losses import DIVERGENCES
from swift_kd_plugin.recipes.plan import make_plan
from swift_kd_plugin.recipes.source import read_recipe
from tests.launching.commands import environment, run_command
from tests.parity.layouts import LAYOUTS, WRONG_IN_STOCK
from tests.paths import ROOT
from tests.readme_commands import COMMANDS, README, is_target

CHINESE = (ROOT / "README.zh-CN.md").read_text(encoding="utf-8")
GATE = (ROOT / ".ci" / "run").read_text(encoding="utf-8")


def test_the_gate_runs_every_target():
    targets = re.search(r"for target in (.*); do", GATE)[1].split()
    assert {c.split()[1] for c in COMMANDS if is_target(c)} <= set(targets)


def test_every_target_is_in_the_makefile():
    known = re.search(r"^\.PHONY: (.*)", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)[1].split()
    english, chinese = in_both(lambda page: re.findall(r"^ *make ([\w-]+)$", page, re.MULTILINE))
    assert english == chinese
    assert set(english) <= set(known)


def test_the_table_has_every_layout():
    table = README.split("<!-- parity table -->")[1].split("<!-- end of parity table -->")[0]
    rows = [line.split("|")[1].strip() for line in table.strip().splitlines()[2:]]
    assert rows == [layout.name for layout in [*LAYOUTS, *WRONG_IN_STOCK]]


def test_the_table_has_every_divergence():
    rows = {cells[1].strip(" `"): cells for line in README.splitlines() if len(cells := line.split("|")) == 6}
    for name, divergence in DIVERGENCES.items():
        assert re.search(r"arXiv [0-9.]+", divergence.paper)[0] in rows[name][3]


@pytest.mark.parametrize("page", ["README.md", "README.zh-CN.md"])
def test_the_table_of_flags_is_made_of_the_code(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    assert put(text, flag_table(page)) == text, "run python -m scripts.dev.make_flag_table"
    flags = {field.name for field in fields(KDArguments)}
    rows = re.findall(r"^\| `--(kd_\w+)` \|", flag_table(page), re.MULTILINE)
    assert sorted(rows) == sorted(flags)
    assert set(re.findall(r"--(kd_\w+)", text)) <= flags | {"kd_"}


def test_its_datasets_are_valid(tmp_path):
    shutil.copytree(ROOT / "examples" / "data", tmp_path, dirs_exist_ok=True)
    (tmp_path / "readme.yaml").write_text(re.search(r"```yaml\n(.*?)```", README, re.DOTALL)[1])
    nodes = read_data_yaml(tmp_path / "readme.yaml")
    assert len({type(node) for node in nodes.values()}) == len(TYPES) + 1  # exp_noexp makes two kinds
    for node in nodes.values():
        assert len(Builder(tmp_path / "cache", strict=True).dataset(node)[0]) >= 128


def test_its_recipe_is_valid(tmp_path, monkeypatch):
    monkeypatch.setenv("TEACHER", "http://teacher")
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    (tmp_path / "readme.yaml").write_text(re.findall(r"```yaml\n(.*?)```", README, re.DOTALL)[1])
    stages = make_plan(read_recipe(tmp_path / "readme.yaml"), megatron_flags(), generate_flags())
    kinds = ("generate", "off_policy", "on_policy")
    assert [stage.name for stage in stages] == [f"{name}/{kind}" for name in ("medium", "small") for kind in kinds]


def test_the_table_has_every_key_of_a_dataset():
    lines = {line.split("|")[1].strip(" `"): line for line in README.splitlines() if line.startswith("| `")}
    for name, kind in TYPES.items():
        keys = {key.name for key in fields(kind)} - {key.name for key in fields(Keys)}
        named = set(re.findall(r"`(\w+)`", lines[name]))
        assert keys <= named, keys - named


def test_its_python_registers_a_dataset(tmp_path):
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    (tmp_path / "hints.jsonl").write_text('{"query": "2 + 2?", "hint": "Add.", "response": "4"}\n')
    code += "\nfrom swift.dataset import load_dataset\nprint(load_dataset('hints', remove_unused_columns=False)[0][0])"
    env = environment(None, MODELSCOPE_CACHE=str(tmp_path / "cache"), HF_DATASETS_CACHE=str(tmp_path / "hf"))
    code, log, _ = run_command([sys.executable, "-c", code], tmp_path, env)
    assert code == 0, log[-4000:]
    assert "Use this: Add.\\n\\n2 + 2?" in log


def in_both(read) -> tuple:
    """What is read in the English page and in the Chinese one."""
    return read(README), read(CHINESE)


def code_of(page: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page, re.DOTALL)


def prose_of(page: str) -> str:
    return re.sub(r"```.*?```", "", page, flags=re.DOTALL)


def rows_of(page: str) -> list[str]:
    return [line for line in prose_of(page).splitlines() if line.startswith("|")]


def names_in(text: str) -> set[str]:
    return set(re.findall(r"`([^`\n]+)`", text))


def figures_in(text: str) -> list[str]:
    return re.findall(r"(?<![\w.,])\d+(?:[.,]\d+)*", text, re.ASCII)


def test_both_languages_name_each_other():
    english, chinese = in_both(lambda page: page.splitlines()[1])
    assert english == "English | [简体中文](README.zh-CN.md)"
    assert chinese == "[English](README.md) | 简体中文"


@pytest.mark.parametrize("language", ["bash", "json"])
def test_both_languages_have_the_same_commands(language):
    english, chinese = in_both(lambda page: code_of(page, language))
    assert english == chinese != []


@pytest.mark.parametrize(
    ("language", "parse"), [("yaml", yaml.safe_load), ("python", lambda code: ast.dump(ast.parse(code)))]
)
def test_both_languages_have_the_same_code_but_for_comments(language, parse):
    english, chinese = in_both(lambda page: [parse(code) for code in code_of(page, language)])
    assert english == chinese != []


def test_both_languages_have_the_same_headings():
    english, chinese = in_both(lambda page: re.findall(r"^#+(?= )", prose_of(page), re.MULTILINE))
    assert english == chinese


def test_both_languages_have_the_same_names():
    english, chinese = in_both(lambda page: names_in(prose_of(page)))
    assert not english ^ chinese


def test_both_languages_have_the_same_tables():
    for english, chinese in zip(*in_both(rows_of), strict=True):
        assert english.count("|") == chinese.count("|"), chinese
        assert names_in(english) == names_in(chinese), chinese
        assert figures_in(english) == figures_in(chinese), chinese


def test_both_languages_have_the_same_figures():
    sections = in_both(lambda page: re.split(r"^#+ ", prose_of(page), flags=re.MULTILINE))
    for english, chinese in zip(*sections, strict=True):
        assert sorted(figures_in(english)) == sorted(figures_in(chinese)), chinese.splitlines()[0]


def test_both_languages_have_the_same_measured_tables():
    english, chinese = in_both(lambda page: re.search("<!-- parity table -->.*<!-- end of .*-->", page, re.DOTALL)[0])
    assert english == chinese
    english, chinese = in_both(lambda page: re.findall("<!--.*?-->", page))
    assert english == chinese
