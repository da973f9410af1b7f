"""The ledger says what it does: each patch replaces its symbol and gives it back."""

import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

from swift_kd_plugin.host.start.host_patches import HOST_LEDGER
from swift_kd_plugin.host.start.seams import SEAMS

pytestmark = pytest.mark.usefixtures("cpu_backend")


def resolve(symbol: str):
    """The object that a dotted path names, taken from its owner's dictionary where there is one."""
    parts = symbol.split(".")
    for length in range(len(parts) - 1, 0, -1):
        try:
            owner = importlib.import_module(".".join(parts[:length]))
        except ImportError:
            continue
        for name in parts[length:-1]:
            owner = getattr(owner, name)
        return vars(owner).get(parts[-1], getattr(owner, parts[-1]))
    raise AssertionError(f"{symbol} names nothing")


@pytest.mark.parametrize("patch", HOST_LEDGER.patches, ids=lambda patch: patch.symbol.rsplit(".", 1)[1])
def test_applies_and_undoes(patch):
    module = importlib.import_module(patch.module)
    stock = resolve(patch.symbol)
    undo = patch.apply(module)
    try:
        assert resolve(patch.symbol) is not stock
    finally:
        undo()
    assert resolve(patch.symbol) is stock


def test_every_patch_says_why():
    symbols = [patch.symbol for patch in HOST_LEDGER.patches]
    assert len(set(symbols)) == len(symbols)
    assert all(patch.why and patch.remove_when for patch in HOST_LEDGER.patches)


def test_the_command_prints_the_ledger():
    command = [str(Path(sys.executable).with_name("swift-kd")), "patches"]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    rows = json.loads(subprocess.run([*command, "--json"], capture_output=True, text=True, check=True).stdout)
    assert [row["symbol"] for row in rows["patches"]] == [patch.symbol for patch in HOST_LEDGER.patches]
    assert [row["symbol"] for row in rows["overridden"]] == [seam.symbol for seam in SEAMS]
    assert all(part.symbol in text for part in (*HOST_LEDGER.patches, *SEAMS))
