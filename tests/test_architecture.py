"""Imports run downward only, along the edges that are listed here and no other."""

import ast
from collections import Counter
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from tests.paths import ROOT
from tests.rooms import FRONT, ROOMS

PACKAGE = ROOT / "swift_kd_plugin"
# The folders that may import swift, megatron and mcore_bridge.
REACH_INTO_THE_HOST = {"host", "generation", "evaluation", "cpu"}
HOSTS = {"swift", "megatron", "mcore_bridge"}
NO_TORCH = {"data", "config", "memory", "recipes"}


def read_imports(file: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def room_of(file: Path) -> str:
    parts = file.relative_to(PACKAGE).parts
    return "/".join(parts[: 2 if parts[0] == "host" else 1])


def imported_rooms(file: Path) -> set[str]:
    """Rooms and front modules that a file imports, but for its own room."""
    found = set()
    for name in read_imports(file):
        parts = name.split(".")
        if parts[0] == "swift_kd_plugin" and len(parts) > 1:
            room = "/".join(parts[1 : 3 if parts[1] == "host" else 2])
            found |= {room} - {"host", "__version__", "install", room_of(file)}
    return found


FILES = [file for file in sorted(PACKAGE.rglob("*.py")) if file.parent not in (PACKAGE, PACKAGE / "host")]


def imports_of_room(room: str) -> set[str]:
    return set().union(*(imported_rooms(file) for file in FILES if room_of(file) == room))


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_what_is_listed(room):
    """Exactly: an edge that nobody uses any more goes from the list."""
    assert imports_of_room(room) - set(FRONT) == set(ROOMS[room].split())


@pytest.mark.parametrize("module", FRONT)
def test_a_module_of_the_front_door_imports_what_is_listed(module):
    assert imported_rooms(PACKAGE / f"{module}.py") - set(FRONT) == set(FRONT[module].split())


def test_no_room_imports_itself_over_others():
    used = {module: imported_rooms(PACKAGE / f"{module}.py") for module in FRONT}
    TopologicalSorter(used | {room: imports_of_room(room) for room in ROOMS}).prepare()
    assert {room_of(file) for file in FILES} == set(ROOMS)


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_the_host_and_torch_stay_in_their_rooms(file):
    room = file.relative_to(PACKAGE).parts[0]
    for name in read_imports(file):
        top = name.split(".")[0]
        assert top not in HOSTS or room in REACH_INTO_THE_HOST, f"{file} reaches into {name}"
        assert top not in ("torch", *HOSTS) or room not in NO_TORCH, f"{file} imports {name}"


def test_nothing_imports_the_cpu_backend_but_the_entry_point():
    for file in PACKAGE.rglob("*.py"):
        if file.name != "_autoload.py" and "cpu" not in file.relative_to(PACKAGE).parts:
            assert not any(name.startswith("swift_kd_plugin.cpu") for name in read_imports(file)), file


def test_files_stay_small():
    long = {str(f): n for f in PACKAGE.rglob("*.py") if (n := len(f.read_text().splitlines())) > 400}
    assert not long


def test_no_two_modules_have_one_name():
    names = Counter(file.name for file in PACKAGE.rglob("*.py") if file.name != "__init__.py")
    assert [name for name, count in names.items() if count > 1] == []


def statements_of(file: Path) -> list[ast.stmt]:
    """Those of a module, and those under an `if` of it, where what is loaded late is declared."""
    body = ast.parse(file.read_text(encoding="utf-8")).body
    return [inner for node in body for inner in (node.body if isinstance(node, ast.If) else [node])]


def names_of(module: str) -> set[str] | None:
    """What a module of the package defines or imports, or the modules of a folder; None if there is none."""
    place = ROOT / Path(*module.split("."))
    file = place / "__init__.py" if place.is_dir() else place.with_suffix(".py")
    if not file.is_file():
        return None
    names = {path.stem for path in place.iterdir()} if place.is_dir() else set()
    for node in statements_of(file):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            names.add(node.name)
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            names |= {(alias.asname or alias.name).partition(".")[0] for alias in node.names}
        else:
            names |= {part.id for part in ast.walk(node) if isinstance(part, ast.Name)}
    return names


@pytest.mark.parametrize("folder", ["swift_kd_plugin", "scripts", "examples", "tests"])
def test_what_is_imported_of_the_package_is_there(folder):
    """Also in a function that only a benchmark calls."""
    for file in (ROOT / folder).rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "swift_kd_plugin":
                names = names_of(node.module)
                assert names is not None, f"{file} imports {node.module}"
                missing = {alias.name for alias in node.names} - names
                assert not missing, f"{file} imports {missing} of {node.module}"
