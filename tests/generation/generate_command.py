"""Runs of generate in this process with transformers' engine, which starts at once, and what they wrote."""

import json
from pathlib import Path
from typing import Any

from typer.testing import CliRunner

from swift_kd_plugin.cli.main import app
from tests.json_lines import read_json_lines
from tests.launching.commands import flags_to_argv
from tests.paths import BASE_MODEL, DATA

QUESTIONS = DATA / "exp.jsonl"
FLAGS = {
    "model": BASE_MODEL,
    "model_type": "qwen3",
    "template": "qwen3",
    "dataset": QUESTIONS,
    "engine": "transformers",
    "torch_dtype": "float32",
    "max_model_len": 256,
    "max_new_tokens": 24,
    "temperature": 1.5,
}


def read_rows(folder: Path) -> list[dict[str, Any]]:
    return read_json_lines(folder / "responses.jsonl")


def read_report(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "report.json").read_text(encoding="utf-8"))


def run_generate(folder: Path, *switches: str, **changes: Any) -> str:
    """Runs the command with FLAGS and changes, which must succeed; returns what it says."""
    code, log = try_generate(folder, *switches, **changes)
    assert code == 0, log[-4000:]
    return log


def try_generate(folder: Path, *switches: str, **changes: Any) -> tuple[int, str]:
    """Exit code and output."""
    argv = ["generate", *flags_to_argv({**FLAGS, "output": folder, **changes}), *switches]
    result = CliRunner().invoke(app, argv)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.output
