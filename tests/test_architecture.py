"""Imports run downward only: cli -> recipes -> host -> evaluation -> generation -> data, teacher -> losses."""

import ast
from pathlib import Path

import pytest

from tests.paths import ROOT

PACKAGE = ROOT / "swift_kd_plugin"
ROOMS = {
    # room: the rooms it may import
    "cli": {"cli", "recipes", "host", "data", "generation", "evaluation", "teacher", "losses"},
    "recipes": {"recipes", "host", "data"},
    "host": {"host", "data", "generation", "evaluation", "teacher", "losses"},
    "data": {"data"},
    "generation": {"generation", "data", "teacher", "losses"},
    "evaluation": {"evaluation", "generation", "data", "teacher", "losses"},
    "teacher": {"teacher", "losses"},
    "losses": {"losses"},
    "cpu": {"cpu"},
}
# The plugin's own front door: small modules that every room may use.
FRONT = {"errors", "ledger", "version", "arguments", "launcher", "requirements"}
REACHES_INTO_THE_HOST = {"host", "generation", "evaluation", "cpu"}
HOSTS = {"swift", "megatron", "mcore_bridge"}
NO_TORCH = {"data"}


def read_imports(file: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


FILES = [file for room in ROOMS for file in sorted((PACKAGE / room).rglob("*.py"))]


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_imports_run_downward(file):
    room = file.relative_to(PACKAGE).parts[0]
    for name in read_imports(file):
        parts = name.split(".")
        if parts[0] == "swift_kd_plugin" and len(parts) > 1:
            assert parts[1] in ROOMS[room] | FRONT, f"{file} imports {name}"
        if parts[0] in HOSTS:
            assert room in REACHES_INTO_THE_HOST, f"{file} reaches into {name}"
        if parts[0] in ("torch", *HOSTS):
            assert room not in NO_TORCH, f"{file} imports {name}"


def test_nothing_imports_the_cpu_backend_but_the_entry_point():
    for file in PACKAGE.rglob("*.py"):
        if file.name != "_autoload.py" and "cpu" not in file.relative_to(PACKAGE).parts:
            assert not any(name.startswith("swift_kd_plugin.cpu") for name in read_imports(file)), file


def test_files_stay_small():
    long = {str(f): n for f in PACKAGE.rglob("*.py") if (n := len(f.read_text().splitlines())) > 400}
    assert not long
