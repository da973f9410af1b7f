"""What `swift_kd_plugin.losses` exports, and that torch comes with the first loss only."""

import subprocess
import sys

import pytest

from swift_kd_plugin import losses

IMPORTS_NO_TORCH = """
import sys
from swift_kd_plugin.losses import DIVERGENCES
assert "torch" not in sys.modules
from swift_kd_plugin.losses import token_divergence
assert "torch" in sys.modules
"""


def test_every_name_is_there():
    exported = {}
    exec("from swift_kd_plugin.losses import *", exported)
    assert set(losses.__all__) == set(exported) - {"__builtins__"}
    assert set(losses.__all__) == {*losses.MODULE_OF, "DIVERGENCES"} == set(dir(losses))
    for name in losses.MODULE_OF:
        assert getattr(losses, name).__name__ == name


def test_another_name_is_refused():
    with pytest.raises(AttributeError, match=r"module 'swift_kd_plugin\.losses' has no attribute 'divergence'"):
        _ = losses.divergence
    with pytest.raises(ImportError, match="cannot import name 'divergence'"):
        exec("from swift_kd_plugin.losses import divergence")


def test_the_table_needs_no_torch():
    subprocess.run([sys.executable, "-c", IMPORTS_NO_TORCH], check=True)
