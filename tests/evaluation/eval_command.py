"""Runs of eval in this process with transformers' engine, on the small model that speaks."""

import json
from pathlib import Path
from typing import Any

from typer.testing import CliRunner, Result

# Imported here, as transformers' logger keeps the stream that it meets first: within a CliRunner it is soon closed.
import swift_kd_plugin.generation.codec  # noqa: F401
from swift_kd_plugin.cli.main import app
from tests.json_lines import read_json_lines
from tests.launching.commands import flags_to_argv
from tests.paths import BASE_MODEL, DATA

QUESTIONS = DATA / "test.jsonl"
FLAGS = {
    "model": f"base={BASE_MODEL}",
    "model_type": "qwen3",
    "template": "qwen3",
    "dataset": QUESTIONS,
    "gold": "gold",
    "engine": "transformers",
    "torch_dtype": "float32",
    "max_new_tokens": 24,
    "thinking": "off",
}


def run_eval(folder: Path, *switches: str, **changes: Any) -> Result:
    """Runs the command with FLAGS and changes, which must succeed."""
    result = try_eval(folder, *switches, **changes)
    assert result.exit_code == 0, result.output[-4000:]
    return result


def try_eval(folder: Path, *switches: str, **changes: Any) -> Result:
    argv = ["eval", *flags_to_argv({**FLAGS, "output": folder, **changes}), *switches]
    result = CliRunner().invoke(app, argv)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def read_report(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "report.json").read_text(encoding="utf-8"))


def read_answers(folder: Path) -> list[dict[str, Any]]:
    return read_json_lines(folder / "answers.jsonl")


def entry_of(report: dict[str, Any], **wanted: Any) -> dict[str, Any]:
    """The one entry of the report's table with these facts; of all rows unless a tag is wanted."""
    wanted = {"tag": None, **wanted}
    (found,) = [cell for cell in report["cells"] if all(cell[name] == value for name, value in wanted.items())]
    return found


def without_times(report: dict[str, Any]) -> dict[str, Any]:
    for cell in report["cells"]:
        cell["seconds"] = cell["tokens_per_second"] = None
    del report["flags"]["output"]
    return report
