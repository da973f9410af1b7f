"""Scripts with vLLM in a process of their own."""

import sys
from collections.abc import Sequence
from pathlib import Path

from tests.launching.commands import environment, run_command
from tests.paths import ROOT
from tests.servers import CPU


def run_script(*argv: str, folder: Path, without: Sequence[str] = ()) -> str:
    """Runs Python in a process of its own, where vLLM meets the machine as it is."""
    path = ":".join([str(ROOT), *sys.path])
    env = environment(None, **CPU, PYTHONPATH=path)
    for name in ("SWIFT_KD_DEVICE", *without):
        env.pop(name, None)
    code, log, _ = run_command([sys.executable, *argv], folder, env)
    assert code == 0, log[-4000:]
    return log
