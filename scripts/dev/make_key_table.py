"""The tables of a data.yaml's keys, from `data/data_yaml_keys.py`."""

from dataclasses import MISSING, Field, fields
from pathlib import Path
from typing import Any

import yaml

from scripts.dev.table_cells import default_of, values_of
from swift_kd_plugin.data.data_yaml_keys import TYPES, Keys, PartKeys, SourceSpec

MEANINGS = Path(__file__).with_name("data_yaml_keys.yaml")
HEADS = {"en": "| {} | values | default | |", "zh": "| {} | 取值 | 默认 | |"}
EVERY = {"en": "every `type`", "zh": "每个 `type`"}
PART = {"en": "a source of `mix`", "zh": "`mix` 的一个来源"}
SOURCE = {"en": "source", "zh": "来源"}
NEEDED = {"en": "needed", "zh": "必需"}


def key_table(language: str) -> str:
    common = {key.name for key in fields(Keys)}
    tables = [_table(EVERY[language], [key for key in fields(Keys) if key.name != "type"], language)]
    for name, kind in TYPES.items():
        tables.append(_table(f"`{name}`", [key for key in fields(kind) if key.name not in common], language))
    tables.append(_table(PART[language], fields(PartKeys), language))
    return "\n\n".join(tables)


def _table(title: str, keys: Any, language: str) -> str:
    meanings = yaml.safe_load(MEANINGS.read_text(encoding="utf-8"))
    lines = [HEADS[language].format(title), "|---|---|---|---|"]
    for key in keys:
        meaning = meanings[key.name][language]
        lines.append(f"| `{key.name}` | {_values(key, language)} | {_default(key, language)} | {meaning} |")
    return "\n".join(lines)


def _values(key: Field, language: str) -> str:
    if key.type in (SourceSpec, SourceSpec | None):
        return SOURCE[language]
    return "dict" if key.type in (dict[str, str], dict[str, Any]) else values_of(key.type)


def _default(key: Field, language: str) -> str:
    if key.default_factory is not MISSING:
        return ""
    if key.default is MISSING:
        return NEEDED[language]
    return default_of(key.default.replace("\n", "\\n")) if isinstance(key.default, str) else default_of(key.default)
