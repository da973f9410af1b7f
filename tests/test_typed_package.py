"""What editors and type checkers get: a wheel with py.typed, annotations that resolve, and public names alone."""

import shutil
import subprocess
import sys
import zipfile
from inspect import signature
from typing import get_type_hints

import pytest

import swift_kd_plugin
from swift_kd_plugin import losses
from tests.paths import ROOT

SOURCES = (
    "swift_kd_plugin",
    "setup.py",
    "pyproject.toml",
    "README.md",
    "LICENSE",
    "swift_kd_plugin_autoload_guard.pth",
)


def test_a_wheel_has_the_marker_and_every_module(tmp_path):
    for name in SOURCES:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, tmp_path / name)
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", "made", "."]
    subprocess.run(build, cwd=tmp_path, check=True)
    (wheel,) = (tmp_path / "made").glob("swift_kd_plugin-*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {"swift_kd_plugin/py.typed", "swift_kd_plugin_autoload_guard.pth"} <= names
    modules = {str(file.relative_to(ROOT)) for file in (ROOT / "swift_kd_plugin").rglob("*.py")}
    assert modules <= names


@pytest.mark.parametrize("name", sorted(losses.MODULE_OF))
def test_every_argument_of_a_loss_has_a_type(name):
    loss = getattr(losses, name)
    assert set(get_type_hints(loss)) == {*signature(loss).parameters, "return"}


def test_dir_shows_public_names_alone():
    assert dir(swift_kd_plugin) == sorted(swift_kd_plugin.__all__) == ["__version__", "install"]
    assert dir(losses) == sorted(losses.__all__)
