"""The table of the plugin's flags, from the flags themselves."""

from collections.abc import Iterator
from dataclasses import MISSING, Field, fields
from pathlib import Path

import yaml

from scripts.dev.table_cells import default_of, marked, values_of
from swift_kd_plugin.arguments import KDArguments

CHINESE = Path(__file__).with_name("flags.zh-CN.yaml")
HEADS = {"en": "| flag | values | default | |", "zh": "| 参数 | 取值 | 默认 | |"}


def flag_table(language: str) -> str:
    chinese = yaml.safe_load(CHINESE.read_text(encoding="utf-8"))
    lines = [HEADS[language], "|---|---|---|---|"]
    for flag in _flags():
        said = chinese[flag.name] if language == "zh" else flag.metadata["help"]
        default = "" if flag.default is MISSING else default_of(flag.default)
        lines.append(f"| `--{flag.name}` | {values_of(flag.type)} | {default} | {marked(said)} |")
    return "\n".join(lines)


def _flags() -> Iterator[Field]:
    for group in reversed(KDArguments.__bases__):
        yield from fields(group)
