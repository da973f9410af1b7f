"""A host of another version is refused by name, before anything is patched."""

import os
import subprocess
import sys
from importlib import metadata

import pytest

from swift_kd_plugin.requirements import CHECKED, find_unsupported


def test_the_installed_host_is_supported():
    assert find_unsupported() is None


@pytest.mark.parametrize(
    ("package", "version", "wanted"),
    [
        ("ms-swift", "4.5.9", "'ms-swift<4.7,>=4.6'"),
        ("mcore-bridge", "1.7.0", "'mcore-bridge<1.7,>=1.6'"),
        ("megatron-core", "0.17.0rc1", "'megatron-core<0.17,>=0.16'"),
        ("torch", "2.12.1+cu130", "'torch<2.14,>=2.13'"),
    ],
)
def test_another_version_is_refused_by_name(tmp_path, package, version, wanted):
    """The version is read from a package's metadata; another one is put in front of the installed one."""
    folder = tmp_path / f"{package.replace('-', '_')}-{version}.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n")
    command = [sys.executable, "-c", "import torch", "--external_plugins", "swift_kd_plugin"]
    env = {**os.environ, "PYTHONPATH": str(tmp_path)}
    run = subprocess.run(command, capture_output=True, text=True, env=env, check=False)
    assert run.returncode == 1
    said = f"swift_kd_plugin: error: {package} {version} is outside the supported range; install {wanted}.\n"
    assert run.stderr == said


def test_every_checked_package_has_a_range():
    requirements = " ".join(metadata.requires("swift-kd-plugin"))
    assert all(f"{name}<" in requirements for name in CHECKED)
