"""Scripts with vLLM in a process of their own."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.launching.commands import environment, run_command, run_tool
from tests.paths import ROOT
from tests.servers import CPU


def run_script(*argv: str, folder: Path, without: Sequence[str] = (), literal: bool = False) -> str:
    """Runs `python -m NAME …` or `swift-kd …` in a process of its own, where vLLM meets the machine as it is.

    Args:
        without: variables that the process is not to see.
        literal: start the command itself instead of forking a warm process, which has seen all variables.
    """
    env = environment(None, **CPU, PYTHONPATH=str(ROOT))
    for name in ("SWIFT_KD_DEVICE", *without):
        env.pop(name, None)
    code, log, _ = (run_command if literal else run_tool)(list(argv), folder, env)
    assert code == 0, log[-4000:]
    return log


def last_json_line(log: str) -> Any:
    """What a script printed as JSON; libraries may have their say after it."""
    return json.loads(next(line for line in reversed(log.splitlines()) if line.startswith("{")))
