"""The pages agree with the code: tables, targets, datasets, recipes, Python. Commands: runs/test_page_commands.py."""

import re
import shutil
import subprocess
import sys
from dataclasses import fields

import pytest

from scripts.dev.make_tables import LANGUAGES, TABLES
from swift_kd_plugin.arguments import KDArguments
from swift_kd_plugin.cli.train import generate_flags
from swift_kd_plugin.data.build import Builder
from swift_kd_plugin.data.data_yaml import read_data_yaml
from swift_kd_plugin.data.data_yaml_keys import TYPES, Keys
from swift_kd_plugin.host.start.megatron_flags import megatron_flags
from swift_kd_plugin.losses import DIVERGENCES
from swift_kd_plugin.recipes.plan import make_plan
from swift_kd_plugin.recipes.source import read_recipe
from tests.docs.pages import README, every_page, page
from tests.docs.runnable_commands import MARKED, RUN, RUN_AND_LEARNS, RUN_ITS_USER, RUN_SERVER, RUNNABLE, TOGETHER
from tests.launching.commands import environment, run_command
from tests.parity.layouts import LAYOUTS, WRONG_IN_STOCK
from tests.paths import ROOT

GATE = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
FLAGS = {field.name for field in fields(KDArguments)}


def parity_rows() -> list[list[str]]:
    table = page("evidence/parity.md").english.source.split("<!-- parity table -->")[1].split("<!-- end of ")[0]
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.strip().splitlines()[2:]]


def test_the_gate_runs_what_the_readme_promises():
    targets = re.search(r"for target in (.*); do", GATE)[1].split()
    promised = re.findall(r"^make ([\w-]+)$", "\n".join(README.english.code("bash")), re.MULTILINE)
    assert promised
    assert set(promised) <= set(targets)


@every_page
def test_every_target_is_in_the_makefile(page):
    known = re.search(r"^\.PHONY: (.*)", MAKEFILE, re.MULTILINE)[1].split()
    assert set(re.findall(r"(?:^ *|`)make ([\w-]+)(?:$|`)", page.english.source, re.MULTILINE)) <= set(known)


def test_what_is_run():
    """A block that is no longer marked is no longer run."""
    assert len(RUNNABLE) >= 11
    assert len(TOGETHER) == 2
    assert {mark for _, mark, _ in MARKED} == {RUN, RUN_SERVER, RUN_ITS_USER, RUN_AND_LEARNS}


def test_the_table_has_every_layout():
    assert [row[0] for row in parity_rows()] == [layout.name for layout in [*LAYOUTS, *WRONG_IN_STOCK]]


def test_the_readme_says_what_the_table_says():
    (row,) = (line for line in README.english.rows if "evidence/parity.md" in line and "%" in line)
    worst = max(float(cells[1].rstrip("%")) for cells in parity_rows())
    assert f"{len(LAYOUTS)} parallel layouts" in row
    assert f"{worst:.3f} %" in row


def test_the_table_has_every_divergence():
    lines = page("reference/losses.md").english.rows
    rows = {cells[1].strip(" `"): cells for line in lines if len(cells := line.split("|")) == 6}
    for name, divergence in DIVERGENCES.items():
        assert re.search(r"arXiv [0-9.]+", divergence.paper)[0] in rows[name][3]


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.mark)
def test_tables_are_made_of_the_code(table, language):
    text = table.file(language).read_text(encoding="utf-8")
    assert table.put(text, language) == text, "run python -m scripts.dev.make_tables"


def test_the_table_has_every_flag():
    rows = re.findall(r"^\| `--(kd_\w+)` \|", page("reference/flags.md").english.source, re.MULTILINE)
    assert sorted(rows) == sorted(FLAGS)


@every_page
def test_every_flag_of_the_plugin_is_one(page):
    assert set(re.findall(r"--(kd_\w+)", page.english.source)) <= FLAGS | {"kd_"}


def test_its_datasets_are_valid(tmp_path):
    shutil.copytree(ROOT / "examples" / "data", tmp_path, dirs_exist_ok=True)
    (tmp_path / "page.yaml").write_text(page("guides/data.md").english.code("yaml")[0])
    nodes = read_data_yaml(tmp_path / "page.yaml")
    assert len({type(node) for node in nodes.values()}) == len(TYPES) + 1  # exp_noexp makes two kinds
    for node in nodes.values():
        assert len(Builder(tmp_path / "cache", strict=True).dataset(node)[0]) >= 128


def test_its_recipe_is_valid(tmp_path, monkeypatch):
    monkeypatch.setenv("TEACHER", "http://teacher")
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    (tmp_path / "page.yaml").write_text(page("guides/recipes.md").english.code("yaml")[0])
    stages = make_plan(read_recipe(tmp_path / "page.yaml"), megatron_flags(), generate_flags())
    kinds = ("generate", "off_policy", "on_policy")
    assert [stage.name for stage in stages] == [f"{name}/{kind}" for name in ("medium", "small") for kind in kinds]


def test_the_short_table_has_every_key_of_a_dataset():
    lines = {line.split("|")[1].strip(" `"): line for line in reversed(page("reference/data_yaml.md").english.rows)}
    for name, kind in TYPES.items():
        keys = {key.name for key in fields(kind)} - {key.name for key in fields(Keys)}
        named = set(re.findall(r"`(\w+)`", lines[name]))
        assert keys <= named, keys - named


def test_its_python_registers_a_dataset(tmp_path):
    (code,) = page("guides/data.md").english.code("python")
    (tmp_path / "hints.jsonl").write_text('{"query": "2 + 2?", "hint": "Add.", "response": "4"}\n')
    code += "\nfrom swift.dataset import load_dataset\nprint(load_dataset('hints', remove_unused_columns=False)[0][0])"
    env = environment(None, MODELSCOPE_CACHE=str(tmp_path / "cache"), HF_DATASETS_CACHE=str(tmp_path / "hf"))
    code, log, _ = run_command([sys.executable, "-c", code], tmp_path, env)
    assert code == 0, log[-4000:]
    assert "Use this: Add.\\n\\n2 + 2?" in log


@pytest.mark.parametrize("code", page("reference/losses.md").english.code("python"), ids=lambda _: "page")
def test_a_loss_is_called_from_python(code):
    code += "\nprint(loss.item(), student_logits.grad.abs().sum().item())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-3000:]
    loss, gradient = map(float, done.stdout.split())
    assert loss > 0
    assert gradient > 0
