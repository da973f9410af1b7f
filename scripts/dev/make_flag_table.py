"""Writes the table of flags into both READMEs, from the flags themselves.

python -m scripts.dev.make_flag_table
"""

import re
from collections.abc import Iterator
from dataclasses import MISSING, Field, fields
from pathlib import Path
from typing import Literal, get_args, get_origin

import yaml

from swift_kd_plugin.arguments import (
    DataFlags,
    DivergenceFlags,
    GenerationFlags,
    ModelFlags,
    ObjectiveFlags,
)
from swift_kd_plugin.teacher_arguments import FeatureFlags, TeacherFlags

REPO = Path(__file__).resolve().parents[2]
BEGIN, END = "<!-- flag table -->", "<!-- end of flag table -->"
HEADS = {"README.md": "| flag | values | default | |", "README.zh-CN.md": "| 参数 | 取值 | 默认 | |"}
GROUPS = (DataFlags, ModelFlags, DivergenceFlags, ObjectiveFlags, TeacherFlags, FeatureFlags, GenerationFlags)


def flag_table(page: str) -> str:
    """The table of a README, in its language."""
    chinese = yaml.safe_load((REPO / "scripts" / "dev" / "flags.zh-CN.yaml").read_text(encoding="utf-8"))
    lines = [HEADS[page], "|---|---|---|---|"]
    for flag in _flags():
        said = chinese[flag.name] if page.endswith("zh-CN.md") else flag.metadata["help"]
        lines.append(f"| `--{flag.name}` | {_values(flag)} | {_default(flag)} | {_marked(said)} |")
    return "\n".join(lines)


def put(text: str, table: str) -> str:
    """A README with the table between its two marks."""
    before, rest = text.split(BEGIN)
    return f"{before}{BEGIN}\n{table}\n{END}{rest.split(END)[1]}"


def _flags() -> Iterator[Field]:
    for group in GROUPS:
        yield from fields(group)


def _default(flag: Field) -> str:
    if flag.default is MISSING or flag.default is None:
        return ""
    shown = str(flag.default).lower() if isinstance(flag.default, bool) else str(flag.default)
    return shown if isinstance(flag.default, (int, float)) and not isinstance(flag.default, bool) else f"`{shown}`"


def _values(flag: Field) -> str:
    """The choices, or the type as it is written in Python."""
    options = [flag.type, *get_args(flag.type)]
    chosen = [value for option in options if get_origin(option) is Literal for value in get_args(option)]
    if chosen:
        return " ".join(f"`{value}`" for value in chosen)
    kinds = [option for option in options if option in (bool, int, float, str, list[str])]
    return getattr(kinds[0], "__name__", str(kinds[0])) if kinds[0] != list[str] else "str …"


def _marked(text: str) -> str:
    """Flags and quoted values in the type of code."""
    text = re.sub(r"(?<![\w`])--\w+", r"`\g<0>`", text)
    return re.sub(r"'(\w+)'", r"`\1`", text)


def main() -> None:
    for page in HEADS:
        file = REPO / page
        file.write_text(put(file.read_text(encoding="utf-8"), flag_table(page)), encoding="utf-8")


if __name__ == "__main__":
    main()
